// Package overlay holds heddle's words: nodes, networks, leases, endpoints and the signed
// statements about them, with their validation and the check of a statement against what a
// node trusts.
//
// It is pure: no goroutine, clock, randomness or I/O. Time, IDs and keys arrive as arguments.
// Every other package may import it; it imports the standard library alone.
package overlay
