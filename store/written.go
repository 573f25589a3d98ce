package store

import (
	"context"
	"path"
	"strings"

	"srvfs/manifest"
)

// A Written is a file that a snapshot's service is known to write to.
type Written struct {
	Path    string // absolute, without symlinks
	Entry   manifest.Entry
	Folders []manifest.Entry // those that it lies in, the outermost first, the root left out
	Fresh   bool             // it starts empty: see [manifest.Touch]
}

// Written returns the files that the service of a snapshot is known to write
// to, in the order of its profile. Errors are as for Meta.
func (r *Reader) Written(ctx context.Context, snap *manifest.Snapshot) ([]Written, error) {
	f := &finder{root: snap.Root.Digest, pages: map[manifest.Digest]*manifest.Page{}, meta: func(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
		return r.meta(ctx, digests, keepIfPossible)
	}}
	var all []Written
	seen := map[string]bool{}
	for _, t := range snap.Profile {
		if !t.Write || seen[t.Path] || t.Path == "/" {
			continue
		}
		seen[t.Path] = true
		w, err := f.written(ctx, t.Path)
		if err != nil {
			return nil, err
		}
		if w == nil || w.Entry.Type != manifest.File {
			continue
		}
		w.Fresh = t.Fresh && w.Entry.Size == 0
		all = append(all, *w)
	}
	return all, nil
}

// written returns what stands at p with the folders above, or nil.
func (f *finder) written(ctx context.Context, p string) (*Written, error) {
	w := &Written{Path: p, Entry: manifest.Entry{Type: manifest.Dir, Digest: f.root}}
	for name := range strings.SplitSeq(path.Clean(p)[1:], "/") {
		if w.Entry.Type != manifest.Dir {
			return nil, nil
		}
		e, err := f.entry(ctx, w.Entry.Digest, name)
		if e == nil || err != nil {
			return nil, err
		}
		if w.Entry.Name != "" {
			w.Folders = append(w.Folders, w.Entry)
		}
		w.Entry = *e
	}
	return w, nil
}
