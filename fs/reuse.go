package fs

import (
	"sync/atomic"
	"unsafe"
)

// A held is what the kernel has of a node, and what has become of its slot.
type held struct {
	lookups atomic.Uint32 // references that it was given and has not given back
	state   atomic.Uint32 // stateLeft, stateIdle, and how often the slot was used again
}

const (
	heldSize = unsafe.Sizeof(held{})

	stateLeft = 1 << 0 // its name is in the tree no more
	stateIdle = 1 << 1 // nor does anybody have the node
	stateUse  = 1 << 2 // the unit of the rest
)

// resting is how many slots stay as they are after they became idle. A listing that
// stopped at a name that has gone finds its place by that name until as many others
// have gone after it.
const resting = 16 << 10

// A group is a node with several names, or one that may get more.
type group struct {
	link    uint64 // its number in the snapshot, as in table.links; 0: none
	named   uint32 // how many names in the tree have that number
	aliases uint32 // names in other slots than its own
}

// A ref is a slot in one of its uses.
type ref struct {
	slot
	use uint32
}

func (t *table) heldAt(s slot) *held {
	if !t.counts {
		return nil
	}
	return &(*t.held.Load())[s>>blockBits][s&(blockNodes-1)]
}

// refTo returns what stands in s now.
func (t *table) refTo(s slot) ref {
	if h := t.heldAt(s); h != nil {
		return ref{s, h.state.Load() / stateUse}
	}
	return ref{s, 0}
}

// lives reports whether r is still in the tree.
func (t *table) lives(r ref) bool {
	h := t.heldAt(r.slot)
	return h == nil || h.state.Load() == r.use*stateUse
}

// hasLeft reports whether the node in s is in the tree no more, by its own name.
func (t *table) hasLeft(s slot) bool {
	h := t.heldAt(s)
	return h != nil && h.state.Load()&stateLeft != 0
}

// known reports whether the kernel may have the node in s.
func (t *table) known(s slot) bool {
	h := t.heldAt(s)
	return h == nil || h.lookups.Load() > 0
}

// generation distinguishes the nodes that have stood in s.
func (t *table) generation(s slot) uint64 { return uint64(t.refTo(s).use) }

// looked takes note that the kernel is given the node in s.
func (t *table) looked(s slot) {
	if h := t.heldAt(s); h != nil {
		h.lookups.Add(1)
	}
}

// forget takes note that the kernel has given n references back.
func (t *table) forget(s slot, n uint64) {
	h := t.heldAt(s)
	if h == nil || h.lookups.Add(-uint32(n)) > 0 || h.state.Load()&stateLeft == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settle(s)
}

// settle sets the slot s free if nobody has its node any more. The caller holds t.mu.
func (t *table) settle(s slot) {
	h := t.heldAt(s)
	if h.state.Load()&(stateLeft|stateIdle) != stateLeft || h.lookups.Load() > 0 {
		return
	}
	if g := t.groups[s]; g != nil && g.aliases > 0 {
		return
	}
	delete(t.groups, s)
	delete(t.left, s)
	h.state.Store(h.state.Load() | stateIdle)
	t.idle = append(t.idle, s)
}

// reusable returns how many slots can be taken.
func (t *table) reusable() int { return max(0, len(t.idle)-resting) }

// take takes n slots that can be. The caller holds t.mu.
func (t *table) take(n int) []slot {
	slots := make([]slot, n)
	copy(slots, t.idle)
	t.idle = t.idle[n:]
	for _, s := range slots {
		node, h := t.at(s), t.heldAt(s)
		t.giveBack(node)
		node.parent = noSlot // for [table.resume]
		h.state.Store((h.state.Load()/stateUse + 1) * stateUse)
	}
	return slots
}

// giveBack sets the place of n's record free. The caller holds t.mu.
func (t *table) giveBack(n *node) {
	r := t.record(n)
	size := len(r.b)
	r.name()
	r.links()
	r.chunks()
	r.target()
	r.xattrs(func(_, _ []byte) bool { return true })
	t.freeRecord(n.record, size-len(r.b))
}

func (t *table) freeRecord(at uint32, bytes int) {
	units := uint32((bytes + recordUnit - 1) / recordUnit)
	t.records[units] = append(t.records[units], at)
}

// join counts the new name in s, whose entry has the link number n. The caller holds
// t.mu.
func (t *table) join(s slot, n uint64) {
	id := t.resolve(s)
	t.joinNamed(id, n)
	if id != s {
		t.groups[id].aliases++
	}
}

// joinNamed counts a new name of the node in id with the link number n. The caller holds
// t.mu.
func (t *table) joinNamed(id slot, n uint64) {
	if n == 0 || t.links[n] != id {
		return // or a file of its own, whatever its entry says
	}
	g := t.groups[id]
	if g == nil {
		g = &group{}
		t.groups[id] = g
	}
	g.link = n
	g.named++
}

// part counts a name of the node in id that has its link number no more. The caller
// holds t.mu.
func (t *table) part(id slot) {
	g := t.groups[id]
	if g == nil || g.link == 0 {
		return
	}
	if g.named--; g.named == 0 {
		delete(t.links, g.link)
		g.link = 0
		if g.aliases == 0 {
			delete(t.groups, id)
		}
	}
}

// unname takes the name in s out of the tree. path is where it was. The caller holds
// t.mu.
func (t *table) unname(s slot, path func() string) {
	id := t.resolve(s)
	h := t.heldAt(s)
	h.state.Store(h.state.Load() | stateLeft)
	if id != s {
		g := t.groups[id]
		if g.aliases--; g.aliases == 0 && g.link == 0 {
			delete(t.groups, id)
		}
		t.settle(s)
		if t.hasLeft(id) {
			t.settle(id)
		}
		return
	}
	if g := t.groups[s]; g != nil && g.aliases > 0 || t.known(s) {
		t.left[s] = path()
	}
	t.settle(s)
}
