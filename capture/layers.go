package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"srvfs/manifest"
)

// A snapshot of a service is much like the one before. So what is kept of it, its
// index and its metadata, is a layer: what differs from an earlier snapshot, which it
// lies on, and that perhaps on another. A layer is at most half as large as the one
// below, so there are few of them: each snapshot finds by itself how far down it has
// to go for that. At the bottom is one that is whole.

// maxLayers bounds what is believed of a disk: 2 to its power would be the size of
// the one at the bottom.
const maxLayers = 48

// layered is the index of a snapshot: its own layer first.
type layered struct {
	root      string
	layers    []*index
	sequences []uint64
}

// layers reads the index of a snapshot with all that it lies on.
func (l *Library) layers(p Published) (*layered, error) {
	x := &layered{}
	for at := p; ; {
		one, err := l.index(at)
		if err != nil {
			return nil, err
		}
		x.layers, x.sequences = append(x.layers, one), append(x.sequences, at.Sequence)
		if one.base == 0 {
			x.root = x.layers[0].root
			return x, nil
		}
		if one.base >= at.Sequence || len(x.layers) == maxLayers {
			return nil, fmt.Errorf("snapshot %d of %s lies on %d: %w: capture the service again", at.Sequence, p.Service, one.base, manifest.ErrCorrupt)
		}
		at = Published{Service: p.Service, Sequence: one.base}
	}
}

// below returns all but the first n layers.
func (x *layered) below(n int) *layered {
	return &layered{root: x.root, layers: x.layers[n:], sequences: x.sequences[n:]}
}

// with returns the index with another layer on top of it, or itself if that is nil.
func (x *layered) with(top *index) *layered {
	if top == nil {
		return x
	}
	return &layered{root: x.root, layers: append([]*index{top}, x.layers...), sequences: append([]uint64{0}, x.sequences...)}
}

// start returns a walk through all that is there.
func (x *layered) start() *layeredCursor {
	c := &layeredCursor{}
	for _, one := range x.layers {
		at := one.start()
		at.next()
		c.heads = append(c.heads, at)
	}
	return c
}

// seek returns a walk through what is there from a path on.
func (x *layered) seek(p string) *layeredCursor {
	c := &layeredCursor{}
	for _, one := range x.layers {
		c.heads = append(c.heads, one.seek(p))
	}
	return c
}

// A layeredCursor walks through what is there, in the order of the paths. It stands at
// the entry of the uppermost layer that has something to say of a path, once next has
// returned true.
type layeredCursor struct {
	*cursor
	heads []*cursor
}

func (c *layeredCursor) next() bool {
	for {
		if c.cursor != nil {
			for _, h := range c.heads {
				if h != c.cursor && h.ok && bytes.Equal(h.path, c.path) {
					h.next()
				}
			}
			c.cursor.next()
		}
		var first *cursor
		for _, h := range c.heads {
			switch {
			case h.err != nil:
				c.cursor = h
				return false
			case h.ok && (first == nil || bytes.Compare(h.path, first.path) < 0):
				first = h
			}
		}
		if first == nil {
			return false
		}
		if c.cursor = first; !c.gone() {
			return true
		}
	}
}

// failed returns why next has returned false; nil at the end.
func (c *layeredCursor) failed() error {
	if c.cursor == nil {
		return nil
	}
	return c.err
}

// entries yields what is there, in the order of the paths.
func (x *layered) entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		c := x.start()
		for c.next() {
			if e, err := c.entry(); !yield(e, err) || err != nil {
				return
			}
		}
		if err := c.failed(); err != nil {
			yield(Entry{}, err)
		}
	}
}

// find returns what is there at a path, or nil.
func (x *layered) find(p string) (*Entry, error) {
	for _, one := range x.layers {
		c := one.seek(p)
		switch {
		case c.err != nil:
			return nil, c.err
		case !c.ok || string(c.path) != p:
		case c.gone():
			return nil, nil
		default:
			e, err := c.entry()
			return &e, err
		}
	}
	return nil, nil
}

// inside yields what is there below a folder, in the order of the paths.
func (x *layered) inside(dir string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		c := x.seek(dir + "/")
		for c.next() && bytes.HasPrefix(c.path, []byte(dir+"/")) {
			if e, err := c.entry(); !yield(e, err) || err != nil {
				return
			}
		}
		if err := c.failed(); err != nil {
			yield(Entry{}, err)
		}
	}
}

