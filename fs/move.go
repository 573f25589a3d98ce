package fs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"srvfs/manifest"
)

// Moved says what a move came to.
type Moved struct {
	Directories int // in which something has changed, of those that were loaded
	Names       int // that came, went, or lead to another node
	Attributes  int // nodes that have others
	Took        time.Duration
	// Published is the part of Took after which the new snapshot was shown to who
	// asked; the rest is for what the kernel remembers.
	Published time.Duration
}

// Move has the view show another snapshot of its service: it returns when whoever
// looks sees that one, in whatever way, and no earlier. Until then a name shows what it
// showed before, or what it shows now; never a mixture. Files that are open stay the files that
// were opened. What both snapshots have is not looked at, nor is what nobody has looked
// at in this view.
//
// Moves wait for each other. ctx bounds the comparing; what has been published is always
// told to the kernel as well, and that may wait for those who look things up in the same
// directories, as long as their deadline. After an error the view shows what it showed
// before, unless it wraps ErrUntold.
//
// The error wraps manifest.ErrInvalid for a view with the layout Layers, which an overlay
// stands on, and for a snapshot that is not sound; os.ErrClosed after the view's end; or
// what Content said.
func (v *View) Move(ctx context.Context, to *manifest.Snapshot) (Moved, error) {
	start := time.Now()
	if v.layout != Plain || to == nil {
		return Moved{}, fmt.Errorf("a view under a root, or to no snapshot, can't move: %w", manifest.ErrInvalid)
	}
	select {
	case v.moving <- struct{}{}:
		defer func() { <-v.moving }()
	case <-ctx.Done():
		return Moved{}, context.Cause(ctx)
	}
	if err := v.hold(); err != nil {
		return Moved{}, err
	}
	defer v.work.Done()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(v.ctx, stop)()

	m := &move{v: v, t: v.table, to: to}
	fail := func(err error) (Moved, error) {
		m.undo()
		return Moved{}, fmt.Errorf("move %s to snapshot %d: %w", v.name, to.Sequence, err)
	}
	m.begin()
	for {
		if err := m.compare(ctx); err != nil {
			return fail(err)
		}
		if err := m.stage(); err != nil {
			return fail(err)
		}
		published, err := m.publish()
		if err != nil {
			return fail(err)
		}
		if published {
			break
		}
	}
	v.moves.Add(1)
	done := Moved{Directories: len(m.dirs), Attributes: len(m.news.attributes), Published: time.Since(start)}
	for _, d := range m.news.listings {
		done.Names += len(d.names)
	}
	err := v.tell(&m.news)
	done.Took = time.Since(start)
	return done, err
}

// hold keeps the view's end waiting until work.Done.
func (v *View) hold() error {
	v.tree.RLock()
	defer v.tree.RUnlock()
	if v.ended {
		return fmt.Errorf("view of %s has ended: %w", v.name, os.ErrClosed)
	}
	v.work.Add(1)
	return nil
}

// A move is one Move under way. First it compares, directory by directory, as far as
// they are loaded; readers go on. Then it makes what is new, where nobody sees it, and
// last it publishes, while no reader looks, which takes no longer than what has changed.
type move struct {
	v    *View
	t    *table
	to   *manifest.Snapshot
	from *manifest.Snapshot

	open   []visit // to be compared
	closed []visit // not loaded when it was looked at
	dirs   []*changed
	fresh  []slot // new slots, one for each entry that may need one
	news   news
}

// A visit is a directory that has changed.
type visit struct {
	dir slot
	manifest.Pair
}

// A changed is a loaded directory in which names have changed.
type changed struct {
	dir   slot
	edits []edit
	puts  []edit // of its listing
	kept  bool   // a node in it has other attributes
}

// An edit is one name that has changed. It has come if name is noSlot, and gone if after
// is nil.
type edit struct {
	path  string // the name
	after *manifest.Entry
	name  slot // that it has
	was   slot // the node that it stands for
	isDir bool // that node is a directory
	keeps bool // that node may be the entry's

	node   node   // what the entry says
	record uint32 // where its record is, under its name
	other  uint32 // the same under the node's own name, if that is another
	size   int    // bytes of record
	others int    // and of other
	put    slot   // what stands for the name now; noSlot: nothing
}

// begin compares the roots themselves.
func (m *move) begin() {
	v := m.v
	v.tree.RLock()
	defer v.tree.RUnlock()
	m.from = v.snapshot
	root := v.table.at(v.root)
	before, after := m.from.Root, m.to.Root
	before.Name, after.Name = treeFolder, treeFolder
	if !before.Equal(&after) {
		m.dirs = append(m.dirs, &changed{dir: root.parent, edits: []edit{{path: treeFolder, after: &after, name: v.root, was: v.root, isDir: true, keeps: true}}})
	}
	m.open = []visit{{v.root, manifest.Pair{Before: before.Digest, After: after.Digest}}}
}

