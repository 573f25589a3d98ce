package manifest

import (
	"encoding/binary"
	"fmt"
)

// An encoder appends the primitive parts of the canonical encoding: unsigned
// varints (LEB128, shortest form), zigzag varints, and length-prefixed bytes.
type encoder struct{ b []byte }

func (e *encoder) uint(v uint64)   { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)     { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) byte(v byte)     { e.b = append(e.b, v) }
func (e *encoder) digest(d Digest) { e.b = append(e.b, d[:]...) }
func (e *encoder) string(s string) { e.uint(uint64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) strings(ss []string) {
	e.uint(uint64(len(ss)))
	for _, s := range ss {
		e.string(s)
	}
}
func (e *encoder) bool(v bool) {
	if v {
		e.byte(1)
	} else {
		e.byte(0)
	}
}

// A decoder reads the same. The first failure sticks; later reads return
// zeros, so that callers check once, at the end or before they allocate.
type decoder struct {
	what string
	b    []byte
	err  error
	// text, if it is set, is all that there was to read: what string returns is
	// then a part of it, and keeps the whole of it alive.
	text string
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%s: %s: %w", d.what, fmt.Sprintf(format, args...), ErrInvalid)
	}
	d.b = nil
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 { // truncated, overlong, or not the shortest form
		d.fail("bad varint")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	u := d.uint()
	v := int64(u >> 1)
	if u&1 != 0 {
		v = ^v
	}
	return v
}

// upTo reads a number that may not exceed limit.
func (d *decoder) upTo(limit uint64, what string) uint64 {
	v := d.uint()
	if v > limit {
		d.fail("%s %d exceeds %d", what, v, limit)
		return 0
	}
	return v
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("cut short")
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) bool() bool {
	v := d.byte()
	if v > 1 {
		d.fail("boolean %d", v)
	}
	return v == 1
}

func (d *decoder) take(n int) []byte {
	if n > len(d.b) {
		d.fail("cut short")
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) digest() (v Digest) {
	copy(v[:], d.take(DigestSize))
	return v
}

func (d *decoder) string(limit int, what string) string {
	n := d.uint()
	if n > uint64(limit) {
		d.fail("%s length %d exceeds %d", what, n, limit)
	}
	if d.err != nil {
		return ""
	}
	v := d.take(int(n))
	if d.text == "" {
		return string(v)
	}
	end := len(d.text) - len(d.b)
	return d.text[end-len(v) : end]
}

// count reads the length of a list of which each element takes at least min
// bytes, so that a short message can't make us allocate a long list.
func (d *decoder) count(limit, min int, what string) int {
	n := d.uint()
	if n > uint64(limit) {
		d.fail("number of %s %d exceeds %d", what, n, limit)
		return 0
	}
	if d.err == nil && n*uint64(min) > uint64(len(d.b)) {
		d.fail("%d %s in %d bytes", n, what, len(d.b))
		return 0
	}
	return int(n)
}

func (d *decoder) strings(limit, each int, what string) []string {
	n := d.count(limit, 1, what)
	if n == 0 {
		return nil
	}
	ss := make([]string, n)
	for i := range ss {
		ss[i] = d.string(each, what)
	}
	return ss
}

// finish returns the first failure, or one if bytes are left over.
func (d *decoder) finish() error {
	if d.err == nil && len(d.b) != 0 {
		d.fail("%d bytes too many", len(d.b))
	}
	return d.err
}
