package fs

import (
	"bytes"
	"fmt"
	"slices"

	"srvfs/manifest"
)

// publish changes the tree, unless a directory has been loaded meanwhile that was not
// looked into; then that is open.
func (m *move) publish() (bool, error) {
	v, t := m.v, m.t
	v.tree.Lock()
	defer v.tree.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	m.closed = slices.DeleteFunc(m.closed, func(d visit) bool {
		loaded := t.at(d.dir).loaded()
		if loaded {
			m.open = append(m.open, d)
		}
		return loaded
	})
	if len(m.open) > 0 {
		return false, nil
	}
	limit := min(m.to.Totals.Entries, maxNodes) + ours
	if n := m.count(); n > limit {
		return false, fmt.Errorf("%d names, and the snapshot counts %d: %w", n, limit, manifest.ErrInvalid)
	}
	// What goes, goes first; so it is known which nodes are still wanted.
	for _, d := range m.dirs {
		for i := range d.edits {
			if e := &d.edits[i]; e.name != noSlot {
				t.part(e.was)
				if e.isDir && !e.keeps {
					m.bury(e.was)
				}
			}
		}
	}
	claimed := map[slot]bool{}
	for _, d := range m.dirs {
		for i := range d.edits {
			m.apply(d, &d.edits[i], claimed)
		}
	}
	for _, d := range m.dirs {
		m.relist(d)
	}
	t.bare, m.fresh = append(t.bare, m.fresh...), nil
	t.limit = limit
	v.snapshot = m.to
	v.ahead.reset()
	return true, nil
}

// count returns how many names the tree will have.
func (m *move) count() uint64 {
	n := int64(m.t.names)
	for _, d := range m.dirs {
		for i := range d.edits {
			e := &d.edits[i]
			if e.name == noSlot {
				n++
			} else if e.after == nil {
				n--
			}
			if e.name != noSlot && e.isDir && !e.keeps {
				n -= int64(m.below(e.was))
			}
		}
	}
	return uint64(max(0, n))
}

// below counts the names below a directory, as far as they are loaded.
func (m *move) below(dir slot) (n uint64) {
	l := m.t.children(m.t.at(dir))
	for i := range l.count {
		s := l.at(i)
		n++
		if m.t.class(m.t.at(s)).is(manifest.Dir) {
			n += m.below(s)
		}
	}
	return n
}

// bury takes all names in a directory, and below it, out of the tree. Whoever is still
// in it sees that it is empty.
func (m *move) bury(dir slot) {
	t := m.t
	n := t.at(dir)
	l := t.children(n)
	known := t.known(dir)
	names := []string{fence}
	for i := range l.count {
		s := l.at(i)
		if t.class(t.at(s)).is(manifest.Dir) {
			m.bury(s)
		} else {
			t.part(t.resolve(s))
		}
		if known && t.known(t.resolve(s)) {
			names = append(names, string(t.name(s)))
		}
		t.names--
		t.unname(s, func() string { return m.v.upward(s) })
	}
	t.empty(n)
	if known && l.count > 0 {
		m.news.listings = append(m.news.listings, listingNews{dir.id(), names})
	}
}

// apply decides which node an edit's name stands for from now on.
func (m *move) apply(d *changed, e *edit, claimed map[slot]bool) {
	t := m.t
	e.put = noSlot
	if e.after == nil {
		t.names--
		m.leave(d, e)
		return
	}
	link := e.after.Link
	node, known := t.links[link]
	known = known && link != 0 && t.same(node, &e.node, t.parts(e))
	switch g := t.groups[e.was]; {
	case known: // another name of that file was there first
		d.kept = true
	case e.keeps && !claimed[e.was] && (g == nil || g.link == 0):
		// It has the same content and was not another's.
		m.keep(d, e)
		node = e.was
		if _, taken := t.links[link]; link != 0 && !taken {
			t.links[link] = node
		}
	default:
		node = m.slot()
		*t.at(node) = e.node
		t.at(node).record, e.size = e.record, 0
		if _, taken := t.links[link]; link != 0 && !taken {
			t.links[link] = node
		}
		e.put = node
	}
	claimed[node] = true
	if e.name != noSlot && node == e.was {
		t.joinNamed(node, link)
		m.spare(e)
		return // the name stands for what it stood for
	}
	if e.put == noSlot { // a further name of a node that has one
		e.put = m.slot()
		n := t.at(e.put)
		*n = e.node
		n.record, e.size = e.record, 0
		c := *t.class(n)
		c.parts |= partAlias
		n.class, n.value = t.classOf(c), uint64(node)
		g := t.groups[node]
		if g == nil {
			g = &group{}
			t.groups[node] = g
		}
		g.aliases++
	}
	t.joinNamed(node, link)
	if e.name == noSlot {
		t.names++
	}
	m.leave(d, e)
	m.spare(e)
}

