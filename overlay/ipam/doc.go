// Package ipam is address arithmetic: it cuts subnets from pools, grants addresses of a
// subnet to leases, and takes and frees the addresses of a lease.
//
// It is pure and exact: the same input gives the same answer everywhere, the lowest that is
// free. Work grows with the number of ranges in use, never with the size of a prefix.
package ipam
