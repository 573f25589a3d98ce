package fs

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"srvfs/manifest"
)

const (
	// walkFirst is how many directories in one that is listed are asked for, at
	// most.
	walkFirst = 256
	// walkWindow is how many directories a walk is followed ahead at first,
	// walkMost at last.
	walkWindow, walkMost = 16, 512
	// walkNames is about how many names are loaded ahead of a walk at most: in a
	// tree of large directories it is fewer of them, but not fewer than walkFew.
	walkNames, walkFew = 64 << 10, 16
	// walkParallel is how many directories are loaded ahead at a time. They
	// mostly wait for the same answer.
	walkParallel = 64
	// walkSteps bounds the names that one search for directories looks at.
	walkSteps = 64 << 10
)

// A walk is a program that lists one directory after the other.
type walk struct {
	top    slot              // listed first
	last   slot              // listed last
	window int               // zero while nothing but top was listed
	ahead  map[slot]struct{} // asked for and not listed yet
	next   slot              // the directories that come before it are loaded
	busy   bool              // some are being loaded
}

// listed takes note that a listing of the directory in s begins, and asks for
// the directories in it, all in one request. When one of them is listed too, it
// looks like a walk: those that come next are loaded before it arrives there,
// so that each level after the first is known in time. Nothing here waits. A
// path that is looked up name by name does not come here. The caller holds tree.
func (v *View) listed(s slot) {
	a := &v.ahead
	if a.to == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	w := v.accompany(s)
	if w.window > 0 {
		v.advance(w)
	} else if want := v.unloaded(s, s, v.walkLimit(walkFirst)); len(want) > 0 {
		a.directories += uint64(len(want))
		a.to.MetaAhead(v.digestsOf(want))
	}
}

// accompany returns the walk that the listing of s belongs to, and brings it up
// to date.
func (v *View) accompany(s slot) *walk {
	a := &v.ahead
	for i, w := range a.walks {
		if _, ok := w.ahead[s]; ok {
			front(a.walks, i)
			delete(w.ahead, s)
			w.last = s
			if 2*len(w.ahead) <= w.window {
				w.window = min(aheadGrow*w.window, v.walkLimit(walkMost))
			}
			return w
		}
	}
	for i, w := range a.walks {
		if s != w.last && !v.continues(w, s) {
			continue
		}
		front(a.walks, i)
		if s != w.last { // it was faster than we are, or has skipped some
			w.last, w.next, w.window = s, s, max(w.window, walkWindow)
			clear(w.ahead)
		}
		return w
	}
	w := &walk{top: s, last: s, next: s, ahead: map[slot]struct{}{}}
	a.walks = slices.Insert(a.walks, 0, w)
	a.walks = a.walks[:min(len(a.walks), aheadKept)]
	return w
}

// continues reports whether a walk depth first can come from w.last to s.
func (v *View) continues(w *walk, s slot) bool {
	parent := v.table.at(s).parent
	if parent == w.last {
		return true
	}
	for c := w.last; c != w.top && c != 0; {
		up := v.table.at(c).parent
		if up == parent {
			return bytes.Compare(v.table.name(c), v.table.name(s)) < 0
		}
		c = up
	}
	return false
}

// wasListed reports whether a walk is in the directory in s, or below it.
func (v *View) wasListed(s slot) bool {
	for _, w := range v.ahead.walks {
		for c := w.last; c != 0; c = v.table.at(c).parent {
			if c == s {
				return true
			}
			if c == w.top {
				break
			}
		}
	}
	return false
}

// walkLimit returns n, or less if the snapshot's directories are large.
func (v *View) walkLimit(n int) int {
	each := v.snapshot.Totals.Entries/max(1, v.snapshot.Totals.Dirs) + 1
	return max(min(n, int(walkNames/each)), min(n, walkFew))
}

// advance loads the directories that fill w's window, in the background.
func (v *View) advance(w *walk) {
	room := w.window - len(w.ahead)
	if w.busy || 2*len(w.ahead) > w.window {
		return
	}
	batch := v.unloaded(w.next, w.top, room)
	if len(batch) == 0 {
		return
	}
	// What is in them is not known yet: the next search begins here again.
	w.next, w.busy = batch[0], true
	for _, s := range batch {
		w.ahead[s] = struct{}{}
	}
	v.scout(w, batch)
}

// unloaded returns up to n directories below top that a walk reaches after s and
// that are not loaded, in order.
func (v *View) unloaded(s, top slot, n int) (batch []slot) {
	for range walkSteps {
		node := v.table.at(s)
		leaf := false
		if v.table.class(node).is(manifest.Dir) {
			if !node.loaded() {
				if batch = append(batch, s); len(batch) == n {
					break
				}
			}
			r := v.table.record(node)
			r.name()
			leaf = r.links() == 2 // it has no directories in it
		}
		var ok bool
		if leaf {
			s, ok = v.beside(s, top)
		} else {
			s, ok = v.after(s, top)
		}
		if !ok {
			break
		}
	}
	return batch
}

func (v *View) digestsOf(dirs []slot) []manifest.Digest {
	all := make([]manifest.Digest, len(dirs))
	for i, s := range dirs {
		all[i] = v.table.at(s).digest
	}
	return all
}

// scout asks for directories in one request and loads them as they come; then
// it goes on with the walk w, if that is not nil. The caller holds tree and ahead.mu.
func (v *View) scout(w *walk, batch []slot) {
	a := &v.ahead
	a.directories += uint64(len(batch))
	a.to.MetaAhead(v.digestsOf(batch))
	refs := make([]ref, len(batch))
	for i, s := range batch {
		refs[i] = v.table.refTo(s)
	}
	v.work.Go(func() {
		err := v.loadAll(refs)
		if w == nil {
			return
		}
		v.tree.RLock()
		defer v.tree.RUnlock()
		a.mu.Lock()
		defer a.mu.Unlock()
		w.busy = false
		if err == nil && slices.Contains(a.walks, w) { // else the view has moved
			v.advance(w)
		}
	})
}

// loadAll loads directories, in order as far as they come in order. An error is
// for the log of nobody: whoever needs the directory is told.
func (v *View) loadAll(batch []ref) error {
	ctx, end := context.WithTimeout(v.ctx, v.deadline)
	defer end()
	ctx, fail := context.WithCancelCause(ctx)
	var taken atomic.Int64
	var loaders sync.WaitGroup
	for range min(walkParallel, len(batch)) {
		loaders.Go(func() {
			for i := taken.Add(1) - 1; int(i) < len(batch); i = taken.Add(1) - 1 {
				if err := v.loadIn(ctx, batch[i]); err != nil {
					fail(err)
					return
				}
			}
		})
	}
	loaders.Wait()
	defer fail(nil)
	return context.Cause(ctx)
}
