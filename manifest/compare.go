package manifest

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
)

// A Change is a path at which two trees differ: Before is nil if it has come, After
// if it has gone.
type Change struct {
	Path          string
	Before, After *Entry
}

// Compare finds the paths at which the trees of two snapshots differ, in their byte
// order. What both have in common is not visited: not a folder, and not a page of a
// large one. Directories of one depth are asked for together, so that it takes a few
// requests, whatever the size.
//
// A folder has changed if its attributes have; that there are others in it shows in
// those, and its time of modification does not count.
func Compare(ctx context.Context, src MetaSource, before, after *Snapshot) ([]Change, error) {
	c := comparing{src: src, limit: 2*(before.Totals.Entries+after.Totals.Entries) + cutEntries}
	if !before.Root.alike(&after.Root) {
		c.changes = append(c.changes, Change{"/", &before.Root, &after.Root})
	}
	level := []both{{path: "/", sides: [2]side{{digest: before.Root.Digest}, {digest: after.Root.Digest}}}}
	for len(level) > 0 {
		var err error
		if level, err = c.descend(ctx, level); err != nil {
			return nil, fmt.Errorf("compare snapshots %d and %d of %s: %w", before.Sequence, after.Sequence, after.Service, err)
		}
	}
	slices.SortFunc(c.changes, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return c.changes, nil
}

// alike reports whether two entries are the same to who looks at them alone.
func (e *Entry) alike(o *Entry) bool {
	a := *e
	if a.Type == Dir && o.Type == Dir {
		a.Digest, a.Mtime = o.Digest, o.Mtime
	}
	// Of how many names of a file are in the tree the others tell.
	a.Links, a.Link = o.Links, o.Link
	// Of two roots neither has a name; chunks follow from the content.
	a.Name, a.Chunks = o.Name, o.Chunks
	return a.Equal(o)
}

// A Pair is a directory as it was and as it is, by its digests. A zero digest is one
// without names.
type Pair struct{ Before, After Digest }

// CompareDirectories finds of each pair the names of which the entries differ, in
// anything that they say, in the order of the names: a Change's Path is the name alone.
// Pages that both directories of a pair have are not read, and those of all pairs are
// asked for together. What is below the directories is not looked at. Of more than limit
// names, in the pages that are read, the error wraps ErrInvalid.
func CompareDirectories(ctx context.Context, src MetaSource, pairs []Pair, limit uint64) ([][]Change, error) {
	c := comparing{src: src, limit: limit}
	level := make([]both, len(pairs))
	for i, p := range pairs {
		if p.Before != p.After {
			level[i].sides = [2]side{{digest: p.Before}, {digest: p.After}}
		}
	}
	if err := c.read(ctx, level); err != nil {
		return nil, fmt.Errorf("compare directories: %w", err)
	}
	all := make([][]Change, len(pairs))
	for i := range level {
		names := level[i].differing()
		for name, before := range names[0] {
			if after := names[1][name]; after == nil || !before.Equal(after) {
				all[i] = append(all[i], Change{name, before, after})
			}
		}
		for name, after := range names[1] {
			if names[0][name] == nil {
				all[i] = append(all[i], Change{name, nil, after})
			}
		}
		slices.SortFunc(all[i], func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	}
	return all, nil
}

// both are the directories that two trees have at one path. One of them may be absent.
type both struct {
	path  string
	sides [2]side
}

// A side is one directory: the pages of which the digests alone are known, and the
// leaves. Before it is opened there is only its digest.
type side struct {
	digest Digest
	asked  []Digest
	leaves map[Digest][]Entry
}

type comparing struct {
	src     MetaSource
	limit   uint64 // of names, in leaves and indices, that may still be read
	changes []Change
}

// descend compares the directories of one depth, and returns those below that differ.
func (c *comparing) descend(ctx context.Context, level []both) (below []both, err error) {
	if err := c.read(ctx, level); err != nil {
		return nil, err
	}
	for i := range level {
		if below, err = c.names(&level[i], below); err != nil {
			return nil, err
		}
	}
	return below, nil
}

// read reads of all directories the leaves that only one side has.
func (c *comparing) read(ctx context.Context, level []both) error {
	for i := range level {
		for k := range level[i].sides {
			s := &level[i].sides[k]
			s.leaves = map[Digest][]Entry{}
			if !s.digest.IsZero() {
				s.asked = []Digest{s.digest}
			}
		}
	}
	for depth := 0; ; depth++ {
		if depth > maxDepth+1 {
			return fmt.Errorf("a directory of more than %d levels: %w", maxDepth, ErrInvalid)
		}
		if more, err := c.open(ctx, level); err != nil || !more {
			return err
		}
	}
}

// open reads the pages that were asked for and that only one of the sides has. It
// reports whether there are further ones below them.
func (c *comparing) open(ctx context.Context, level []both) (more bool, err error) {
	var digests []Digest
	var places []*side
	for i := range level {
		a, b := &level[i].sides[0], &level[i].sides[1]
		here, common := map[Digest]bool{}, map[Digest]bool{}
		for _, d := range b.asked {
			here[d] = true
		}
		for _, d := range a.asked {
			common[d] = here[d]
		}
		for _, s := range []*side{a, b} {
			for _, d := range s.asked {
				if !common[d] {
					digests, places = append(digests, d), append(places, s)
				}
			}
			s.asked = nil
		}
	}
	for start := 0; start < len(digests); start += MaxBatch {
		end := min(start+MaxBatch, len(digests))
		bodies, err := c.src.Meta(ctx, digests[start:end])
		if err != nil {
			return false, err
		}
		for i, body := range bodies {
			p, err := DecodePage(body)
			if err != nil {
				return false, fmt.Errorf("page %v: %w", digests[start+i], err)
			}
			n := uint64(len(p.Entries) + len(p.Children))
			if n > c.limit {
				return false, fmt.Errorf("there is more than the snapshots say: %w", ErrInvalid)
			}
			c.limit -= n
			s := places[start+i]
			if p.Children == nil {
				s.leaves[digests[start+i]] = p.Entries
				continue
			}
			for _, child := range p.Children {
				s.asked = append(s.asked, child.Digest)
			}
			more = true
		}
	}
	return more, nil
}

// differing returns the entries of both directories by name, but those in leaves that
// both have.
func (d *both) differing() (names [2]map[string]*Entry) {
	for k := range d.sides {
		names[k] = map[string]*Entry{}
		for digest, entries := range d.sides[k].leaves {
			if _, same := d.sides[1-k].leaves[digest]; same {
				continue
			}
			for i := range entries {
				names[k][entries[i].Name] = &entries[i]
			}
		}
	}
	return names
}

// names compares the entries of two directories, as far as their leaves differ.
func (c *comparing) names(d *both, below []both) ([]both, error) {
	names := d.differing()
	visit := func(name string, before, after *Entry) error {
		p := path.Join(d.path, name)
		if !ValidPath(p) {
			return fmt.Errorf("path %.300q: %w", p, ErrInvalid)
		}
		if before == nil || after == nil || !before.alike(after) {
			c.changes = append(c.changes, Change{p, before, after})
		}
		var s [2]side
		if before != nil && before.Type == Dir {
			s[0].digest = before.Digest
		}
		if after != nil && after.Type == Dir {
			s[1].digest = after.Digest
		}
		if s[0].digest != s[1].digest {
			below = append(below, both{path: p, sides: s})
		}
		return nil
	}
	for name, before := range names[0] {
		if err := visit(name, before, names[1][name]); err != nil {
			return nil, err
		}
	}
	for name, after := range names[1] {
		if names[0][name] == nil {
			if err := visit(name, nil, after); err != nil {
				return nil, err
			}
		}
	}
	return below, nil
}
