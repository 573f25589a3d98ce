package daemon

import (
	"context"
	"errors"
	"time"

	"srvfs/manifest"
	"srvfs/store"
)

// A bringer brings the content of one snapshot of a service after the other here. Once it
// has brought one it looks at what is different in the next, and at nothing else.
type bringer struct {
	whole  *manifest.Snapshot // the last that it has brought
	walked time.Time          // when all of one was looked at last
}

// walkEvery is how often at most all of a snapshot is looked at all the same: a pinned host
// file may have changed, or something have been damaged.
const walkEvery = time.Hour

func (b *bringer) bring(ctx context.Context, o *opened) error {
	if b.whole != nil && time.Since(b.walked) < walkEvery {
		err := o.reader.PrefetchSince(ctx, b.whole, o.snapshot, nil)
		if err == nil {
			b.whole = o.snapshot
		}
		// Of the one before something may not be there any more that it takes to compare.
		if !errors.Is(err, store.ErrNotCompared) || ctx.Err() != nil {
			return err
		}
	}
	began := time.Now()
	if err := o.reader.Prefetch(ctx, o.snapshot, nil); err != nil {
		return err
	}
	b.whole, b.walked = o.snapshot, began
	return nil
}
