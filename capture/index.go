package capture

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

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
	Identity Identity        // of a file
	Secret   bool            // only in because the service read it: a private key, a password file
	Modified bool            // a file that is not what its package shipped
	Frozen   bool            // the library has a copy of the file as of the snapshot's moment

	gone bool // in an index that lies on another: that one's entry is not there
}

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
//	                is the same there is not repeated. Only in the second format
//	reasons         count, then class and text of each; entries refer to them
//	entries         count, then each, sorted by path:
//	                  length of the prefix shared with the path before, the rest,
//	                  type, flags, count and numbers of its reasons,
//	                  and of a file: size, digest, dev, ino, mtime, ctime
//	checksum        SHA-256 of all before it
//
// Numbers are varints. The checksum is there for a damaged disk: digests verify
// content, but nothing else verifies where it is said to be.
const (
	indexMagic = "srvfs index 1\n"
	deltaMagic = "srvfs index 2\n"
)

const (
	maxIndex      = 4 << 30
	maxReasonText = 8 << 10
	maxAllReasons = 4 << 20
)

const (
	flagSecret = 1 << iota
	flagModified
	flagFrozen
	flagGone // nothing follows: no type, and no reasons
)

// index is a decoded index; entries are decoded one by one as they are asked for.
type index struct {
	root    string
	base    uint64 // 0: it is whole
	reasons []Reason
	count   int
	body    []byte

	once  sync.Once
	marks []indexMark // see mark
	err   error
}

// An indexMark is a place from which entries can be decoded.
type indexMark struct {
	path   string // of the entry there
	before string // of the one before it
	off    int    // in body
	number int
}

// markEvery is how many entries lie between two marks.
const markEvery = 256

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
	b := appendString([]byte(indexMagic), root)
	if base != 0 {
		b = binary.AppendUvarint(appendString([]byte(deltaMagic), root), base)
	}
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

// decodeIndex reads the head of what indexWriter wrote. The error wraps
// [manifest.ErrInvalid], or [manifest.ErrCorrupt] when the checksum is wrong.
func decodeIndex(b []byte) (*index, error) {
	if len(b) < len(indexMagic)+sha256.Size || len(b) > maxIndex {
		return nil, fmt.Errorf("index of %d bytes: not an index, or of a format that this version does not know: %w", len(b), manifest.ErrInvalid)
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, fmt.Errorf("index: damaged: %w", manifest.ErrCorrupt)
	}
	return decodeIndexBody(body)
}

func decodeIndexBody(body []byte) (*index, error) {
	r := indexReader{b: body}
	x := &index{}
	x.root, x.base = r.head()
	n := r.uint()
	if n > maxAllReasons || n*2 > uint64(len(r.b)) {
		r.fail("%d reasons", n)
		n = 0
	}
	x.reasons = make([]Reason, 0, n)
	for range n {
		reason := Reason{Class: Class(r.byte()), Text: r.string(maxReasonText)}
		if !reason.Class.valid() {
			r.fail("%v", reason.Class)
		}
		if r.err != nil {
			break
		}
		x.reasons = append(x.reasons, reason)
	}
	count := r.uint()
	if count*6 > uint64(len(r.b)) || count > 1<<40 {
		r.fail("%d entries", count)
	}
	if r.err != nil {
		return nil, r.err
	}
	x.count, x.body = int(count), r.b
	return x, nil
}

// head reads what stands before the reasons.
func (r *indexReader) head() (root string, base uint64) {
	magic := string(r.take(len(indexMagic)))
	if magic != indexMagic && magic != deltaMagic {
		r.fail("not an index, or of a format that this version does not know")
	}
	root = r.string(manifest.MaxPath)
	if magic == deltaMagic {
		if base = r.uint(); base == 0 {
			r.fail("it lies on no other")
		}
	}
	return root, base
}

// entries yields the entries in the order of their paths, of one that lies on
// another also those that are gone. It ends with an error that wraps [manifest.ErrInvalid] if the index is malformed.
func (x *index) entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		r := indexReader{b: x.body}
		var path []byte
		for i := range x.count {
			e := x.entry(&r, &path, i == 0)
			if r.err != nil {
				yield(Entry{}, r.err)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		if len(r.b) > 0 {
			r.fail("%d bytes too many", len(r.b))
			yield(Entry{}, r.err)
		}
	}
}

