// Package store keeps verified content on the standby's disk, in front of the
// origins that it comes from: whatever is asked for is fetched at most once,
// checked against its digest, and there from then on, also after a restart.
//
// # What lies where
//
//	DIR/lock             held by the one process that uses the store, its number in it
//	DIR/blobs/<hex>      whole files under their digest, read-only
//	DIR/partial/<id>     files of which some chunks are there, sparse; <id>.map says which
//	DIR/meta/<hex>       directory pages and chunk lists
//	DIR/snapshots/...    snapshots by source and service
//	DIR/pins             which blobs are the host's own files
//	DIR/statcache        digests of host files and blobs by their stat
//	DIR/tmp              what is being written; emptied at start
//
// blobs is flat because overlayfs uses it as a data-only layer, in which the
// file of a digest is "/<hex>".
//
// # Where content comes from
//
// A [Reader] reads for one snapshot. It looks into the store, then at the
// host's own files (same path first, then same name in the library and program
// folders; same size; then same digest), then asks its origins in order. An
// identical host file is pinned: hard-linked into blobs where that is
// possible, else reflinked, else copied.
//
// Of a large file that is missing, the chunks that an older version has are
// taken from there: the file that had the same path in another stored snapshot,
// whole or in part, at the same place or elsewhere in it. They are verified as
// all others are, and what turns out wrong is fetched. (Files of up to 1 MiB come
// whole; a file that was renamed comes whole.)
//
// [Reader.ReadAhead] and [Reader.MetaAhead] begin to bring in what will be
// asked for next, many to a request.
//
// # What is guaranteed
//
// Nothing unverified is ever returned or gets its name in blobs. A blob
// appears by rename, after all its bytes had the right digest. It is flushed
// to disk some seconds later, many together, and only then is its stat (device,
// inode, size, mtime, ctime) recorded. A blob whose stat is not the recorded one
// is hashed again before it is used: after a power failure, after somebody
// wrote to it, after somebody wrote to the host's file that it is a link of. If
// it is not what its name says, it is removed, and the content comes from
// elsewhere. [Reader.Prefetch] and [Store.Close] return after the flush.
//
// Chunks of a partial file that an earlier process left are hashed again when
// they are first used. So no order of writes on the disk matters, and a process
// killed at any point leaves nothing that could be mistaken for content.
//
// # Waiting
//
// However many callers wait for the same content, it is fetched once. A caller
// whose context ends stops waiting; when nobody waits any more the fetch is
// cancelled. A fetch that makes no progress (one verified chunk, or one whole
// small file) for [Options].Deadline fails; an origin that is silent for a
// second is passed over while there is another to ask, and one that failed is
// left alone for a second.
//
// # Limits
//
// The kernel reads blobs through overlayfs without asking the store. It is
// the opening of a file in a root that has its blob checked. A blob that is
// damaged while it is open is noticed at the next open.
package store
