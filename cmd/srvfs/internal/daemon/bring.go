package daemon

import (
	"context"
	"errors"
	"time"

	"srvfs/manifest"
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
		if err == nil || ctx.Err() != nil || !errors.Is(err, manifest.ErrInvalid) && !errors.Is(err, manifest.ErrStale) {
			return err
		}
		// It may be of the one before that something is not there any more.
	}
	began := time.Now()
	if err := o.reader.Prefetch(ctx, o.snapshot, nil); err != nil {
		return err
	}
	b.whole, b.walked = o.snapshot, began
	return nil
}
