package capture

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// publishChange publishes snap, which follows on the newest snapshot at: the metadata of
// with is what its tree has and that one's has not, and delta what its index says
// otherwise than that one's, x, in the order of the paths. The copies of what is frozen are those that at
// has, unless with has others. What it costs goes by the change, and not by the size of
// the service. The error is errSuperseded if at is not the newest any more.
func (l *Library) publishChange(at Published, x *layered, snap *manifest.Snapshot, with edition, delta []Entry) (p Published, err error) {
	unlock, err := l.lock()
	if err != nil {
		return Published{}, err
	}
	defer unlock()
	defer func() {
		if err != nil && !errors.Is(err, errSuperseded) {
			if errors.Is(err, unix.ENOSPC) {
				err = fmt.Errorf("%w: %w", manifest.ErrNoSpace, err)
			}
			err = fmt.Errorf("publish %s in %s: %w", snap.Service, l.dir, err)
		}
	}()
	all, err := l.all()
	if err != nil {
		return Published{}, err
	}
	if now, err := l.find(manifest.Ref{Service: at.Service}); err != nil || now != at {
		return Published{}, errSuperseded
	}
	snap.Sequence = at.Sequence + 1
	ed, err := l.pile(at, x, snap, with.meta, delta)
	if err != nil {
		return Published{}, err
	}
	if ed.snapshot, err = snap.Encode(); err != nil {
		return Published{}, err
	}
	if ed.scope, err = os.ReadFile(filepath.Join(l.folder(at), "scope")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Published{}, err
	}
	if ed.frozen = with.frozen; with.copies == "" {
		ed.frozen, err = l.frozenList(at)
	} else {
		err = l.adopt(with.copies, with.frozen)
	}
	if err != nil {
		return Published{}, err
	}
	p = Published{Service: snap.Service, Sequence: snap.Sequence, Digest: manifest.Sum(ed.snapshot), Created: snap.Created}
	return p, l.put(p, ed, all)
}

// pile makes the layer of a snapshot that follows on another: with so many of those
// below folded into it that it is at most half as large as the one that it lies on.
func (l *Library) pile(at Published, x *layered, snap *manifest.Snapshot, meta metaSet, delta []Entry) (ed edition, err error) {
	above := []iter.Seq2[Entry, error]{func(yield func(Entry, error) bool) {
		for _, e := range delta {
			if !yield(e, nil) {
				return
			}
		}
	}}
	ed.meta = metaSet{}
	for d, b := range meta {
		ed.meta[d] = b
	}
	for n, one := range x.layers {
		var w indexWriter
		if err := w.addAll(merge(above...), false); err != nil {
			return ed, err
		}
		if 2*int64(len(w.body)) <= one.size() {
			ed.index = w.finish(x.root, x.sequences[n])
			ed.meta, err = l.without(at.Service, x.sequences[n:], ed.meta)
			return ed, err
		}
		above = append(above, one.entries())
		if err := l.readMeta(Published{Service: at.Service, Sequence: x.sequences[n]}, ed.meta); err != nil {
			return ed, err
		}
	}
	var w indexWriter
	if err := w.addAll(merge(above...), true); err != nil {
		return ed, err
	}
	ed.index = w.finish(x.root, 0)
	ed.meta, err = reachable(snap, ed.meta)
	return ed, err
}

// addAll adds entries, without those that say that something is gone if the index is
// whole.
func (w *indexWriter) addAll(all iter.Seq2[Entry, error], whole bool) error {
	for e, err := range all {
		if err == nil && (!whole || !e.gone) {
			err = w.add(&e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readMeta adds the metadata of a layer to all.
func (l *Library) readMeta(p Published, all metaSet) error {
	m, err := openMeta(filepath.Join(l.folder(p), "meta"))
	if err != nil {
		return err
	}
	for _, w := range m.records {
		b := make([]byte, w.size)
		if _, err := m.f.ReadAt(b, w.off); err != nil {
			return errors.Join(err, m.f.Close())
		}
		if manifest.Sum(b) != w.digest {
			return errors.Join(fmt.Errorf("metadata of snapshot %d: %w", p.Sequence, manifest.ErrCorrupt), m.f.Close())
		}
		all[w.digest] = b
	}
	return m.f.Close()
}

// reachable returns what of the metadata a snapshot needs.
func reachable(snap *manifest.Snapshot, all metaSet) (metaSet, error) {
	out := metaSet{}
	take := func(d manifest.Digest) ([]byte, error) {
		b, ok := all[d]
		if !ok {
			return nil, fmt.Errorf("metadata %v: %w", d, manifest.ErrNotFound)
		}
		out[d] = b
		return b, nil
	}
	if !snap.Order.IsZero() {
		if _, err := take(snap.Order); err != nil {
			return nil, err
		}
	}
	for todo := []manifest.Digest{snap.Root.Digest}; len(todo) > 0; {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if out[d] != nil {
			continue
		}
		b, err := take(d)
		if err != nil {
			return nil, err
		}
		p, err := manifest.DecodePage(b)
		if err != nil {
			return nil, err
		}
		for _, c := range p.Children {
			todo = append(todo, c.Digest)
		}
		for i := range p.Entries {
			e := &p.Entries[i]
			switch {
			case e.Type == manifest.Dir:
				todo = append(todo, e.Digest)
			case !e.Chunks.IsZero():
				if _, err := take(e.Chunks); err != nil {
					return nil, err
				}
			}
		}
	}
	return out, nil
}