// keep gives a node that stays the attributes that it has now.
func (m *move) keep(d *changed, e *edit) {
	t := m.t
	n := t.at(e.was)
	// Of a directory that has other names in it the kernel need not ask again.
	alike := e.isDir && n.class == e.node.class && n.sec == e.node.sec && n.nsec == e.node.nsec && t.endsIn(n, t.parts(e))
	t.giveBack(n)
	if e.name == e.was {
		n.record, e.size = e.record, 0
	} else {
		n.record, e.others = e.other, 0
	}
	n.class, n.sec, n.nsec = e.node.class, e.node.sec, e.node.nsec
	if e.isDir {
		n.digest = e.node.digest
	}
	d.kept = d.kept || !alike
	if !alike && t.known(e.was) {
		m.news.attributes = append(m.news.attributes, e.was.id())
	}
}

// leave notes that a name stands for something else, or nothing, and takes what stood
// there out of the tree.
func (m *move) leave(d *changed, e *edit) {
	d.puts = append(d.puts, *e)
	if e.name != noSlot {
		m.t.unname(e.name, func() string { return m.v.upward(e.name) })
	}
}

// slot returns a new slot.
func (m *move) slot() slot {
	s := m.fresh[len(m.fresh)-1]
	m.fresh = m.fresh[:len(m.fresh)-1]
	return s
}

// fewPuts is how many names may come and go in a directory one by one: each moves those
// after it.
const fewPuts = 16

// relist gives a directory the names that it has now.
func (m *move) relist(d *changed) {
	t := m.t
	if len(d.puts) == 0 {
		if d.kept && t.known(d.dir) {
			m.news.listings = append(m.news.listings, listingNews{d.dir.id(), nil})
		}
		return
	}
	n := t.at(d.dir)
	l := t.children(n)
	slots := l.slots
	if slots == nil {
		slots = make([]slot, l.count, l.count+l.count/8+len(d.puts))
		for i := range slots {
			slots[i] = l.at(i)
		}
	}
	sized := 0
	for i := range d.puts {
		if p := &d.puts[i]; p.name == noSlot || p.put == noSlot {
			sized++
		}
	}
	if sized <= fewPuts {
		for i := range d.puts {
			p := &d.puts[i]
			at, _ := t.search(listing{count: len(slots), slots: slots}, []byte(p.path))
			switch {
			case p.put == noSlot:
				slots = slices.Delete(slots, at, at+1)
			case p.name == noSlot:
				slots = slices.Insert(slots, at, p.put)
			default:
				slots[at] = p.put
			}
		}
	} else {
		slots = m.merge(slots, d.puts)
	}
	if v := n.value; v&inList != 0 {
		(*t.lists.Load())[uint32(v)] = slots
	} else {
		n.value = inList | uint64(t.newList(slots))
	}
	if t.known(d.dir) {
		names := make([]string, len(d.puts))
		for i := range d.puts {
			names[i] = d.puts[i].path
		}
		m.news.listings = append(m.news.listings, listingNews{d.dir.id(), names})
	}
}

// merge returns the names of slots with the puts, which are in their order.
func (m *move) merge(slots []slot, puts []edit) []slot {
	merged := make([]slot, 0, len(slots)+len(puts))
	for _, s := range slots {
		for len(puts) > 0 {
			order := bytes.Compare([]byte(puts[0].path), m.t.name(s))
			if order > 0 {
				break
			}
			if puts[0].put != noSlot {
				merged = append(merged, puts[0].put)
			}
			puts = puts[1:]
			if order == 0 {
				s = noSlot
				break
			}
		}
		if s != noSlot {
			merged = append(merged, s)
		}
	}
	for _, p := range puts {
		if p.put != noSlot {
			merged = append(merged, p.put)
		}
	}
	return merged
}
