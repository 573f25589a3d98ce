// Package fs shows a snapshot as a FUSE file system, the view. [Mount] mounts
// one; what it shows comes from the snapshot and, as it is needed, from a
// [Content].
//
// # FUSE decides, the kernel serves
//
// A view shows one snapshot, so whatever the kernel has once been told is true until the
// view moves to another, and everything here is arranged so that it need not ask twice:
//
//   - names, attributes, names that do not exist, symlinks and listings are handed
//     out for a year;
//   - OPEN, OPENDIR and FLUSH are answered ENOSYS the first time, after which the
//     kernel opens and closes by itself and keeps pages and listings;
//   - READ is answered for what is not in the page cache, from files that the view
//     opens and closes by itself (type files).
//
// Extended attributes are the exception: the kernel keeps POSIX ACLs, and no
// others. Each exec asks for security.capability, which costs one upcall; a root
// can have the programs that it is known to execute answered by the disk, with a
// layer of stubs ([View.Stubs]).
//
// # Two layouts
//
// [Plain] is a read-only file system for people and programs. [Layers] is the
// lower part of a root: an overlay file system takes names and attributes from
// its folder "tree", and looks a file's content up by its digest when the file is
// first opened: in "content", the gate, then in the folder of blobs on the disk,
// then in "failed". The gate waits until the blob is there and says that it has
// no such file; so the kernel opens the blob, and from the first byte on the file
// is native. A file too large to wait for is served by the gate itself, in parts.
// [Lower] writes the layers in the form that overlayfs wants.
//
// The gate's answers are never kept, so that an open that failed is tried again;
// and "failed" exists because overlayfs reports the error of the layer that it
// asked last, which among the blobs would be "no such file", of a file that ls
// shows.
//
// # Nodes
//
// The view implements go-fuse's RawFileSystem over one table of all names it has
// seen, 64 bytes and the name for each, and in a plain view 8 for what the kernel has of
// it, outside Go's heap. A directory's pages are fetched when something in it is first
// asked for. Node numbers follow from the order in which directories were loaded, and
// are the inode numbers that stat shows; names of one file share one. FORGET of what is
// in the tree changes nothing: the table is bounded by what the snapshot says it holds,
// and a tree that holds more is refused.
//
// # Moving
//
// A plain view can move to another snapshot of its service ([View.Move]), while it is
// read. A node is one content for ever:
//
//   - a file whose bytes have not changed keeps its node, and its pages; if its owner,
//     mode, times, attributes or number of links have, the node gets those;
//   - whatever has other bytes, another target or another type is a new node, so a file
//     that is open stays the file that was opened, and no reader sees a mixture;
//   - a directory keeps its node whatever comes into it and goes, and so does who is in it;
//     one that has gone is empty. A renamed directory is a new one;
//   - names that were links to one file and are no more, or have become it, are told apart
//     by what the snapshot says, not by its link numbers, which may all be others.
//
// Of the two snapshots only those directories are compared that are loaded and have
// another digest, and of large ones the pages that differ. All that is new is made
// beside the tree; then, while no reader looks (View.tree), the listings are changed, and
// that takes as long as there are changes. Afterwards the kernel is told (type news) what
// it must not remember: each name, then the listings, then attributes. Nothing is locked
// meanwhile; who looks finds the new tree. The kernel's own locks see to it that no answer
// from before is remembered after.
//
// Slots of names that have gone are used again, when the kernel has given their node back,
// under another generation; and the 16,384 that went last are kept, because a listing that
// stopped at one of them finds its place by its name. (One that stopped at a name that has
// been gone for longer ends with ESTALE.) So a view that has moved for years takes the
// memory of the largest tree that it showed, at most twice, and that of 16,384 names, and
// of files that are open. What was read of a file that has gone can be had from the store, and the
// rest while the source has it; after that it is ESTALE, and a line in the log.
//
// # Asking ahead
//
// A snapshot says what comes after what, so a view sees when a program reads a
// tree from one end to the other, and asks an [Anticipator] for what will be
// next: for the directories in one that is listed; for those that a walk will
// reach, which it loads (type walk); and for the small files after one that was
// opened (type run). In the plain view the first READ is the sign of an open, in
// Layers the lookup at the gate. The windows grow with use, so that a guess that
// was wrong costs little, and a path that is looked up starts none.
//
// # Waiting
//
// Whatever may wait has a deadline, and ends at once when the process that waits
// is killed. A signal which that process handles does not interrupt it, as it
// would not on a disk. One fetch serves all who wait for it and ends when the
// last of them gives up. What fails is a line in the log with the path and the
// cause, and an errno by the table in errno.go.
//
// # Limits
//
// A process must not execute a program from a view, or touch memory that it has
// mapped from one, if it serves that view itself: it would wait for an answer
// that it can't give. Reading and writing are no danger. A character device 0:0
// in the tree is a deletion to overlayfs. With Layers, a file that was streamed
// goes on to be served by the view until the kernel drops its name, also when the
// blob has arrived; another view finds the blob.
package fs
