package capture

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// An Identity is what stat says of a live file. Two equal ones, taken at two
// moments, mean that the file's bytes have not changed in between. Times are
// nanoseconds since 1970; of years beyond 2262 they wrap, which still compares.
type Identity = statcache.Key

// An Entry is one path of a snapshot: what `srvd show` lists.
type Entry struct {
	Path     string
	Type     manifest.Type
	Reasons  []Reason        // sorted by class; never empty
	Size     int64           // of a file, in bytes
	Digest   manifest.Digest // of a file's bytes
	Identity Identity        // of a file; of others what an index of an early version does not say, and no Size
	Secret   bool            // only in because the service read it: a private key, a password file
	Modified bool            // a file that is not what its package shipped
	Frozen   bool            // the library has a copy of the file as of the snapshot's moment

	gone bool // in an index that lies on another: that one's entry is not there
	// racy: it may have changed since it was looked at although its Identity is what it
	// was, because it had changed just before; or it is a folder, of which the names were
	// not compared with what the snapshot has.
	racy bool
}

// equal reports whether both say the same, however sure they are of it: an identity that
// was safe once is so for ever.
func (e *Entry) equal(o *Entry) bool {
	return e.Path == o.Path && e.Type == o.Type && e.Size == o.Size && e.Digest == o.Digest && e.Identity == o.Identity &&
		e.Secret == o.Secret && e.Modified == o.Modified && e.Frozen == o.Frozen && slices.Equal(e.Reasons, o.Reasons)
}

// Class returns the class under which the entry is shown.
func (e *Entry) Class() Class { return e.Reasons[0].Class }

// The index of a snapshot says of each path why it is in, and of each file
// where its bytes are. Its encoding:
//
//	magic
//	root            the folder on the source that is the snapshot's "/"
//	base            the sequence number of the snapshot that this one lies on: what
//	                is the same there is not repeated; 0 if it is whole. The first
//	                format has none, the second no 0
//	reasons         count, then class and text of each; entries refer to them
//	entries         count, then each, sorted by path:
//	                  length of the prefix shared with the path before, the rest,
//	                  type, flags, count and numbers of its reasons,
//	                  of a file: size and digest,
//	                  dev, ino, mtime, ctime: in the first two formats only of a file
//	checksum        SHA-256 of all before it
//
// Numbers are varints. The checksum is there for a damaged disk: digests verify
// content, but nothing else verifies where it is said to be.
const (
	indexMagic  = "srvfs index 3\n"
	deltaMagic2 = "srvfs index 2\n"
	indexMagic1 = "srvfs index 1\n"
)

const (
	maxIndex      = 4 << 30
	maxReasonText = 8 << 10
	maxAllReasons = 4 << 20
	mostReasons   = 64 // of one entry
)

const (
	flagSecret = 1 << iota
	flagModified
	flagFrozen
	flagGone // nothing follows: no type, and no reasons
	flagRacy // from the third format on
)

// indexWriter encodes an index. Entries must come in the order of their paths.
type indexWriter struct {
	numbers map[Reason]uint64
	reasons []byte
	body    []byte
	count   uint64
	last    string
}

func (w *indexWriter) add(e *Entry) error {
	if len(e.Reasons) == 0 && !e.gone {
		return fmt.Errorf("index: %q has no reason", e.Path)
	}
	if w.count > 0 && e.Path <= w.last {
		return fmt.Errorf("index: %q after %q", e.Path, w.last)
	}
	if w.numbers == nil {
		w.numbers = make(map[Reason]uint64)
	}
	shared := 0
	for shared < len(w.last) && shared < len(e.Path) && w.last[shared] == e.Path[shared] {
		shared++
	}
	b := binary.AppendUvarint(w.body, uint64(shared))
	b = appendString(b, e.Path[shared:])
	flags := byte(0)
	if e.Secret {
		flags |= flagSecret
	}
	if e.Modified {
		flags |= flagModified
	}
	if e.Frozen {
		flags |= flagFrozen
	}
	if e.racy {
		flags |= flagRacy
	}
	if e.gone {
		flags = flagGone
	}
	b = append(b, byte(e.Type), flags)
	b = binary.AppendUvarint(b, uint64(len(e.Reasons)))
	for _, r := range e.Reasons {
		if len(r.Text) > maxReasonText {
			r.Text = r.Text[:maxReasonText]
		}
		n, ok := w.numbers[r]
		if !ok {
			n = uint64(len(w.numbers))
			w.numbers[r] = n
			w.reasons = appendString(append(w.reasons, byte(r.Class)), r.Text)
		}
		b = binary.AppendUvarint(b, n)
	}
	if e.Type == manifest.File {
		b = binary.AppendUvarint(b, uint64(e.Size))
		b = append(b, e.Digest[:]...)
	}
	if !e.gone {
		b = binary.AppendUvarint(b, e.Identity.Dev)
		b = binary.AppendUvarint(b, e.Identity.Ino)
		b = binary.AppendVarint(b, e.Identity.Mtime)
		b = binary.AppendVarint(b, e.Identity.Ctime)
	}
	w.body, w.last = b, e.Path
	w.count++
	return nil
}

// finish returns the encoded index, which lies on that of the snapshot base, or is
// whole if that is 0.
func (w *indexWriter) finish(root string, base uint64) []byte {
	b := binary.AppendUvarint(appendString([]byte(indexMagic), root), base)
	b = binary.AppendUvarint(b, uint64(len(w.numbers)))
	b = append(b, w.reasons...)
	b = binary.AppendUvarint(b, w.count)
	b = append(b, w.body...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}
