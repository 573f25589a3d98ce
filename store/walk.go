package store

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"

	"srvfs/manifest"
)

const (
	// walkPages is how many directory pages a walk asks for together.
	walkPages = 256
	// maxTreePath bounds a path in bytes: a tree whose directories share pages
	// can be deeper than any disk.
	maxTreePath = 64 << 10
)

// A metaFunc returns pages by digest. A nil page is one that is not there.
type metaFunc func(ctx context.Context, digests []manifest.Digest) ([][]byte, error)

// A visitor is told what a walk finds.
type visitor struct {
	// file gets every regular file, those with several names once.
	file func(path string, e *manifest.Entry) error
	// absent, if not nil, gets the pages that meta did not return, and whose they are.
	absent func(path string, page manifest.Digest)
	// enter, if not nil, tells whether to look into a folder.
	enter func(path string) bool
}

type place struct {
	path string
	page manifest.Digest
}

// walk goes through a snapshot's tree, many pages at a time and in no
// particular order. Its memory grows with the tree's width, not its size. A
// tree of more entries than the snapshot says is refused with ErrInvalid:
// pages that are shared could otherwise make a short message an endless tree.
func walk(ctx context.Context, snap *manifest.Snapshot, meta metaFunc, v visitor) error {
	stack := []place{{"/", snap.Root.Digest}}
	links := map[uint64]bool{}
	var entries uint64
	for len(stack) > 0 {
		batch := slices.Clone(stack[max(0, len(stack)-walkPages):])
		stack = stack[:len(stack)-len(batch)]
		digests := make([]manifest.Digest, len(batch))
		for i, p := range batch {
			digests[i] = p.page
		}
		pages, err := meta(ctx, digests)
		if err != nil {
			return err
		}
		for i, b := range pages {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if b == nil {
				if v.absent != nil {
					v.absent(batch[i].path, batch[i].page)
				}
				continue
			}
			page, err := manifest.DecodePage(b)
			if err != nil {
				return fmt.Errorf("%s: %w", batch[i].path, err)
			}
			for _, c := range page.Children {
				stack = append(stack, place{batch[i].path, c.Digest})
			}
			if entries += uint64(len(page.Entries)); entries > snap.Totals.Entries || len(stack) > int(min(snap.Totals.Entries, 1<<40))+walkPages {
				return fmt.Errorf("%s: the tree has more than the %d entries that it says: %w", snap.Service, snap.Totals.Entries, manifest.ErrInvalid)
			}
			for j := range page.Entries {
				e := &page.Entries[j]
				p := path.Join(batch[i].path, e.Name)
				switch {
				case len(p) > maxTreePath:
					return fmt.Errorf("%s: %.80s...: path of %d bytes: %w", snap.Service, p, len(p), manifest.ErrInvalid)
				case e.Type == manifest.Dir:
					if v.enter == nil || v.enter(p) {
						stack = append(stack, place{p, e.Digest})
					}
				case e.Type == manifest.File && (e.Link == 0 || !links[e.Link]):
					if e.Link != 0 {
						links[e.Link] = true
					}
					if err := v.file(p, e); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// A finder looks up paths in a tree and remembers the pages that it has seen.
type finder struct {
	root  manifest.Digest
	meta  metaFunc
	pages map[manifest.Digest]*manifest.Page
}

// find returns the entry at p, or nil. It follows no symlinks.
func (f *finder) find(ctx context.Context, p string) (*manifest.Entry, error) {
	e := &manifest.Entry{Type: manifest.Dir, Digest: f.root}
	for rest := p[1:]; rest != ""; {
		name := rest
		for i := range len(rest) {
			if rest[i] == '/' {
				name = rest[:i]
				break
			}
		}
		rest = rest[min(len(rest), len(name)+1):]
		if e.Type != manifest.Dir {
			return nil, nil
		}
		next, err := f.entry(ctx, e.Digest, name)
		if next == nil || err != nil {
			return nil, err
		}
		e = next
	}
	return e, nil
}

// entry returns the entry of that name in a directory, or nil.
func (f *finder) entry(ctx context.Context, d manifest.Digest, name string) (*manifest.Entry, error) {
	for range 16 { // more levels than an encoded directory has
		page, err := f.page(ctx, d)
		if page == nil || err != nil {
			return nil, err
		}
		if page.Children == nil {
			i, ok := slices.BinarySearchFunc(page.Entries, name, func(e manifest.Entry, name string) int {
				return cmp.Compare(e.Name, name)
			})
			if !ok {
				return nil, nil
			}
			return &page.Entries[i], nil
		}
		i, ok := slices.BinarySearchFunc(page.Children, name, func(c manifest.PageRef, name string) int {
			return cmp.Compare(c.First, name)
		})
		if !ok {
			i--
		}
		if i < 0 {
			return nil, nil
		}
		d = page.Children[i].Digest
	}
	return nil, fmt.Errorf("directory %v has too many levels: %w", d, manifest.ErrInvalid)
}

func (f *finder) page(ctx context.Context, d manifest.Digest) (*manifest.Page, error) {
	if p, ok := f.pages[d]; ok {
		return p, nil
	}
	bodies, err := f.meta(ctx, []manifest.Digest{d})
	if err != nil || bodies[0] == nil {
		return nil, err
	}
	p, err := manifest.DecodePage(bodies[0])
	if err != nil {
		return nil, err
	}
	f.pages[d] = &p
	return &p, nil
}
