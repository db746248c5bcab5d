// Package arrows holds the test that keeps imports pointing one way, and each outside dependency in one package.
package arrows
