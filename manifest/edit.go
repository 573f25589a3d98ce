package manifest

import (
	"context"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"
)

// An Edit says what is at a path of a tree from now on: Entry, or nothing and nothing
// below it. Of a Dir the entry's Digest and Links do not matter: it has what it had if
// it was one before, and the edits below it.
type Edit struct {
	Path  string
	Entry *Entry
}

// Apply edits a tree without visiting what the edits do not touch. It returns the new
// root and totals, and passes the pages of each directory that has changed to put;
// those that it had before may be among them. The result is what encoding the whole
// tree anew would give.
//
// The edits are in the byte order of their paths, no path twice. What a path lies in is
// a directory of the tree, or made by an edit before. The names of one file
// (hard links) are edited together. The error wraps ErrInvalid if the edits are not so.
func Apply(ctx context.Context, src MetaSource, root Entry, totals Totals, edits []Edit, put func(Digest, []byte) error) (Entry, Totals, error) {
	a := applying{ctx: ctx, src: src, put: put, totals: totals, before: map[uint64]*group{}, after: map[uint64]*group{}}
	for i, e := range edits {
		if !ValidPath(e.Path) || i > 0 && e.Path <= edits[i-1].Path {
			return Entry{}, Totals{}, fmt.Errorf("edit of %.300q: not a path, or not in order: %w", e.Path, ErrInvalid)
		}
	}
	if len(edits) > 0 && edits[0].Path == "/" {
		if edits[0].Entry == nil || edits[0].Entry.Type != Dir {
			return Entry{}, Totals{}, fmt.Errorf("edit of the root: it is a directory: %w", ErrInvalid)
		}
		digest, links := root.Digest, root.Links
		root = *edits[0].Entry
		root.Digest, root.Links, edits = digest, links, edits[1:]
	}
	if err := a.directory(&root, "/", edits); err != nil {
		return Entry{}, Totals{}, err
	}
	if err := a.count(a.before, -1); err != nil {
		return Entry{}, Totals{}, err
	}
	if err := a.count(a.after, 1); err != nil {
		return Entry{}, Totals{}, err
	}
	return root, a.totals, root.validate(true)
}

type applying struct {
	ctx    context.Context
	src    MetaSource
	put    func(Digest, []byte) error
	totals Totals
	// The hard links that have gone and come, by their number.
	before, after map[uint64]*group
}

// A group is a file with several names, of which some were seen.
type group struct {
	seen, names uint32
	size        int64
}