// next returns the index of a snapshot that was published on this one.
func (x *layered) next(l *Library, p Published) (*layered, error) {
	top, err := l.index(p)
	if err != nil {
		return nil, err
	}
	now := &layered{root: top.root, layers: []*index{top}, sequences: []uint64{p.Sequence}}
	if top.base == 0 {
		return now, nil
	}
	i := slices.Index(x.sequences, top.base)
	if i < 0 {
		return l.layers(p)
	}
	now.layers, now.sequences = append(now.layers, x.layers[i:]...), append(now.sequences, x.sequences[i:]...)
	return now, nil
}

// merge yields the entries of several layers, the uppermost first, in the order of the
// paths: of each path that of the uppermost which has one, also if it says that
// something is gone.
func merge(layers ...iter.Seq2[Entry, error]) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		type head struct {
			entry Entry
			err   error
			ok    bool
			next  func() (Entry, error, bool)
		}
		heads := make([]head, len(layers))
		for i, one := range layers {
			next, stop := iter.Pull2(one)
			defer stop()
			heads[i].next = next
			heads[i].entry, heads[i].err, heads[i].ok = next()
		}
		for {
			first := -1
			for i := range heads {
				h := &heads[i]
				switch {
				case h.ok && h.err != nil:
					yield(Entry{}, h.err)
					return
				case h.ok && (first < 0 || h.entry.Path < heads[first].entry.Path):
					first = i
				}
			}
			if first < 0 {
				return
			}
			e := heads[first].entry
			for i := range heads {
				if h := &heads[i]; h.ok && h.entry.Path == e.Path {
					h.entry, h.err, h.ok = h.next()
				}
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// difference encodes an index that lies on that of the snapshot base, old, and says
// with it what now says.
func difference(old, now *layered, base uint64) ([]byte, error) {
	var w indexWriter
	before, stop := iter.Pull2(old.entries())
	defer stop()
	b, err, more := before()
	for e, e2 := range now.entries() {
		if err = errors.Join(err, e2); err != nil {
			return nil, err
		}
		for more && b.Path < e.Path {
			if err := w.add(&Entry{Path: b.Path, gone: true}); err != nil {
				return nil, err
			}
			if b, err, more = before(); err != nil {
				return nil, err
			}
		}
		same := false
		if more && b.Path == e.Path {
			same = b.equal(&e)
			if b, err, more = before(); err != nil {
				return nil, err
			}
		}
		if same {
			continue
		}
		if err := w.add(&e); err != nil {
			return nil, err
		}
	}
	for more {
		if err := w.add(&Entry{Path: b.Path, gone: true}); err != nil {
			return nil, err
		}
		if b, err, more = before(); err != nil {
			return nil, err
		}
	}
	return w.finish(now.root, base), nil
}

// slim returns an edition without what earlier snapshots have, of which prev is the
// last. It comes back as it is if it has little in common with them.
func (l *Library) slim(prev Published, ed edition) (edition, error) {
	old, err := l.layers(prev)
	if err != nil {
		return ed, err
	}
	whole, err := decodeIndex(ed.index)
	if err != nil {
		return ed, err
	}
	if old.root != whole.root || slices.ContainsFunc(old.layers, func(x *index) bool { return x.version < 3 }) {
		return ed, nil // or it would say too little for ever
	}
	now := &layered{root: whole.root, layers: []*index{whole}}
	for n, one := range old.layers {
		base := old.below(n)
		b, err := difference(base, now, base.sequences[0])
		if err != nil {
			return ed, err
		}
		if 2*int64(len(b)) > one.size() {
			continue
		}
		meta, err := l.without(prev.Service, base.sequences, ed.meta)
		if err != nil {
			return ed, err
		}
		ed.index, ed.meta = b, meta
		break
	}
	return ed, nil
}

// without returns what of the metadata the layers of these snapshots do not have.
func (l *Library) without(service string, sequences []uint64, all metaSet) (metaSet, error) {
	rest := metaSet{}
	for d, b := range all {
		rest[d] = b
	}
	for _, n := range sequences {
		m, err := openMeta(filepath.Join(l.folder(Published{Service: service, Sequence: n}), "meta"))
		if err != nil {
			return nil, err
		}
		for d := range rest {
			if _, ok := m.find(d); ok {
				delete(rest, d)
			}
		}
		if err := m.f.Close(); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// baseOf returns the snapshot that p lies on; 0 if it is whole. It reads no more than
// it needs for that.
func (l *Library) baseOf(p Published) (uint64, error) {
	f, err := os.Open(filepath.Join(l.folder(p), "index"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, len(indexMagic)+manifest.MaxPath+32)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, err
	}
	r := indexReader{b: b[:n]}
	_, _, base := r.head()
	if r.err == nil && base >= p.Sequence {
		r.fail("it lies on %d", base)
	}
	return base, r.err
}
