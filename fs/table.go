package fs

import (
	"bytes"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

const (
	arenaBits   = 22
	arenaBlock  = 1 << arenaBits // bytes
	recordUnit  = 4              // so that 32 bits address 16 GiB of records
	perBlock    = arenaBlock / recordUnit
	maxNodes    = 1 << 31
	maxArenaLen = 1 << 34 >> arenaBits // blocks
)

// A table holds all nodes of a view. Names are added a directory at a time,
// into consecutive slots and in the order of their names, so that a directory
// is two numbers, a lookup a binary search, and the numbers of all nodes follow
// from the order in which directories were added. A directory of which names have
// come and gone since, or that came into slots that others have left, is a list of
// slots; see [listing].
//
// The memory is not Go's: at a million nodes the collector would neither have
// anything to find in it nor should it keep as much again in reserve.
//
// Adding locks; reading does not: a node is read only by those who found its
// slot in a directory that has been published. In a view that moves they hold
// View.tree, as the move changes what is published; see move.go.
type table struct {
	mu       sync.Mutex
	limit    uint64 // names
	names    uint64 // in the tree
	used     uint32 // slots that are in use, or have been
	nodes    atomic.Pointer[[]*[blockNodes]node]
	arena    atomic.Pointer[[][]byte]
	scratch  []byte // a record that is being made
	free     []byte // what is left of the arena's last block
	classes  atomic.Pointer[[]class]
	index    map[class]uint32
	links    map[uint64]slot // the node of each file with several names, by its number in the snapshot
	labelled atomic.Bool     // a node has an SELinux label
	maps     [][]byte        // what release gives back

	lists      atomic.Pointer[[][]slot]
	spareLists []uint32 // indices of lists that no directory has

	// What a table has whose nodes may go: see reuse.go.
	counts  bool
	held    atomic.Pointer[[]*[blockNodes]held]
	groups  map[slot]*group
	left    map[slot]string     // where the nodes were that have left the tree and that the kernel still has
	idle    []slot              // that nobody has any more, the longest so first
	bare    []slot              // likewise, that have no record
	records map[uint32][]uint32 // places in the arena that are free, by their length
}

// newTable returns a table for at most limit names.
func newTable(limit uint64) *table {
	t := &table{limit: min(limit, maxNodes), index: map[class]uint32{}, links: map[uint64]slot{},
		groups: map[slot]*group{}, left: map[slot]string{}, records: map[uint32][]uint32{}}
	t.nodes.Store(new([]*[blockNodes]node))
	t.held.Store(new([]*[blockNodes]held))
	t.lists.Store(new([][]slot))
	t.arena.Store(new([][]byte))
	t.classes.Store(new([]class))
	return t
}

// release gives the memory back. Nothing of the table may be used after it.
func (t *table) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.maps {
		_ = unix.Munmap(m) // fails only for memory that was never mapped
	}
	t.maps, t.free = nil, nil
	t.nodes.Store(new([]*[blockNodes]node))
	t.held.Store(new([]*[blockNodes]held))
	t.arena.Store(new([][]byte))
}

// reserve maps n bytes of zeros.
func (t *table) reserve(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("no memory for the table of nodes: %w", err)
	}
	t.maps = append(t.maps, b)
	return b, nil
}

// at returns the node in s.
func (t *table) at(s slot) *node {
	return &(*t.nodes.Load())[s>>blockBits][s&(blockNodes-1)]
}

// len returns the number of names in the tree, as far as it is known, and size that
// of the slots that they and others have taken.
func (t *table) len() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.names
}

func (t *table) size() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return uint64(t.used)
}

// room returns how many names may be added yet.
func (t *table) room() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.limit - min(t.limit, t.names)
}

// class returns what n shares with others. It must not be written to.
func (t *table) class(n *node) *class { return &(*t.classes.Load())[n.class] }

// record returns n's record, from its name on.
func (t *table) record(n *node) record {
	block := (*t.arena.Load())[n.record/perBlock]
	return record{b: block[n.record%perBlock*recordUnit:], parts: t.class(n).parts}
}

// name returns the name in s; see record.
func (t *table) name(s slot) []byte {
	r := t.record(t.at(s))
	return r.name()
}

// resolve returns the slot of the node that the name in s stands for: its own,
// unless it is a further name of a file seen earlier.
func (t *table) resolve(s slot) slot {
	if n := t.at(s); t.class(n).parts&partAlias != 0 {
		return slot(n.value)
	}
	return s
}

// add gives each entry a slot, in order, and returns them; the entries are
// sorted by name and below the directory in parent. On an error, which wraps
// ErrInvalid or says that there is no memory, nothing has changed. Nobody finds
// the nodes before they are given to [table.publish].
func (t *table) add(parent slot, entries []manifest.Entry) (listing, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.names+uint64(len(entries)) > t.limit {
		return listing{}, fmt.Errorf("more than the %d names that the snapshot counts: %w", t.limit, manifest.ErrInvalid)
	}
	for i := range entries {
		if _, err := rdevOf(&entries[i]); err != nil {
			return listing{}, err
		}
	}
	l := listing{first: slot(t.used), count: len(entries)}
	reused := l.count > 0 && t.reusable() >= l.count
	if reused {
		l.slots = t.take(l.count)
	} else if uint64(t.used)+uint64(l.count) > maxNodes {
		return listing{}, fmt.Errorf("more than %d names, with those that have gone: %w", maxNodes, manifest.ErrInvalid)
	}
	links := map[uint64]slot{} // new ones; kept if all goes well
	for i := range entries {
		if err := t.put(l.at(i), parent, &entries[i], links); err != nil {
			return listing{}, err
		}
	}
	maps.Copy(t.links, links)
	if !reused {
		t.used += uint32(l.count)
	}
	t.names += uint64(l.count)
	if t.counts {
		for i := range entries {
			t.join(l.at(i), entries[i].Link)
		}
	}
	return l, nil
}

