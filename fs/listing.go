package fs

import (
	"bytes"
	"sort"
	"sync/atomic"
)

// A listing is the names of a loaded directory, in their order: count slots that
// follow each other from first on, or those of a list. A list costs four bytes for each
// name more, and names can come into it and go.
type listing struct {
	first slot
	count int
	slots []slot // nil: they follow each other
}

// inList marks the value of a directory's node that is not the first child and their
// number, but the index of a list.
const inList = 1 << 63

func (l listing) at(i int) slot {
	if l.slots != nil {
		return l.slots[i]
	}
	return l.first + slot(i)
}

// loaded reports whether the directory's names are in the table.
func (n *node) loaded() bool { return atomic.LoadUint64(&n.value) != 0 }

// children returns the names of a directory; none, if it is not loaded.
func (t *table) children(n *node) listing {
	v := atomic.LoadUint64(&n.value)
	if v&inList != 0 {
		slots := (*t.lists.Load())[uint32(v)]
		return listing{count: len(slots), slots: slots}
	}
	return listing{first: slot(v >> 32), count: int(uint32(v))}
}

// publish gives a directory its names. No child stands in slot 0, so that even an
// empty directory's value is not zero.
func (t *table) publish(n *node, l listing) {
	if l.slots == nil {
		n.setChildren(l.first, uint32(l.count))
		return
	}
	t.mu.Lock()
	i := t.newList(l.slots)
	t.mu.Unlock()
	atomic.StoreUint64(&n.value, inList|uint64(i))
}

// newList keeps a list and returns its index. The caller holds t.mu.
func (t *table) newList(slots []slot) uint32 {
	lists := *t.lists.Load()
	if k := len(t.spareLists); k > 0 {
		i := t.spareLists[k-1]
		t.spareLists = t.spareLists[:k-1]
		lists[i] = slots // nobody has the index
		return i
	}
	more := append(lists, slots)
	t.lists.Store(&more)
	return uint32(len(more) - 1)
}

// empty leaves a directory without names. The caller holds t.mu, and nobody reads.
func (t *table) empty(n *node) {
	if v := n.value; v&inList != 0 {
		(*t.lists.Load())[uint32(v)] = nil
		t.spareLists = append(t.spareLists, uint32(v))
	}
	n.setChildren(1, 0)
}

// search returns the place of a name in l, or the one before which it would stand.
func (t *table) search(l listing, name []byte) (i int, found bool) {
	return sort.Find(l.count, func(i int) int { return bytes.Compare(name, t.name(l.at(i))) })
}

// find returns the slot of a name in a loaded directory.
func (t *table) find(dir *node, name string) (slot, bool) {
	l := t.children(dir)
	i, found := t.search(l, []byte(name))
	if !found {
		return 0, false
	}
	return l.at(i), true
}

// place returns the place of the name in s in l, or -1 if it is not there (any more).
func (t *table) place(l listing, s slot) int {
	if l.slots == nil {
		if s < l.first || s >= l.first+slot(l.count) {
			return -1
		}
		return int(s - l.first)
	}
	if i, found := t.search(l, t.name(s)); found && l.slots[i] == s {
		return i
	}
	return -1
}

// resume returns the place in l at which a listing of the directory in dir goes on
// after the name in s, which may have gone meanwhile: its name is still there to be read
// for a while. It fails for a slot that has been given to another.
func (t *table) resume(l listing, dir, s slot) (int, bool) {
	if l.slots == nil && s >= l.first && s < l.first+slot(l.count) {
		return int(s-l.first) + 1, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if uint32(s) >= t.used || t.at(s).parent != dir {
		return 0, false
	}
	i, found := t.search(l, t.name(s))
	if found {
		i++
	}
	return i, true
}
