// Package state is what the managers agree on: nodes, networks, leases, removals, tokens and
// keys, changed by commands that every manager applies in the same order.
//
// It is deterministic: the same commands at the same indexes give the same state, the same
// signatures and the same snapshot on every manager. There is no clock, randomness or I/O;
// time, IDs and keys arrive inside the commands. Nothing outside [State.Apply] and
// [State.Restore] changes it. Who may ask for a command is judged before it is proposed.
package state
