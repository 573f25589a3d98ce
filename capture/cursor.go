package capture

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"

	"srvfs/manifest"
)

// An index is one that can be read. Of the entries, which may be millions, nothing is
// kept in memory: they are read, and decoded, when they are asked for.
type index struct {
	root     string
	base     uint64 // 0: it is whole
	version  int
	reasons  []Reason
	count    int
	src      io.ReaderAt
	off, end int64 // of the entries, in src

	once  sync.Once
	marks []indexMark // see mark
	err   error
}

// An indexMark is a place from which entries can be decoded.
type indexMark struct {
	path   string // of the entry there
	off    int64  // in src, of what follows its path
	number int
}

// markEvery is how many entries lie between two marks.
const markEvery = 64

// size returns the bytes of all entries.
func (x *index) size() int64 { return x.end - x.off }

// openIndex opens a file that holds what an indexWriter wrote, which stays open for as
// long as the index is used. The error wraps [manifest.ErrInvalid], or
// [manifest.ErrCorrupt] when the checksum is wrong.
func openIndex(name string) (*index, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	var x *index
	if err == nil {
		x, err = readIndex(f, info.Size())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return x, nil
}

// decodeIndex is openIndex for one in memory.
func decodeIndex(b []byte) (*index, error) { return readIndex(bytes.NewReader(b), int64(len(b))) }

func readIndex(src io.ReaderAt, size int64) (*index, error) {
	if size < int64(len(indexMagic)+sha256.Size) || size > maxIndex {
		return nil, fmt.Errorf("index of %d bytes: not an index, or of a format that this version does not know: %w", size, manifest.ErrInvalid)
	}
	end := size - sha256.Size
	h := sha256.New()
	if _, err := io.CopyBuffer(h, io.NewSectionReader(src, 0, end), make([]byte, 1<<18)); err != nil {
		return nil, err
	}
	var sum [sha256.Size]byte
	if _, err := src.ReadAt(sum[:], end); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if !bytes.Equal(h.Sum(nil), sum[:]) {
		return nil, fmt.Errorf("index: damaged: %w", manifest.ErrCorrupt)
	}
	return readIndexHead(src, end)
}

// readIndexHead reads what stands before the entries.
func readIndexHead(src io.ReaderAt, end int64) (*index, error) {
	for size := int64(64 << 10); ; size *= 8 {
		b := make([]byte, min(size, end))
		if n, err := src.ReadAt(b, 0); n < len(b) {
			return nil, errors.Join(io.ErrUnexpectedEOF, err)
		}
		r := indexReader{b: b}
		x := &index{src: src, end: end}
		x.readHead(&r)
		if r.err == nil {
			x.off = int64(len(b) - len(r.b))
			if uint64(x.count)*6 <= uint64(x.size()) {
				return x, nil
			}
			r.fail("%d entries", x.count)
		}
		if size >= end || size > maxAllReasons*8 {
			return nil, r.err
		}
	}
}

func (x *index) readHead(r *indexReader) {
	x.version, x.root, x.base = r.head()
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
			return
		}
		x.reasons = append(x.reasons, reason)
	}
	count := r.uint()
	if count > 1<<40 {
		r.fail("%d entries", count)
		return
	}
	x.count = int(count)
}

// head reads what stands before the reasons.
func (r *indexReader) head() (version int, root string, base uint64) {
	switch string(r.take(len(indexMagic))) {
	case indexMagic1:
		version = 1
	case deltaMagic2:
		version = 2
	case indexMagic:
		version = 3
	default:
		r.fail("not an index, or of a format that this version does not know")
	}
	root = r.string(manifest.MaxPath)
	if version > 1 {
		if base = r.uint(); base == 0 && version == 2 {
			r.fail("it lies on no other")
		}
	}
	return version, root, base
}

// entries yields the entries in the order of their paths, of one that lies on
// another also those that are gone. It ends with an error that wraps [manifest.ErrInvalid] if the index is malformed.
func (x *index) entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		c := x.start()
		for c.next() {
			if e, err := c.entry(); !yield(e, err) || err != nil {
				return
			}
		}
		if c.err != nil {
			yield(Entry{}, c.err)
		}
	}
}

// mark finds the marks: all that is ever read of an index as a whole to find something.
func (x *index) mark() error {
	x.once.Do(func() {
		c := x.start()
		for c.next() {
			if c.number%markEvery == 0 {
				x.marks = append(x.marks, indexMark{string(c.path), c.after, c.number})
			}
		}
		x.marks, x.err = slices.Clip(x.marks), c.err
	})
	return x.err
}

// seek returns a cursor at the first entry whose path is p or comes after it.
func (x *index) seek(p string) *cursor {
	c := x.start()
	if c.err = x.mark(); c.err != nil {
		return c
	}
	i, ok := slices.BinarySearchFunc(x.marks, p, func(m indexMark, p string) int { return strings.Compare(m.path, p) })
	if !ok {
		i--
	}
	if i >= 0 {
		c = x.at(i)
	}
	for c.next() && string(c.path) < p {
	}
	return c
}

// start returns a cursor before the first entry.
func (x *index) start() *cursor { return &cursor{x: x, off: x.off, ahead: windowMost, number: -1} }

// at returns a cursor before the entry of a mark.
func (x *index) at(mark int) *cursor {
	m := &x.marks[mark]
	return &cursor{x: x, off: m.off, ahead: windowFirst, number: m.number - 1, path: []byte(m.path), atMark: true}
}