// mark finds the marks: all that is ever read of an index as a whole to find something.
func (x *index) mark() error {
	x.once.Do(func() {
		r := indexReader{b: x.body}
		var path []byte
		for i := range x.count {
			off, before := len(x.body)-len(r.b), string(path)
			e := x.entry(&r, &path, i == 0)
			if x.err = r.err; x.err != nil {
				return
			}
			if i%markEvery == 0 {
				x.marks = append(x.marks, indexMark{e.Path, before, off, i})
			}
		}
	})
	return x.err
}

// from yields the entries from the path p on, whether there is one of that path or not.
func (x *index) from(p string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := x.mark(); err != nil {
			yield(Entry{}, err)
			return
		}
		i, ok := slices.BinarySearchFunc(x.marks, p, func(m indexMark, p string) int { return strings.Compare(m.path, p) })
		if !ok {
			i--
		}
		m := indexMark{}
		if i >= 0 {
			m = x.marks[i]
		}
		r := indexReader{b: x.body[m.off:]}
		path := []byte(m.before)
		for n := m.number; n < x.count; n++ {
			e := x.entry(&r, &path, n == 0)
			if r.err != nil {
				yield(Entry{}, r.err)
				return
			}
			if e.Path >= p && !yield(e, nil) {
				return
			}
		}
	}
}

// entry decodes one entry; path holds the path before it and is replaced.
func (x *index) entry(r *indexReader, path *[]byte, first bool) Entry {
	var e Entry
	shared := r.uint()
	rest := r.string(manifest.MaxPath)
	if shared > uint64(len(*path)) {
		r.fail("shares %d bytes with a path of %d", shared, len(*path))
		return e
	}
	before := string(*path)
	*path = append((*path)[:shared], rest...)
	e.Path = string(*path)
	if !manifest.ValidPath(e.Path) || !first && e.Path <= before {
		r.fail("path %.300q after %.300q", e.Path, before)
	}
	e.Type = manifest.Type(r.byte())
	flags := r.byte()
	if x.base != 0 && flags == flagGone && e.Type == 0 && r.uint() == 0 {
		e.gone = true
		return e
	}
	if e.Type < manifest.File || e.Type > manifest.FIFO {
		r.fail("%v", e.Type)
	}
	if flags&^(flagSecret|flagModified|flagFrozen) != 0 {
		r.fail("flags %#x", flags)
	}
	e.Secret, e.Modified, e.Frozen = flags&flagSecret != 0, flags&flagModified != 0, flags&flagFrozen != 0
	n := r.uint()
	if n == 0 || n > 64 {
		r.fail("%d reasons", n)
	}
	if r.err != nil {
		return e
	}
	e.Reasons = make([]Reason, n)
	for i := range e.Reasons {
		k := r.uint()
		if k >= uint64(len(x.reasons)) {
			r.fail("reason %d of %d", k, len(x.reasons))
			return e
		}
		e.Reasons[i] = x.reasons[k]
	}
	if e.Type == manifest.File {
		e.Size = int64(r.uint())
		if e.Size < 0 {
			r.fail("size %d", e.Size)
		}
		copy(e.Digest[:], r.take(manifest.DigestSize))
		e.Identity = Identity{Dev: r.uint(), Ino: r.uint(), Size: e.Size, Mtime: r.int(), Ctime: r.int()}
	}
	return e
}

// An indexReader decodes primitives. The first failure sticks.
type indexReader struct {
	b   []byte
	err error
}

func (r *indexReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("index: %s: %w", fmt.Sprintf(format, args...), manifest.ErrInvalid)
	}
	r.b = nil
}

func (r *indexReader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("bad varint")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *indexReader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail("bad varint")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *indexReader) take(n int) []byte {
	if n > len(r.b) {
		r.fail("cut short")
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *indexReader) byte() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *indexReader) string(limit uint64) string {
	n := r.uint()
	if n > limit {
		r.fail("%d bytes exceed %d", n, limit)
		return ""
	}
	return string(r.take(int(n)))
}
