package archive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"srvfs/manifest"
)

// A place says where a content lies: in a layer, in frames of frameSize one after the
// other, or in a pack, within one frame.
type place struct {
	blob   int   // its number in the index's table of blobs
	size   int64 // of the content
	off    int64 // of the first frame in the blob
	frames []int64
	// Of a pack: how much its frame holds, and where in it the content begins.
	raw, inner int64
}

// A blobRef names a blob that places are in.
type blobRef struct {
	digest manifest.Digest
	size   int64
	pack   bool
}

// indexMagic begins every index.
const indexMagic = "srvfs index 1\n"

// Limits. A group of places is what a lookup fetches; groupSize is the length at which
// one is closed, and maxGroup what the places of one huge file may make of it.
const (
	groupPlaces = 1024
	groupSize   = 64 << 10
	maxGroup    = 16 << 20
	maxGroups   = 1 << 18
	maxBlobs    = 16
	maxHead     = 32 << 20
)

// A group is a compressed run of places in the order of their digests.
type group struct {
	first  manifest.Digest
	off    int64 // in the index
	length int64 // of the frame
	raw    int64
	digest manifest.Digest // of the frame
}

// A located is one place and whose it is.
type located struct {
	digest manifest.Digest
	place
}

// encodeIndex returns the index of these places, and its head's length.
//
//	index  = magic, head, frame*
//	head   = count, blob*, count, group*
//	blob   = digest, size, 0 layer or 1 pack
//	group  = first digest, length of the frame, length of what it holds, its digest
//	frame  = zstd(count, place*)           sorted by digest
//	place  = digest, number of the blob, size, offset,
//	         of a layer: the length of each frame
//	         of a pack: length of the frame, of what it holds, offset in that
func encodeIndex(blobs []blobRef, places map[manifest.Digest]place) (b []byte, head int64, err error) {
	var groups []group
	var frames, body []byte
	var first manifest.Digest
	n := 0
	end := func() error {
		if n == 0 {
			return nil
		}
		raw := append(binary.AppendUvarint(nil, uint64(n)), body...)
		if len(raw) > maxGroup || len(groups) == maxGroups {
			return fmt.Errorf("index: too much to be in one: %w", manifest.ErrInvalid)
		}
		start := len(frames)
		if frames, err = compress(frames, raw); err != nil {
			return err
		}
		groups = append(groups, group{first: first, length: int64(len(frames) - start), raw: int64(len(raw)), digest: manifest.Sum(frames[start:])})
		body, n = body[:0], 0
		return nil
	}
	digests := slices.SortedFunc(maps.Keys(places), func(a, b manifest.Digest) int { return bytes.Compare(a[:], b[:]) })
	for _, d := range digests {
		p := places[d]
		if n == 0 {
			first = d
		}
		body = append(body, d[:]...)
		for _, v := range []int64{int64(p.blob), p.size, p.off} {
			body = binary.AppendUvarint(body, uint64(v))
		}
		for _, f := range p.frames {
			body = binary.AppendUvarint(body, uint64(f))
		}
		if blobs[p.blob].pack {
			body = binary.AppendUvarint(body, uint64(p.raw))
			body = binary.AppendUvarint(body, uint64(p.inner))
		}
		if n++; n == groupPlaces || len(body) >= groupSize {
			if err := end(); err != nil {
				return nil, 0, err
			}
		}
	}
	if err := end(); err != nil {
		return nil, 0, err
	}
	b = append(b, indexMagic...)
	b = binary.AppendUvarint(b, uint64(len(blobs)))
	for _, r := range blobs {
		b = append(b, r.digest[:]...)
		b = binary.AppendUvarint(b, uint64(r.size))
		if r.pack {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(groups)))
	for _, g := range groups {
		b = append(b, g.first[:]...)
		b = binary.AppendUvarint(b, uint64(g.length))
		b = binary.AppendUvarint(b, uint64(g.raw))
		b = append(b, g.digest[:]...)
	}
	return append(b, frames...), int64(len(b)), nil
}

