// Package proc looks at the processes of a running service through /proc, and
// disturbs none of them: nothing is attached, stopped or signalled.
//
// # Whose paths
//
// A process may have a root, and a mount namespace, of its own. Paths are given
// as they are in the root that the caller captures from, so that they can be
// handed to package rootfs: those of a process chrooted to /var/spool/postfix
// begin with that. What lies outside the captured root is left out.
//
// A process may end at any moment, and its number may be used again. Whoever
// looks at a service takes what it finds as a hint, and not as proof.
package proc
