// Package pki is node identity: the cluster's CA, join tokens, node certificates with role and
// node ID inside, and the TLS configurations in which both sides are checked.
//
// All connections are TLS 1.3. A certificate is built by the CA from a public key alone. What
// it says is one URI, heddle://CLUSTER/ROLE/NODE?epoch=E&rev=R; every other field is empty or
// fixed. Verification is ours from the signature on: nothing depends on names, key usages or
// the host's trust store, and validity dates count only where a manager's API is dialled.
package pki