const (
	// A cursor reads windowFirst bytes first if it looks something up, and windowMost in the end.
	windowFirst = 8 << 10
	windowMost  = 128 << 10
	// entryMost is more than an entry takes.
	entryMost = manifest.MaxPath + 16*binary.MaxVarintLen64 + mostReasons*binary.MaxVarintLen64 + manifest.DigestSize
)

// A cursor stands at one entry of an index. What it says of it, slices included, holds
// until it is moved. It makes no garbage.
type cursor struct {
	x      *index
	off    int64 // in the index's source, of what follows the window
	window []byte
	ahead  int // how much is read next
	r      indexReader
	ok     bool // it stands at an entry
	atMark bool // the path is known, and what follows it comes next
	err    error

	number  int
	after   int64 // in the index's source, of what follows the path
	path    []byte
	kind    manifest.Type
	flags   byte
	reasons int
	numbers []byte // of the reasons, as they are encoded
	digest  []byte // of a file
	id      Identity
}

// gone reports whether the entry says that something is not there.
func (c *cursor) gone() bool { return c.flags == flagGone }

// racy: see Entry.racy. Of what an early version wrote nothing is known.
func (c *cursor) racy() bool { return c.flags&flagRacy != 0 || c.x.version < 3 }

// next moves to the next entry. It returns false at the end, or with an error.
func (c *cursor) next() bool {
	c.ok = false
	if c.err != nil {
		return false
	}
	if c.number++; c.number >= c.x.count {
		if left := c.x.end - c.off + int64(len(c.r.b)); left > 0 && c.number == c.x.count {
			c.r.fail("%d bytes too many", left)
		}
		c.err = c.r.err
		return false
	}
	if len(c.r.b) < entryMost && c.off < c.x.end {
		if c.err = c.fill(); c.err != nil {
			return false
		}
	}
	c.decode()
	c.err = c.r.err
	c.ok = c.err == nil
	return c.ok
}

// fill reads on.
func (c *cursor) fill() error {
	size := max(c.ahead, 2*entryMost)
	if c.ahead = min(2*c.ahead, windowMost); cap(c.window) < size {
		c.window = append(make([]byte, 0, size), c.r.b...)
	} else {
		c.window = append(c.window[:0], c.r.b...) // copies to the front
	}
	have := len(c.window)
	c.window = c.window[:min(int64(size), int64(have)+c.x.end-c.off)]
	if n, err := c.x.src.ReadAt(c.window[have:], c.off); n < len(c.window)-have {
		return fmt.Errorf("index: %w", errors.Join(io.ErrUnexpectedEOF, err))
	}
	c.off += int64(len(c.window) - have)
	c.r.b = c.window
	return nil
}

func (c *cursor) decode() {
	r := &c.r
	if c.atMark {
		c.atMark = false
	} else {
		shared, n := r.uint(), r.uint()
		if shared > uint64(len(c.path)) || n > manifest.MaxPath || shared+n >= manifest.MaxPath {
			r.fail("shares %d bytes with a path of %d, and has %d more", shared, len(c.path), n)
			return
		}
		rest := r.take(int(n))
		if c.number > 0 && bytes.Compare(rest, c.path[shared:]) <= 0 {
			r.fail("path %.300q after %.300q", rest, c.path[shared:])
			return
		}
		if c.path = append(c.path[:shared], rest...); len(c.path) < 2 || c.path[0] != '/' {
			r.fail("path %.300q", c.path)
			return
		}
	}
	c.after = c.off - int64(len(r.b))
	c.kind, c.flags = manifest.Type(r.byte()), r.byte()
	n := r.uint()
	c.digest, c.numbers, c.reasons, c.id = nil, nil, int(n), Identity{}
	if c.x.base != 0 && c.flags == flagGone && c.kind == 0 && n == 0 {
		return
	}
	known := byte(flagSecret | flagModified | flagFrozen)
	if c.x.version >= 3 {
		known |= flagRacy
	}
	if c.kind < manifest.File || c.kind > manifest.FIFO || c.flags&^known != 0 || n == 0 || n > mostReasons {
		r.fail("%v, flags %#x, %d reasons", c.kind, c.flags, n)
		return
	}
	numbers := r.b
	for range n {
		if k := r.uint(); k >= uint64(len(c.x.reasons)) {
			r.fail("reason %d of %d", k, len(c.x.reasons))
			return
		}
	}
	c.numbers = numbers[:len(numbers)-len(r.b)]
	if c.kind == manifest.File {
		if c.id.Size = int64(r.uint()); c.id.Size < 0 {
			r.fail("size %d", c.id.Size)
		}
		c.digest = r.take(manifest.DigestSize)
	}
	if c.kind == manifest.File || c.x.version >= 3 {
		c.id.Dev, c.id.Ino, c.id.Mtime, c.id.Ctime = r.uint(), r.uint(), r.int(), r.int()
	}
}

// entry returns what the cursor says, for good.
func (c *cursor) entry() (Entry, error) {
	e := Entry{
		Path: string(c.path), Type: c.kind, Size: c.id.Size, Identity: c.id,
		Secret: c.flags&flagSecret != 0, Modified: c.flags&flagModified != 0, Frozen: c.flags&flagFrozen != 0,
	}
	if !manifest.ValidPath(e.Path) {
		return Entry{}, fmt.Errorf("index: path %.300q: %w", e.Path, manifest.ErrInvalid)
	}
	if c.gone() {
		return Entry{Path: e.Path, gone: true}, nil
	}
	e.racy = c.racy()
	copy(e.Digest[:], c.digest)
	e.Reasons = make([]Reason, c.reasons)
	r := indexReader{b: c.numbers}
	for i := range e.Reasons {
		e.Reasons[i] = c.x.reasons[r.uint()]
	}
	return e, r.err
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
