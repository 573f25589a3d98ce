package store

import (
	"context"
	"errors"
	"fmt"
	"path"

	"srvfs/manifest"
)

// PrefetchSince is [Reader.Prefetch] of a snapshot of which an earlier one, before, has
// been brought whole: it looks at what is different in it and at nothing else, so that one
// change among a million files costs one change. What of the earlier one was damaged or
// went since then it does not see; a Prefetch does, and has to follow from time to time.
// The Total of its Progress is what it has found to be different. The error wraps
// ErrNotCompared if the two can't be compared: a Prefetch may succeed then.
func (r *Reader) PrefetchSince(ctx context.Context, before, snap *manifest.Snapshot, report func(Progress)) error {
	return (&prefetch{r: r, snap: snap, before: before}).do(ctx, report)
}

// ErrNotCompared: of two snapshots it could not be told what is different.
var ErrNotCompared = errors.New("not compared with the snapshot before")

// A pair is a folder as an earlier tree has it, if it does, and as a later one does.
type pair struct {
	path  string
	pages manifest.Pair
}

// comparePairs is how many folders are compared together: all of what differs in them is
// in memory.
const comparePairs = 64

// metaSource makes a metaFunc that finds all pages, or fails, a [manifest.MetaSource].
type metaSource metaFunc

// Meta implements [manifest.MetaSource].
func (f metaSource) Meta(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
	return f(ctx, digests)
}

// changes is the stage of all files that an earlier snapshot does not have at their paths,
// or not with this content.
func (t *tour) changes(ctx context.Context, before *manifest.Snapshot, visit func(manifest.Content) error) error {
	most := before.Totals.Entries + t.snap.Totals.Entries
	stack := []pair{{"/", manifest.Pair{Before: before.Root.Digest, After: t.snap.Root.Digest}}}
	for found := uint64(0); len(stack) > 0; {
		n := max(0, len(stack)-comparePairs)
		batch := append([]pair(nil), stack[n:]...)
		stack = stack[:n]
		pages := make([]manifest.Pair, len(batch))
		for i := range batch {
			pages[i] = batch[i].pages
		}
		all, err := manifest.CompareDirectories(ctx, metaSource(t.meta), pages, 2*most+walkPages)
		if err != nil {
			return fmt.Errorf("%w, %d: %w", ErrNotCompared, before.Sequence, err)
		}
		for i, changes := range all {
			if found += uint64(len(changes)); found > most {
				return fmt.Errorf("%s: the trees have more than the %d entries that they say: %w", t.snap.Service, most, manifest.ErrInvalid)
			}
			for _, c := range changes {
				p := path.Join(batch[i].path, c.Path)
				if len(p) > maxTreePath {
					return fmt.Errorf("%s: %.80s...: path of %d bytes: %w", t.snap.Service, p, len(p), manifest.ErrInvalid)
				}
				below, err := t.changed(p, c, visit)
				if err != nil {
					return err
				}
				if below.After != below.Before {
					stack = append(stack, pair{p, below})
				}
			}
		}
	}
	return nil
}

// changed visits a file that is another now, and returns what to compare of a folder.
func (t *tour) changed(p string, c manifest.Change, visit func(manifest.Content) error) (below manifest.Pair, err error) {
	now := c.After
	if now == nil {
		return below, nil
	}
	was := c.Before
	if was == nil || was.Type != now.Type {
		was = &manifest.Entry{}
	}
	switch id := identify(p, now); {
	case now.Type == manifest.Dir:
		below = manifest.Pair{Before: was.Digest, After: now.Digest}
	case now.Type == manifest.File && was.Digest != now.Digest && !t.done[id]:
		if now.Link != 0 {
			t.done[id] = true
		}
		err = visit(now.Content(p))
	}
	return below, err
}
