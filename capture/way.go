package capture

import (
	"path"
	"slices"
	"strings"

	"srvfs/capture/trace"
	"srvfs/manifest"
)

// A step is one question to a directory of the snapshot.
type step struct {
	path   string // canonical: this name is looked up in the folder above
	listed bool   // and if it is a folder, its names may be read
}

// way returns the steps that the accesses take, in their order: each symlink on
// the way, what it leads to, and what the kernel opens by itself. The names
// that do not exist are there as well: that is a question too.
func (c *closure) way(accesses []trace.Access) []step {
	var out []step
	walk := func(a trace.Access) string {
		root, prefix, p := c.rootOf(a)
		resolve := root.Resolve
		if a.NoFollow {
			resolve = root.ResolveParent
		}
		canonical, links, _ := resolve(p)
		for _, l := range links {
			out = append(out, step{path: path.Join(prefix, l)})
		}
		canonical = path.Join(prefix, canonical)
		out = append(out, step{path: canonical, listed: a.Op == trace.Dir})
		return canonical
	}
	executed := map[string]bool{}
	for _, a := range accesses {
		canonical := walk(a)
		if a.Op != trace.Exec || executed[canonical] {
			continue
		}
		executed[canonical] = true
		for _, p := range c.kernelOpens(canonical) {
			walk(trace.Access{Path: p, Root: "/"})
		}
	}
	return out
}

// lead returns the digests of the directory pages that a standby reads on the
// way, and then of the chunk lists of the files that are touched: each once, in
// the order in which they are needed, those of the root first. A view reads a
// directory whole when a name in it is asked for; of one of very many pages
// only those are there in which a name on the way stands.
func (t *tree) lead(way []step, touches []manifest.Touch) ([]manifest.Digest, error) {
	l := leader{tree: t, seen: map[manifest.Digest]bool{}, visited: map[string]bool{"/": true}}
	l.add(t.root.Digest)
	for _, s := range way {
		if err := l.visit(s.path); err != nil {
			return nil, err
		}
		if n, ok := t.find(s.path); ok && s.listed && n.entry.Type == manifest.Dir {
			if err := l.all(n.entry.Digest, ""); err != nil {
				return nil, err
			}
		}
	}
	for _, touch := range touches { // those that are written to may be on nobody's way
		if err := l.visit(touch.Path); err != nil {
			return nil, err
		}
	}
	for _, touch := range touches {
		if n, ok := t.find(touch.Path); ok {
			l.add(n.entry.Chunks)
		}
	}
	return l.out, nil
}

type leader struct {
	tree    *tree
	out     []manifest.Digest
	seen    map[manifest.Digest]bool
	visited map[string]bool
}

func (l *leader) add(d manifest.Digest) {
	if !d.IsZero() && !l.seen[d] {
		l.seen[d] = true
		l.out = append(l.out, d)
	}
}

// visit adds the pages of the folders on the path p.
func (l *leader) visit(p string) error {
	if l.visited[p] {
		return nil
	}
	l.visited[p] = true
	dir, name := path.Split(p)
	dir = path.Clean(dir)
	if err := l.visit(dir); err != nil {
		return err
	}
	n, ok := l.tree.find(dir)
	if !ok || n.entry.Type != manifest.Dir {
		return nil
	}
	return l.all(n.entry.Digest, name)
}

// pages adds those in which the name stands, or would.
func (l *leader) pages(d manifest.Digest, name string) error {
	l.add(d)
	p, err := manifest.DecodePage(l.tree.meta[d])
	if err != nil || p.Children == nil {
		return err
	}
	i, ok := slices.BinarySearchFunc(p.Children, name, func(r manifest.PageRef, name string) int { return strings.Compare(r.First, name) })
	if !ok {
		i = max(i-1, 0)
	}
	return l.pages(p.Children[i].Digest, name)
}

// mostListed is the number of pages of a directory, some 4,000 names, up to which
// all of them lead: larger ones are a download of their own, which may never be
// needed, since a program that only changes into a folder counts as well.
const mostListed = 16

// all adds all pages of a directory, or if these are too many those in which the
// name stands, or would; none of them if there is no name.
func (l *leader) all(d manifest.Digest, name string) error {
	l.add(d)
	top, err := manifest.DecodePage(l.tree.meta[d])
	if err != nil || top.Children == nil {
		return err
	}
	below, err := manifest.DecodePage(l.tree.meta[top.Children[0].Digest])
	if err != nil {
		return err
	}
	// An index below another has some 16 pages itself.
	if len(top.Children) > mostListed || below.Children != nil {
		if name == "" {
			return nil
		}
		return l.pages(d, name)
	}
	for _, c := range top.Children {
		l.add(c.Digest)
	}
	return nil
}