// decodeHead reads the head of an index of size bytes. The error wraps ErrCorrupt.
func decodeHead(b []byte, size int64) (blobs []blobRef, groups []group, err error) {
	r := parser{what: "index", b: b}
	if string(r.take(len(indexMagic))) != indexMagic {
		r.fail("not one, or of a format that this version does not know")
	}
	for range r.count(maxBlobs, manifest.DigestSize+2) {
		ref := blobRef{digest: r.digest(), size: r.number(1 << 62)}
		switch kind := r.take(1); {
		case r.err != nil:
		case kind[0] > 1:
			r.fail("blob of kind %d", kind[0])
		default:
			ref.pack = kind[0] == 1
		}
		blobs = append(blobs, ref)
	}
	at := int64(len(b))
	for i := range r.count(maxGroups, 2*manifest.DigestSize+2) {
		g := group{first: r.digest(), off: at, length: r.number(compressed(maxGroup)), raw: r.number(maxGroup), digest: r.digest()}
		if i > 0 && bytes.Compare(g.first[:], groups[i-1].first[:]) <= 0 {
			r.fail("groups are not in order")
		}
		at += g.length
		groups = append(groups, g)
	}
	if r.err == nil && at != size {
		r.fail("%d bytes, not the %d that it has", at, size)
	}
	return blobs, groups, r.end()
}

// decodeGroup reads the places of a group. The error wraps ErrCorrupt.
func decodeGroup(b []byte, blobs []blobRef) ([]located, error) {
	r := parser{what: "index", b: b}
	n := r.count(maxGroup, manifest.DigestSize+4)
	all := make([]located, 0, n)
	for i := range n {
		l := located{digest: r.digest(), place: place{blob: int(r.number(maxBlobs)), size: r.number(1 << 62), off: r.number(1 << 62)}}
		if i > 0 && bytes.Compare(l.digest[:], all[i-1].digest[:]) <= 0 {
			r.fail("places are not in order")
		}
		if l.blob >= len(blobs) {
			r.fail("place in blob %d of %d", l.blob, len(blobs))
		}
		if r.err != nil {
			break
		}
		in := blobs[l.blob]
		end := l.off
		if in.pack {
			l.frames = []int64{r.number(compressed(maxFrame))}
			l.raw, l.inner = r.number(maxFrame), r.number(maxFrame)
			if l.size > manifest.MaxMeta || l.inner+l.size > l.raw {
				r.fail("%d bytes at %d of %d", l.size, l.inner, l.raw)
			}
			end += l.frames[0]
		} else {
			count := manifest.Chunks(l.size)
			if count == 0 || count > int64(len(r.b)) {
				r.fail("a file of %d bytes in too few frames", l.size)
				break
			}
			l.frames = make([]int64, count)
			for k := range l.frames {
				l.frames[k] = r.number(compressed(frameSize))
				end += l.frames[k]
			}
		}
		if end > in.size {
			r.fail("a place beyond the end of its blob")
		}
		all = append(all, l)
	}
	return all, r.end()
}

// find returns the place of d among those of a group.
func find(all []located, d manifest.Digest) (place, bool) {
	i, ok := slices.BinarySearchFunc(all, d, func(l located, d manifest.Digest) int { return bytes.Compare(l.digest[:], d[:]) })
	if !ok {
		return place{}, false
	}
	return all[i].place, true
}

// A parser reads numbers and digests. The first failure sticks.
type parser struct {
	what string
	b    []byte
	err  error
}

func (r *parser) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%s: %s: %w", r.what, fmt.Sprintf(format, args...), manifest.ErrCorrupt)
	}
	r.b = nil
}

func (r *parser) take(n int) []byte {
	if n > len(r.b) {
		r.fail("cut short")
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *parser) digest() (d manifest.Digest) {
	copy(d[:], r.take(manifest.DigestSize))
	return d
}

// number reads one that is at most limit.
func (r *parser) number(limit int64) int64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 || v > uint64(limit) {
		r.fail("bad number")
		return 0
	}
	r.b = r.b[n:]
	return int64(v)
}

// count reads the length of a list whose elements take min bytes each at least.
func (r *parser) count(limit, min int) int {
	n := int(r.number(int64(limit)))
	if n*min > len(r.b) {
		r.fail("%d elements in %d bytes", n, len(r.b))
		return 0
	}
	return n
}

func (r *parser) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes too many", len(r.b))
	}
	return r.err
}