// rdevOf returns the number of a device as the kernel encodes it, or 0.
func rdevOf(e *manifest.Entry) (uint32, error) {
	if e.Type != manifest.CharDevice && e.Type != manifest.BlockDevice {
		return 0, nil
	}
	rdev, err := kernelDevice(e.Rdev)
	if err != nil {
		err = fmt.Errorf("entry %.300q: %w", e.Name, err)
	}
	return rdev, err
}

// nodeOf returns the node that says of e what is no part of its record.
func (t *table) nodeOf(parent slot, e *manifest.Entry) (node, error) {
	n := node{parent: parent, sec: e.Mtime.Sec, nsec: e.Mtime.Nsec, digest: e.Digest}
	rdev, err := rdevOf(e)
	if n.value = uint64(rdev); e.Type == manifest.File {
		n.value = uint64(e.Size)
	}
	for i := range e.Xattrs {
		if e.Xattrs[i].Name == selinuxLabel {
			t.labelled.Store(true)
		}
	}
	n.class = t.classOf(class{mode: typeBits[e.Type] | e.Mode, uid: e.UID, gid: e.GID, parts: partsOf(e)})
	return n, err
}

func (t *table) put(s, parent slot, e *manifest.Entry, links map[uint64]slot) error {
	n, err := t.slotFor(s)
	if err != nil {
		return err
	}
	if *n, err = t.nodeOf(parent, e); err != nil {
		return err
	}
	t.scratch = appendRecord(t.scratch[:0], e, t.class(n).parts)
	rec := t.scratch
	if e.Link != 0 {
		one, seen := t.links[e.Link]
		if !seen {
			one, seen = links[e.Link]
		}
		switch {
		case !seen:
			links[e.Link] = s
		case t.same(one, n, rec[1+len(e.Name):]):
			t.makeAlias(n, one)
			rec = rec[:1+len(e.Name)] // the rest is the first name's
		}
		// Names of one file that say different things of it (it changed while it
		// was captured, or somebody is playing) are shown as files of their own: a
		// node is one thing.
	}
	n.record, err = t.store(rec)
	return err
}

// makeAlias makes n a further name of the node in one.
func (t *table) makeAlias(n *node, one slot) {
	c := *t.class(n)
	c.parts = partAlias
	n.class, n.value = t.classOf(c), uint64(one)
}

// same reports whether the node in s says the same as n, of which parts is the
// rest of the record.
func (t *table) same(s slot, n *node, parts []byte) bool {
	m := t.at(s)
	r := t.record(m)
	r.name()
	return m.class == n.class && m.value == n.value && m.digest == n.digest && m.sec == n.sec && m.nsec == n.nsec && bytes.HasPrefix(r.b, parts)
}

// slotFor returns the node at s, which may lie one block beyond those there are.
func (t *table) slotFor(s slot) (*node, error) {
	blocks := *t.nodes.Load()
	if int(s>>blockBits) == len(blocks) {
		b, err := t.reserve(blockNodes * int(nodeSize))
		if err != nil {
			return nil, err
		}
		// Readers have the old slice: its elements stay, its length too.
		more := append(blocks, (*[blockNodes]node)(unsafe.Pointer(&b[0])))
		if t.counts {
			b, err := t.reserve(blockNodes * int(heldSize))
			if err != nil {
				return nil, err
			}
			counts := append(*t.held.Load(), (*[blockNodes]held)(unsafe.Pointer(&b[0])))
			t.held.Store(&counts)
		}
		t.nodes.Store(&more)
	}
	return t.at(s), nil
}

// store copies a record into the arena and returns its place.
func (t *table) store(rec []byte) (uint32, error) {
	need := (len(rec) + recordUnit - 1) &^ (recordUnit - 1)
	blocks := *t.arena.Load()
	if places := t.records[uint32(need/recordUnit)]; len(places) > 0 {
		at := places[len(places)-1]
		t.records[uint32(need/recordUnit)] = places[:len(places)-1]
		copy(blocks[at/perBlock][at%perBlock*recordUnit:], rec)
		return at, nil
	}
	if need > len(t.free) {
		if len(blocks) == maxArenaLen {
			return 0, fmt.Errorf("more than %d GiB of names and attributes: %w", maxArenaLen<<arenaBits>>30, manifest.ErrInvalid)
		}
		// A record longer than a block gets a longer one: only where records
		// begin has to be addressed.
		b, err := t.reserve(max(arenaBlock, need))
		if err != nil {
			return 0, err
		}
		more := append(blocks, b)
		t.arena.Store(&more)
		blocks, t.free = more, b
	}
	last := blocks[len(blocks)-1]
	off := len(last) - len(t.free)
	copy(t.free, rec)
	t.free = t.free[need:]
	if off+need >= arenaBlock {
		t.free = nil // what follows in a longer block has no address
	}
	return uint32(((len(blocks)-1)<<arenaBits + off) / recordUnit), nil
}

func (t *table) classOf(c class) uint32 {
	i, ok := t.index[c]
	if !ok {
		all := append(*t.classes.Load(), c)
		i = uint32(len(all) - 1)
		t.index[c] = i
		t.classes.Store(&all)
	}
	return i
}
