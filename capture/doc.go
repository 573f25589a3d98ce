// Package capture observes a service on the source, and returns a snapshot of
// everything that it needs, proven to work. It also offers the snapshot's
// content, read from the live files.
//
// # How a capture goes
//
// [Capture] works in steps, each reported as it ends:
//
//	find     the unit, init script or command becomes a [manifest.Unit]
//	trace    a second, disposable instance starts in a sandbox, under trace,
//	         over a copy-on-write view of the source's root, and is sent its
//	         probes; what it executed, opened and looked up is known. Meanwhile
//	         the package database says which packages own the service and what
//	         they need, and these are closed over and hashed
//	close    what a trace can't see is added: symlinks on the way, interpreters,
//	         libraries, the packages' other files, and the rules' files.
//	         Meanwhile the instance is stopped, and what that touched is added
//	build    the tree is scanned, hashed and encoded
//	verify   the service starts again, in a root that has the snapshot's names
//	         and nothing else, and is sent the probes; lookups that failed there
//	         and exist on the source are added, and the build repeated
//	publish  the snapshot goes into the [Library]
//
// The instance that serves is never traced, signalled or written to. It is only
// looked at through /proc.
//
// # Why a path is in
//
// Each path has one or more [Reason]s, each of one [Class]. Excess costs
// nothing, since content is fetched when it is read; lack costs everything.
// So whole packages go in, and whole data folders of which one file was opened.
//
// # Names and bytes
//
// Nothing is copied. The [Library] keeps names, attributes and digests; the
// bytes stay in the source's own files, and [Live] reads them from there when
// they are asked for by digest. A file that has changed since is refused with
// [manifest.ErrStale]: whoever asks gets the snapshot's bytes or none.
//
// # What is assumed
//
// Without a probe a service counts as started when its start command has
// succeeded, its process lives, and it has opened nothing for a while. Then
// [Result.Assumed] is true: that it does its job is a guess.
//
// The sandbox's network is its own, with nothing in it but lo. A service that
// must reach another host to start can't be captured with a trace.
package capture
