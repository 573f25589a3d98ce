package store

import (
	"context"

	"srvfs/manifest"
)

// A tour passes each file of a snapshot once, in stages: first those of the
// profile in its order, then those of each rank that the snapshot's order has.
type tour struct {
	snap    *manifest.Snapshot
	meta    metaFunc
	ranking *manifest.Ranking
	done    map[fileID]bool
}

// A fileID tells files apart: those with several names by their link number.
type fileID struct {
	link uint64
	path string
}

func identify(p string, e *manifest.Entry) fileID {
	if e.Link != 0 {
		return fileID{link: e.Link}
	}
	return fileID{path: p}
}

// newTour begins a tour. It asks for the metadata that the profile leads
// through, and for the order: without one there is a single stage after the
// profile, for an order is a hint.
func newTour(ctx context.Context, snap *manifest.Snapshot, meta metaFunc) (*tour, error) {
	t := &tour{snap: snap, meta: meta, done: map[fileID]bool{}}
	if len(snap.Metadata) > 0 {
		if _, err := meta(ctx, snap.Metadata); err != nil {
			return nil, err
		}
	}
	var order manifest.Order
	if !snap.Order.IsZero() {
		pages, err := meta(ctx, []manifest.Digest{snap.Order})
		if err != nil && ctx.Err() != nil {
			return nil, err
		}
		if err == nil && pages[0] != nil {
			if order, err = manifest.DecodeOrder(pages[0]); err != nil {
				return nil, err
			}
		}
	}
	t.ranking = order.Ranking()
	return t, nil
}

// profile is the stage before those of the ranks.
func (t *tour) profile(ctx context.Context, visit func(manifest.Content) error) error {
	f := &finder{root: t.snap.Root.Digest, meta: t.meta, pages: map[manifest.Digest]*manifest.Page{}}
	for _, touch := range t.snap.Profile {
		e, err := f.find(ctx, touch.Path)
		if err != nil {
			return err
		}
		if e == nil || e.Type != manifest.File || t.done[identify(touch.Path, e)] {
			continue // what a touch of another kind means is found by the walk
		}
		t.done[identify(touch.Path, e)] = true
		if err := visit(e.Content(touch.Path)); err != nil {
			return err
		}
	}
	return nil
}

// rank is the stage of one rank. Folders that hold nothing of that rank are not
// looked into.
func (t *tour) rank(ctx context.Context, rank manifest.Rank, visit func(manifest.Content) error) error {
	return walk(ctx, t.snap, t.meta, visitor{
		enter: func(p string) bool { return t.ranking.Has(p, rank) },
		file: func(p string, e *manifest.Entry) error {
			id := identify(p, e)
			if t.done[id] || t.ranking.Of(p) != rank {
				return nil
			}
			if e.Link != 0 { // another name may have another rank
				t.done[id] = true
			}
			return visit(e.Content(p))
		},
	})
}
