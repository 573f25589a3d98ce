package manifest

import (
	"context"
	"fmt"
	"path"
	"slices"
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
		digest := root.Digest
		root = *edits[0].Entry
		root.Digest, edits = digest, edits[1:]
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

// directory applies the edits, all of which are below the directory dir at p, to it.
func (a *applying) directory(dir *Entry, p string, edits []Edit) error {
	var entries []Entry
	if !dir.Digest.IsZero() {
		var err error
		if entries, err = ReadDirectory(a.ctx, a.src, dir.Digest, a.totals.Entries); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	prefix := strings.TrimSuffix(p, "/") + "/"
	// The paths are in byte order, in which "a", "a.b" and "a/c" follow each other: so
	// what is below a name need not stand beside it.
	below := map[string][]Edit{}
	var own []Edit
	for _, e := range edits {
		rest, ok := strings.CutPrefix(e.Path, prefix)
		if !ok {
			return fmt.Errorf("edit of %.300q below %.300q: %w", e.Path, p, ErrInvalid)
		}
		if name, _, deep := strings.Cut(rest, "/"); deep {
			below[name] = append(below[name], e)
		} else {
			own = append(own, e)
		}
	}
	merged := make([]Entry, 0, len(entries)+len(own))
	for len(entries) > 0 || len(own) > 0 {
		var e, old *Entry
		given := false
		switch {
		case len(own) == 0 || len(entries) > 0 && entries[0].Name < path.Base(own[0].Path):
			old, e, entries = &entries[0], &entries[0], entries[1:]
		default:
			name := path.Base(own[0].Path)
			if len(entries) > 0 && entries[0].Name == name {
				old, entries = &entries[0], entries[1:]
			}
			e, given = own[0].Entry, true
			own = own[1:]
			if e != nil {
				fresh := *e
				fresh.Name = name
				e = &fresh
			}
		}
		name := ""
		if e != nil {
			name = e.Name
		} else if old != nil {
			name = old.Name
		}
		under := below[name]
		delete(below, name)
		e, err := a.name(old, e, given, prefix+name, under)
		if err != nil {
			return err
		}
		if e != nil {
			merged = append(merged, *e)
		}
	}
	for name := range below {
		return fmt.Errorf("edit below %.300q, which is not there: %w", prefix+name, ErrInvalid)
	}
	dir.Links = 2
	for i := range merged {
		if merged[i].Type == Dir {
			dir.Links++
		}
	}
	d, err := EncodeDirectory(merged, a.put)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	dir.Digest = d
	return nil
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
