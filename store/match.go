package store

import (
	"context"
	"runtime"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// Match looks for all files of a snapshot on the host and pins those that are
// identical: first the files of its profile, then the others by their rank.
// It is meant to run in the background while the snapshot is in use: it hashes
// on a thread of the lowest priority, one file at a time, and stands back while
// anybody waits for content. It fetches metadata that is missing, and no
// files. Without a host root it does nothing.
//
// It returns when all is looked at, or with an error as of Meta, or ctx's.
func (r *Reader) Match(ctx context.Context, snap *manifest.Snapshot) error {
	s := r.store
	if s.host == nil {
		return nil
	}
	meta := func(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
		return r.meta(ctx, digests, keepIfPossible)
	}
	t, err := newTour(ctx, snap, meta)
	if err != nil {
		return err
	}
	visit := func(c manifest.Content) error {
		if s.known(c.Digest) {
			return nil
		}
		if err := s.demand.yield(ctx); err != nil {
			return err
		}
		return s.flights.one(ctx, asker{}, key{workSearch, c.Digest}, func(ctx context.Context) (err error) {
			lowPriority(func() { err = s.findLocal(ctx, c, thorough) })
			return err
		})
	}
	if err := t.profile(ctx, visit); err != nil {
		return err
	}
	for _, rank := range t.ranking.Present() {
		if err := t.rank(ctx, rank, visit); err != nil {
			return err
		}
	}
	return nil
}

// lowPriority runs f on a thread that gets the processor when nobody else
// wants it.
func lowPriority(f func()) {
	runtime.LockOSThread()
	tid := unix.Gettid()
	if unix.Setpriority(unix.PRIO_PROCESS, tid, 19) == nil {
		defer func() {
			// A thread that stays slow must not serve others: still locked, it ends
			// with its goroutine.
			if unix.Setpriority(unix.PRIO_PROCESS, tid, 0) == nil {
				runtime.UnlockOSThread()
			}
		}()
	} else {
		defer runtime.UnlockOSThread()
	}
	f()
}
