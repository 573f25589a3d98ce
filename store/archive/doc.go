// Package archive writes snapshots into archives that other tools understand, and
// reads them as an origin.
//
// An archive is an OCI image: podman runs it, skopeo copies it, umoci unpacks it, and
// its layers are tar files compressed with zstd. It lies in a folder, in a tar file, or
// in a registry. Beside each image stands an artefact of ours, an OCI manifest whose
// subject is the image, with what a standby needs to mount it: the snapshot, its
// directory pages, and an index that says where in the layers each content lies. So a
// mount reads a few ranges, and no layer as a whole.
//
// # Layers
//
// The first export writes the whole tree into one layer. A later one to the same place
// adds a layer with what has changed, and whiteouts for what has gone; blobs that are
// there are never written again, so each earlier snapshot can still be had. Each 256 KiB
// of a file (a manifest chunk) is a zstd frame of its own: a range of a large file
// costs the frames that it touches. This is also what zstd:chunked asks for, whose table
// of contents stands at the end of the layer, and lets podman fetch the files it needs.
//
// # The artefact
//
//	config     application/vnd.srvfs.snapshot.config.v1+json: service, number, history
//	layers[0]  application/vnd.srvfs.snapshot.v1+zstd: the encoded snapshot
//	then       for each export that the image consists of, an index and a pack
//
// A pack holds directory pages, chunk lists and orders, many to a frame, and an index
// maps digests to places in packs and layers. See docs/formats.md.
//
// # Trust
//
// Whatever an archive says is verified: manifests, the snapshot and indices by the
// digests that lead to them, metadata by its own digest. File content is verified by
// whoever asks for it, as of any origin. All lengths are bounded before memory is
// allocated for them.
//
// # Limits
//
// OCI layers know no part of a file: one changed byte in a large file brings the whole of it
// into the next layer. A name that begins with ".wh." is a whiteout there, and such a
// tree is refused. An extended attribute without a value is in the snapshot, but tools that
// unpack the image may leave it out: in a tar file no value means no attribute. More than 120 layers are refused too, since overlayfs would; write a
// compact archive then, which holds the newest snapshot alone.
package archive
