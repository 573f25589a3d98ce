// Package manifest says what a service is made of. It holds the nouns that
// every other package speaks in, their one canonical encoding, the sentinel
// errors, and the [Origin] interface at which live files, wire, store, archive
// and host meet. It imports no other package of this project.
//
// # The tree
//
// A snapshot is a Merkle tree, as in git or OSTree. A regular file is named by
// the SHA-256 of its bytes, the number that sha256sum prints. A directory is
// the sorted list of its entries; encoded, that list is content like any
// other, with a digest of its own. So the digest of the root directory names
// and verifies every name, attribute and byte below it, a directory can be
// fetched when it is first looked up, and two trees are compared without
// visiting what they share.
//
// # Pages
//
// A mail queue may hold 100,000 names, and one new message must not cause all
// of them to be sent again. A directory is therefore cut into pages, and the
// cuts are chosen by the names themselves (see [EncodeDirectory]): one changed
// name changes the page that it stands in and the index pages above it.
//
// # Chunks
//
// A file larger than [ChunkSize] also has a chunk list, the digests of its
// fixed-size pieces, so that a range of it can be fetched and verified alone.
// The chunk list is content too, named by [Entry.Chunks].
//
// # Trust
//
// Whatever is decoded here may come from a hostile peer or a damaged disk.
// Decoders have size limits, accept exactly the bytes that the encoder would
// have written, and refuse names that could lead out of the tree.
package manifest
