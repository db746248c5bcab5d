// Package glancetest is the part of Glance's API that cinderlift uses, in memory, for tests. It behaves as measured on
// Glance 25.1.0 (Debian 12) and 30.0.0 (Debian 13) and read in glance c76abb08e; what it claims is held against the
// real thing by the conformance suite of package glance. Tokens and faults are the business of keystonetest, under which
// it is mounted.
package glancetest