// directory applies the edits, all of which are below the directory dir at p, to it. Of
// its leaves it decodes those in which a name is edited, and after one of which the cuts
// have moved those up to where they are what they were.
func (a *applying) directory(dir *Entry, p string, edits []Edit) error {
	prefix := strings.TrimSuffix(p, "/") + "/"
	names, err := sortOut(prefix, edits)
	if err != nil {
		return err
	}
	old, err := a.leaves(dir.Digest)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if dir.Digest.IsZero() {
		dir.Links = 2
	}
	var refs []PageRef
	var open []Entry // of leaves that have not been cut yet
	for i, ref := range old {
		mine := names
		if i+1 < len(old) {
			k := sort.Search(len(names), func(k int) bool { return names[k].name >= old[i+1].First })
			mine, names = names[:k], names[k:]
		}
		if len(mine) == 0 && len(open) == 0 && ref.Count > 0 {
			refs = append(refs, ref)
			continue
		}
		entries, err := a.leaf(ref, len(old) > 1)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		entries, err = a.merge(dir, prefix, entries, mine)
		if err != nil {
			return err
		}
		for open = append(open, entries...); len(open) > 0; {
			ref, n, cut, err := putLeaf(open, a.put)
			if err != nil {
				return err
			}
			if !cut && i+1 < len(old) {
				break // what comes next belongs to it
			}
			refs, open = append(refs, ref), open[n:]
		}
	}
	if len(refs) == 0 {
		ref, _, _, err := putLeaf(nil, a.put)
		if err != nil {
			return err
		}
		refs = append(refs, ref)
	}
	if dir.Digest, err = encodeIndex(refs, a.put); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

// A named is a name in a directory that is edited: the edit of itself, if there is one,
// and those of what is below it.
type named struct {
	name  string
	own   *Edit
	below []Edit
}

// sortOut sorts edits by the names of a directory. The paths are in byte order, in which
// "a", "a.b" and "a/c" follow each other: so what is below a name need not stand beside it.
func sortOut(prefix string, edits []Edit) ([]named, error) {
	var names []named
	at := map[string]int{}
	for i := range edits {
		rest, ok := strings.CutPrefix(edits[i].Path, prefix)
		if !ok {
			return nil, fmt.Errorf("edit of %.300q below %.300q: %w", edits[i].Path, prefix, ErrInvalid)
		}
		name, _, deep := strings.Cut(rest, "/")
		k, ok := at[name]
		if !ok {
			k = len(names)
			at[name] = k
			names = append(names, named{name: name})
		}
		if deep {
			names[k].below = append(names[k].below, edits[i])
		} else {
			names[k].own = &edits[i]
		}
	}
	slices.SortFunc(names, func(a, b named) int { return strings.Compare(a.name, b.name) })
	return names, nil
}

// leaves returns the leaves of a directory; of a new one, one that is empty.
func (a *applying) leaves(d Digest) ([]PageRef, error) {
	if d.IsZero() {
		return []PageRef{{}}, nil
	}
	refs := []PageRef{{Digest: d}}
	for level := 0; ; level++ {
		if level > maxDepth {
			return nil, fmt.Errorf("directory %v: more than %d levels: %w", d, maxDepth, ErrInvalid)
		}
		// All pages of a level are of one kind.
		first, err := a.page(refs[0], level > 0)
		if err != nil {
			return nil, err
		}
		if first.Children == nil {
			if level == 0 {
				refs[0].Count = first.count()
			}
			return refs, nil
		}
		below := first.Children
		for _, ref := range refs[1:] {
			p, err := a.page(ref, true)
			if err != nil {
				return nil, err
			}
			if p.Children == nil || p.Children[0].First <= below[len(below)-1].First {
				return nil, fmt.Errorf("directory %v: page %v is not one that belongs there: %w", d, ref.Digest, ErrInvalid)
			}
			below = append(below, p.Children...)
		}
		if n := (&Page{Children: below}).count(); n > a.totals.Entries {
			return nil, fmt.Errorf("directory %v: more than %d entries: %w", d, a.totals.Entries, ErrInvalid)
		}
		refs = below
	}
}

// page reads one page.
func (a *applying) page(ref PageRef, indexed bool) (Page, error) {
	bodies, err := a.src.Meta(a.ctx, []Digest{ref.Digest})
	if err != nil {
		return Page{}, err
	}
	p, err := DecodePage(bodies[0])
	if err == nil {
		err = p.check(ref, indexed)
	}
	if err != nil {
		return Page{}, fmt.Errorf("directory page %v: %w", ref.Digest, err)
	}
	return p, nil
}

// leaf reads the entries of a leaf.
func (a *applying) leaf(ref PageRef, indexed bool) ([]Entry, error) {
	if ref.Digest.IsZero() {
		return nil, nil
	}
	p, err := a.page(ref, indexed)
	if err == nil && p.Children != nil {
		err = fmt.Errorf("directory page %v: leaf and index on one level: %w", ref.Digest, ErrInvalid)
	}
	return p.Entries, err
}

// merge applies the edits of names to entries of dir.
func (a *applying) merge(dir *Entry, prefix string, entries []Entry, names []named) ([]Entry, error) {
	merged := make([]Entry, 0, len(entries)+len(names))
	for len(entries) > 0 || len(names) > 0 {
		if len(names) == 0 || len(entries) > 0 && entries[0].Name < names[0].name {
			merged, entries = append(merged, entries[0]), entries[1:]
			continue
		}
		var e, old *Entry
		n := names[0]
		names = names[1:]
		if len(entries) > 0 && entries[0].Name == n.name {
			old, entries = &entries[0], entries[1:]
			e = old
		}
		if n.own != nil {
			if e = nil; n.own.Entry != nil {
				fresh := *n.own.Entry
				fresh.Name = n.name
				e = &fresh
			}
		}
		wasDir := old != nil && old.Type == Dir // before it is edited in its place
		e, err := a.name(old, e, n.own != nil, prefix+n.name, n.below)
		if err != nil {
			return nil, err
		}
		if e != nil && e.Type == Dir {
			dir.Links++
		}
		if wasDir {
			dir.Links--
		}
		if e == nil {
			continue
		}
		if err := e.validate(false); err != nil {
			return nil, err
		}
		merged = append(merged, *e)
	}
	return merged, nil
}

// name puts e in the place of old, one of which may be nil, with the edits below it.
func (a *applying) name(old, e *Entry, given bool, p string, under []Edit) (*Entry, error) {
	wasDir, isDir := old != nil && old.Type == Dir, e != nil && e.Type == Dir
	if given {
		if wasDir && !isDir {
			if err := a.gone(old.Digest, p); err != nil {
				return nil, err
			}
		}
		a.tally(old, a.before, -1)
		a.tally(e, a.after, 1)
	}
	if !isDir {
		// What is below something that has gone has gone too.
		if slices.ContainsFunc(under, func(e Edit) bool { return e.Entry != nil }) || e != nil && len(under) > 0 || !given && len(under) > 0 {
			return nil, fmt.Errorf("edit below %.300q, which is no directory: %w", p, ErrInvalid)
		}
		return e, nil
	}
	if given {
		switch {
		case wasDir:
			e.Digest = old.Digest
			e.Links = old.Links
		default:
			e.Digest = Digest{}
		}
	}
	if len(under) > 0 || e.Digest.IsZero() {
		if err := a.directory(e, p, under); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// gone counts what was in a directory that is there no more.
func (a *applying) gone(d Digest, p string) error {
	entries, err := ReadDirectory(a.ctx, a.src, d, a.totals.Entries)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	for i := range entries {
		e := &entries[i]
		a.tally(e, a.before, -1)
		if e.Type == Dir {
			if err := a.gone(e.Digest, path.Join(p, e.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// tally adds one name to the totals, or takes it away; files with several names are
// noted, and counted in the end.
func (a *applying) tally(e *Entry, links map[uint64]*group, by int) {
	if e == nil {
		return
	}
	a.totals.Entries += uint64(by)
	switch {
	case e.Type == Dir:
		a.totals.Dirs += uint64(by)
	case e.Link != 0:
		g := links[e.Link]
		if g == nil {
			g = &group{names: e.Links, size: -1}
			links[e.Link] = g
		}
		g.seen++
		if e.Type == File {
			g.size = e.Size
		}
	case e.Type == File:
		a.totals.Files += uint64(by)
		a.totals.Bytes += uint64(int64(by) * e.Size)
	}
}

func (a *applying) count(links map[uint64]*group, by int) error {
	for _, g := range links {
		if g.seen != g.names {
			return fmt.Errorf("%d of the %d names of a file are edited: %w", g.seen, g.names, ErrInvalid)
		}
		if g.size >= 0 {
			a.totals.Files += uint64(by)
			a.totals.Bytes += uint64(int64(by) * g.size)
		}
	}
	return nil
}
