// Package statcache remembers which digest a file had when it was last read,
// so that nobody hashes an unchanged file twice. It is a persistent map
//
//	(device, inode, size, mtime, ctime) -> (digest, chunk list digest)
//
// The source uses it when it captures again, the standby when it looks for
// identical files of its own, and the store to know its blobs unchanged.
//
// # When a stat proves that bytes are the same
//
// Every write sets mtime and ctime to the kernel's present time, which moves in
// steps of up to 10 ms. A file whose time lies before the moment at which its
// hashing began, by more than such a step, can't be written again without the
// time changing. A file that was changed less than [Window] before it was
// hashed could: its entry is called racy and is not recorded (git's index has
// the same rule). Whoever knows that nobody else writes to the file, or that
// its mtime lies safely in the past, says so with [Cache.PutTrusted].
//
// # The file
//
// One file of records of fixed length, each with a checksum (CRC-32C), the
// first of them the format's name. New records are appended, each whole in
// one write; the newest for an inode counts. A record that is damaged is skipped, a
// tail that is torn is cut off. It is a cache: what is lost is hashed again,
// and so nothing is flushed to disk. A file of another format is replaced.
//
// Several processes, and several Caches in one, may use one file. Each sees
// its own entries at once and those of the others when it opens the file or
// compacts it. Writers hold a shared flock while they append; whoever compacts
// holds an exclusive one and renames a new file over the old.
package statcache
