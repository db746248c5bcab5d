// Package lab drives the lab of real services (deployments/lab) for the tests with the build tag lab, the benchmark and
// the demo: it makes and fills volumes, asks Cinder for images as a user does, starts workers, and compares content.
// Nothing of it is in the product.
package lab