// compare finds what has changed in the directories that are open, and below them.
func (m *move) compare(ctx context.Context) error {
	limit := 2*(m.from.Totals.Entries+m.to.Totals.Entries) + 4096
	for len(m.open) > 0 {
		var level []visit
		m.v.tree.RLock()
		for _, d := range m.open {
			if m.t.at(d.dir).loaded() {
				level = append(level, d)
			} else {
				m.closed = append(m.closed, d)
			}
		}
		m.v.tree.RUnlock()
		m.open = nil
		pairs := make([]manifest.Pair, len(level))
		for i, d := range level {
			pairs[i] = d.Pair
		}
		all, err := manifest.CompareDirectories(ctx, m.v.content, pairs, limit)
		if err != nil {
			return err
		}
		m.v.tree.RLock()
		for i, d := range level {
			if err = m.edits(d.dir, all[i]); err != nil {
				break
			}
		}
		m.v.tree.RUnlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// edits notes what has changed in a directory. Nobody but a move takes names away, so
// that what is found here is there when it is published.
func (m *move) edits(dir slot, changes []manifest.Change) error {
	if len(changes) == 0 {
		return nil
	}
	c := &changed{dir: dir}
	n := m.t.at(dir)
	for i := range changes {
		ch := &changes[i]
		e := edit{path: ch.Path, after: ch.After, name: noSlot, was: noSlot}
		if ch.Before != nil {
			s, found := m.t.find(n, ch.Path)
			if !found {
				return fmt.Errorf("%s is not in the view: %w", m.v.below(dir, ch.Path), manifest.ErrInvalid)
			}
			e.name, e.was, e.isDir = s, m.t.resolve(s), ch.Before.Type == manifest.Dir
		}
		if a := ch.After; a != nil {
			if _, err := rdevOf(a); err != nil {
				return err
			}
			b := ch.Before
			e.keeps = b != nil && b.Type == a.Type && (a.Type == manifest.Dir || b.Digest == a.Digest && b.Size == a.Size && b.Target == a.Target && b.Rdev == a.Rdev)
			if e.keeps && e.isDir && b.Digest != a.Digest {
				m.open = append(m.open, visit{e.was, manifest.Pair{Before: b.Digest, After: a.Digest}})
			}
		}
		c.edits = append(c.edits, e)
	}
	m.dirs = append(m.dirs, c)
	return nil
}

// stage makes the records, and finds the slots, that publishing may need, so that it
// can't fail.
func (m *move) stage() error {
	t := m.t
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	record := func(e *manifest.Entry) (at uint32, size int) {
		if err != nil {
			return 0, 0
		}
		t.scratch = appendRecord(t.scratch[:0], e, partsOf(e))
		at, err = t.store(t.scratch)
		return at, len(t.scratch)
	}
	need := 0
	for _, d := range m.dirs {
		for i := range d.edits {
			e := &d.edits[i]
			if e.after == nil {
				continue
			}
			need++
			if e.size > 0 {
				continue // staged before
			}
			if e.node, err = t.nodeOf(d.dir, e.after); err != nil {
				return err
			}
			e.record, e.size = record(e.after)
			if e.keeps && e.name != e.was {
				named := *e.after
				named.Name = string(t.name(e.was))
				e.other, e.others = record(&named)
			}
			if err != nil {
				return err
			}
		}
	}
	for len(m.fresh) < need {
		if k := len(t.bare); k > 0 {
			m.fresh, t.bare = append(m.fresh, t.bare[k-1]), t.bare[:k-1]
			continue
		}
		if t.reusable() > 0 {
			m.fresh = append(m.fresh, t.take(1)...)
			continue
		}
		if uint64(t.used) == maxNodes {
			return fmt.Errorf("more than %d names, with those that have gone: %w", maxNodes, manifest.ErrInvalid)
		}
		if _, err := t.slotFor(slot(t.used)); err != nil {
			return err
		}
		m.fresh = append(m.fresh, slot(t.used))
		t.used++
	}
	return nil
}

// undo gives back what was made in vain.
func (m *move) undo() {
	m.t.mu.Lock()
	defer m.t.mu.Unlock()
	m.t.bare, m.fresh = append(m.t.bare, m.fresh...), nil
	for _, d := range m.dirs {
		for i := range d.edits {
			m.spare(&d.edits[i])
		}
	}
}

// parts returns the record that was made for an edit, without the name.
func (t *table) parts(e *edit) []byte {
	b := (*t.arena.Load())[e.record/perBlock][e.record%perBlock*recordUnit:]
	return b[1+len(e.after.Name) : e.size]
}

// endsIn reports whether n's record has these parts after the name.
func (t *table) endsIn(n *node, parts []byte) bool {
	r := t.record(n)
	r.name()
	return bytes.HasPrefix(r.b, parts)
}

// spare gives back the records that were made for e and are not needed.
func (m *move) spare(e *edit) {
	if e.size > 0 {
		m.t.freeRecord(e.record, e.size)
	}
	if e.others > 0 {
		m.t.freeRecord(e.other, e.others)
	}
	e.size, e.others = 0, 0
}
