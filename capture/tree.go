package capture

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"

	"srvfs/manifest"
)

// An item is what is known of a path before it is read: why it is in.
type item struct {
	reasons  []Reason
	secret   bool
	modified bool   // it is not what its package shipped
	ahead    bool   // its digest was asked for before the set was complete
	fresh    string // why it starts empty, or ""
}

// A tree is a finished one: nodes sorted by path, encoded pages and chunk lists.
type tree struct {
	nodes  []*node
	root   manifest.Entry
	totals manifest.Totals
	meta   metaSet
	hashed int64 // bytes that its hasher has read so far
}

// build scans, hashes and encodes the paths in items, which are canonical and
// have all their parents with them. Nothing of it depends on the order or the
// time at which it is done: an unchanged source gives the same root digest.
func build(ctx context.Context, h *hasher, items map[string]*item) (*tree, error) {
	nodes, err := scan(ctx, h.root, items)
	if err != nil {
		return nil, err
	}
	if err := h.all(ctx, nodes); err != nil {
		return nil, err
	}
	nodes = slices.DeleteFunc(nodes, func(n *node) bool { return n == nil })
	linkUp(nodes)
	t := &tree{nodes: nodes, meta: metaSet{}, hashed: h.bytes}
	for _, n := range nodes {
		if d := n.entry.Chunks; !d.IsZero() {
			t.meta[d] = h.lists[d]
		}
	}
	return t, t.encode()
}

// linkUp numbers the files that have several names within the tree. The number
// comes from a name, since inode numbers mean nothing on another host.
func linkUp(nodes []*node) {
	type key struct{ dev, ino uint64 }
	names := map[key][]*node{}
	for _, n := range nodes {
		if n.nlink > 1 && n.entry.Type != manifest.Dir {
			k := key{n.id.Dev, n.id.Ino}
			names[k] = append(names[k], n)
		}
	}
	for _, group := range names {
		if len(group) < 2 {
			continue
		}
		sum := manifest.Sum([]byte(group[0].path)) // the nodes are sorted by path
		link := max(binary.BigEndian.Uint64(sum[:8]), 1)
		for _, n := range group {
			n.entry.Links, n.entry.Link = uint32(len(group)), link
		}
	}
}

// encode encodes the folders, each after those in it.
func (t *tree) encode() error {
	below := map[string][]manifest.Entry{}
	order := slices.Clone(t.nodes)
	slices.SortStableFunc(order, func(a, b *node) int { return cmp.Compare(depth(b.path), depth(a.path)) })
	seenLink := map[uint64]bool{}
	for _, n := range order {
		switch n.entry.Type {
		case manifest.Dir:
			entries := below[n.path]
			delete(below, n.path)
			slices.SortFunc(entries, func(a, b manifest.Entry) int { return strings.Compare(a.Name, b.Name) })
			n.entry.Links = 2
			for i := range entries {
				if entries[i].Type == manifest.Dir {
					n.entry.Links++
				}
			}
			d, err := manifest.EncodeDirectory(entries, t.meta.put)
			if err != nil {
				return fmt.Errorf("folder %s: %w", n.path, err)
			}
			n.entry.Digest = d
			t.totals.Dirs++
		case manifest.File:
			if n.entry.Link == 0 || !seenLink[n.entry.Link] {
				seenLink[n.entry.Link] = true
				t.totals.Files++
				t.totals.Bytes += uint64(n.entry.Size)
			}
		}
		if n.path == "/" {
			t.root = n.entry
			continue
		}
		t.totals.Entries++
		dir := path.Dir(n.path)
		below[dir] = append(below[dir], n.entry)
	}
	if t.root.Type != manifest.Dir {
		return fmt.Errorf("tree without a root: %w", manifest.ErrInvalid)
	}
	return nil
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// find returns the node at the canonical path p.
func (t *tree) find(p string) (*node, bool) {
	i, ok := slices.BinarySearchFunc(t.nodes, p, func(n *node, p string) int { return strings.Compare(n.path, p) })
	if !ok {
		return nil, false
	}
	return t.nodes[i], true
}

// order adds the order in which the files are wanted to the metadata. It is zero
// if there is none worth telling.
func (t *tree) order() (manifest.Digest, error) {
	files := make([]manifest.Mark, 0, len(t.nodes))
	for _, n := range t.nodes {
		if n.entry.Type == manifest.File && n.entry.Size > 0 {
			files = append(files, manifest.Mark{Path: n.path, Rank: n.item.rank()})
		}
	}
	o := manifest.MakeOrder(files)
	if len(o) == 0 {
		return manifest.Digest{}, nil
	}
	b, err := o.Encode()
	if err != nil {
		return manifest.Digest{}, err
	}
	d := manifest.Sum(b)
	return d, t.meta.put(d, b)
}

// index encodes why each path is in, and where the bytes of the files are.
func (t *tree) index(root string) ([]byte, error) {
	var w indexWriter
	for _, n := range t.nodes {
		if n.path == "/" {
			continue
		}
		e := n.listed()
		if err := w.add(&e); err != nil {
			return nil, err
		}
	}
	return w.finish(root, 0), nil
}

func (n *node) listed() Entry {
	e := Entry{Path: n.path, Type: n.entry.Type, Reasons: n.item.reasons, Secret: n.item.secret, Modified: n.item.modified, Frozen: n.frozen}
	if n.fresh() {
		e.Reasons = append(slices.Clone(e.Reasons), Reason{ClassRule, n.item.fresh})
		slices.SortStableFunc(e.Reasons, func(a, b Reason) int { return cmp.Compare(a.Class, b.Class) })
	}
	if e.Identity, e.racy = n.identity(); e.Type == manifest.File {
		e.Size, e.Digest = n.entry.Size, n.entry.Digest
	}
	return e
}
