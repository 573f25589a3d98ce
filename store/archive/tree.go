package archive

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"srvfs/manifest"
)

// whiteout begins the name that stands for one that has gone; opaque stands in a folder
// of which nothing from the layers below is left. Both are from the OCI image layer
// specification.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// A change is one member of a layer.
type change struct {
	path  string // absolute
	entry *manifest.Entry
	gone  bool // a whiteout of path
	bare  bool // a folder that hides what was there
}

// A comparing walks a tree, or what differs between two. It differs from
// manifest.Compare in that a layer needs more than people do: a folder of which only the
// time has changed, and of a file with several names all of them, because a layer can't
// link to what is in another.
type comparing struct {
	ctx    context.Context
	before manifest.MetaSource // of the tree in the archive; nil: there is none
	after  manifest.MetaSource
	limit  uint64 // of entries in one directory
	// Hard-linked files that are in the layer, by number, and where they stand.
	links  map[uint64]bool
	forced map[string]bool // their names, and the folders above them
	visit  func(change) error
}

// changes passes on what leads from one snapshot to another, the folders before what is
// in them. Without a snapshot before, that is all there is.
func changes(ctx context.Context, beforeSrc, afterSrc manifest.MetaSource, before, after *manifest.Snapshot, visit func(change) error) error {
	c := &comparing{ctx: ctx, before: beforeSrc, after: afterSrc, limit: after.Totals.Entries + 1, visit: visit}
	var old *manifest.Entry
	if before != nil {
		old, c.limit = &before.Root, c.limit+before.Totals.Entries
		// First look which hard-linked files come in.
		c.links, c.visit = map[uint64]bool{}, func(ch change) error {
			if !ch.gone && ch.entry.Link != 0 && ch.entry.Type != manifest.Dir {
				c.links[ch.entry.Link] = true
			}
			return nil
		}
		if err := c.entry(old, &after.Root, "/"); err != nil {
			return err
		}
		if len(c.links) > 0 {
			c.forced = map[string]bool{}
			if err := c.names(&after.Root, "/"); err != nil {
				return err
			}
		}
		c.visit = visit
	}
	return c.entry(old, &after.Root, "/")
}

// names finds all names of the hard-linked files.
func (c *comparing) names(dir *manifest.Entry, p string) error {
	list, err := c.read(c.after, dir.Digest)
	if err != nil {
		return err
	}
	for i := range list {
		e, at := &list[i], path.Join(p, list[i].Name)
		if e.Type == manifest.Dir {
			if err := c.names(e, at); err != nil {
				return err
			}
		} else if e.Link != 0 && c.links[e.Link] {
			for q := at; !c.forced[q]; q = path.Dir(q) {
				c.forced[q] = true
			}
		}
	}
	return nil
}

func (c *comparing) read(src manifest.MetaSource, d manifest.Digest) ([]manifest.Entry, error) {
	if err := c.ctx.Err(); err != nil {
		return nil, err
	}
	if d.IsZero() {
		return nil, nil
	}
	return manifest.ReadDirectory(c.ctx, src, d, c.limit)
}

// same reports whether a layer below has all of the entry, what is below it aside.
func same(old, e *manifest.Entry) bool {
	a := *old
	// Of fewer names of a file the whiteouts tell.
	a.Links = e.Links
	if a.Type == manifest.Dir && e.Type == manifest.Dir {
		a.Digest = e.Digest
	}
	return a.Equal(e)
}

// entry compares what stands at one path; one of both may be nil.
func (c *comparing) entry(old, e *manifest.Entry, p string) error {
	switch {
	case e == nil:
		return c.visit(change{path: p, gone: true})
	case e.Type != manifest.Dir:
		if old == nil || !same(old, e) || c.forced[p] {
			return c.visit(change{path: p, entry: e})
		}
		return nil
	}
	if !manifest.ValidPath(p) {
		return fmt.Errorf("path %.300q: %w", p, manifest.ErrInvalid)
	}
	wasDir := old != nil && old.Type == manifest.Dir
	if wasDir && old.Digest == e.Digest && !c.forced[p] {
		if same(old, e) {
			return nil
		}
		return c.visit(change{path: p, entry: e})
	}
	if err := c.visit(change{path: p, entry: e, bare: old != nil && !wasDir}); err != nil {
		return err
	}
	now, err := c.read(c.after, e.Digest)
	if err != nil {
		return err
	}
	var then []manifest.Entry
	if wasDir {
		if then, err = c.read(c.before, old.Digest); err != nil {
			return err
		}
	}
	for len(now) > 0 || len(then) > 0 {
		var a, b *manifest.Entry
		order := 0
		switch {
		case len(now) == 0:
			order = -1
		case len(then) == 0:
			order = 1
		default:
			order = strings.Compare(then[0].Name, now[0].Name)
		}
		if order <= 0 {
			a, then = &then[0], then[1:]
		}
		if order >= 0 {
			b, now = &now[0], now[1:]
		}
		name := ""
		if b != nil {
			name = b.Name
		} else {
			name = a.Name
		}
		if err := c.entry(a, b, path.Join(p, name)); err != nil {
			return err
		}
	}
	return nil
}

// newMeta passes on the metadata of a snapshot that the archive does not have: what a
// start needs first, then level by level. What is in the archive has all that is below it
// there too.
func newMeta(ctx context.Context, src manifest.MetaSource, snap *manifest.Snapshot, has func([]manifest.Digest) (map[manifest.Digest]bool, error), put func(manifest.Digest, []byte) error) error {
	// What is asked for is a page, or a chunk list or an order, which lead to no other.
	const page, list = 1, 2
	seen := map[manifest.Digest]int{}
	var level []manifest.Digest
	add := func(d manifest.Digest, kind int) {
		if !d.IsZero() && seen[d] == 0 {
			seen[d] = kind
			level = append(level, d)
		}
	}
	add(snap.Root.Digest, page)
	first := slices.Clone(snap.Metadata)
	add(snap.Order, list)
	early := map[manifest.Digest]bool{}
	for _, d := range first {
		early[d] = true
	}
	var budget = 4*(snap.Totals.Entries+1) + 1024
	for len(level) > 0 {
		known, err := has(level)
		if err != nil {
			return err
		}
		want := level[:0:0]
		for _, d := range level {
			if !known[d] {
				want = append(want, d)
			}
		}
		// What the profile leads through stands together.
		slices.SortStableFunc(want, func(a, b manifest.Digest) int { return rank(early[a]) - rank(early[b]) })
		level = nil
		if err := meta(ctx, src, want, func(d manifest.Digest, b []byte) error {
			if err := put(d, b); err != nil {
				return err
			}
			if seen[d] == list {
				return nil
			}
			p, err := manifest.DecodePage(b)
			if err != nil {
				return fmt.Errorf("page %v: %w", d, err)
			}
			n := uint64(len(p.Children) + len(p.Entries))
			if n > budget {
				return fmt.Errorf("there is more than the snapshot says: %w", manifest.ErrInvalid)
			}
			budget -= n
			for _, c := range p.Children {
				add(c.Digest, page)
			}
			for i := range p.Entries {
				if e := &p.Entries[i]; e.Type == manifest.Dir {
					add(e.Digest, page)
				} else {
					add(e.Chunks, list)
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func rank(early bool) int {
	if early {
		return 0
	}
	return 1
}
