package store

import (
	"context"
	"fmt"
	"sync"

	"srvfs/manifest"
)

// A key names a piece of work that must not be done twice at a time.
type key struct {
	kind   work
	digest manifest.Digest
}

type work uint8

const (
	workMeta   work = iota // fetch a page or chunk list
	workLocal              // check the blob, else look for an identical host file and pin it
	workBlob               // bring in a small file
	workFill               // bring in all chunks of a large one
	workStream             // the same in the background: what yields to demand must not be what demand waits for
)

// An asker is on whose behalf a flight is made. When it fails, another asker
// may have better sources, or more right to an answer, and tries itself.
type asker struct {
	reader     *Reader
	background bool
}

// A flight is one piece of work, or a batch of them, and those who wait for it.
type flight struct {
	by      asker
	keys    []key
	done    chan struct{}
	errs    map[key]error // of keys that failed; set before done is closed
	waiters int
	cancel  context.CancelFunc
}

// flights makes callers who want the same share the work. It differs from
// singleflight in that it batches, and in that a caller who leaves takes
// nothing away from the others: the work ends when the last one left.
type flights struct {
	ctx  context.Context
	work *sync.WaitGroup

	mu     sync.Mutex
	aloft  map[key]*flight
	closed bool
}

var errClosed = fmt.Errorf("the store is being closed: %w", manifest.ErrUnavailable)

// close makes further work fail. The caller cancels what is under way.
func (f *flights) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
}

// do returns when all keys are done, by this call or by others, with the
// errors of those that failed. Of the keys that nobody is at, fn gets those
// together in mine, in a goroutine of its own. If ctx ends first all keys that
// are not done have its error.
func (f *flights) do(ctx context.Context, by asker, keys []key, fn func(ctx context.Context, mine []key) map[key]error) map[key]error {
	errs := map[key]error{}
	for attempt := 1; len(keys) > 0; attempt++ {
		board := f.board(by, keys, fn)
		if board == nil {
			return failAll(errs, keys, errClosed)
		}
		var again []key
		for fl, ks := range board {
			select {
			case <-fl.done:
			case <-ctx.Done():
				f.leave(board)
				return failAll(errs, keys, context.Cause(ctx))
			}
			for _, k := range ks {
				if err := fl.errs[k]; err == nil {
					delete(errs, k)
				} else if errs[k] = err; fl.by != by && attempt < 3 && ctx.Err() == nil {
					again = append(again, k)
				}
			}
		}
		keys = again
	}
	return errs
}

// one is do for a single key.
func (f *flights) one(ctx context.Context, by asker, k key, fn func(ctx context.Context) error) error {
	return f.do(ctx, by, []key{k}, func(ctx context.Context, _ []key) map[key]error {
		if err := fn(ctx); err != nil {
			return map[key]error{k: err}
		}
		return nil
	})[k]
}

// spawn runs fn in a goroutine that [Store.Close] waits for. It reports false,
// and does not, when the store is being closed.
func (f *flights) spawn(fn func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.work.Go(fn)
	return true
}

func failAll(errs map[key]error, keys []key, err error) map[key]error {
	for _, k := range keys {
		errs[k] = err
	}
	return errs
}

// board joins the flights that are at some of the keys, and starts one for the
// others.
func (f *flights) board(by asker, keys []key, fn func(context.Context, []key) map[key]error) map[*flight][]key {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	if f.aloft == nil {
		f.aloft = map[key]*flight{}
	}
	board := map[*flight][]key{}
	var own *flight
	for _, k := range keys {
		fl := f.aloft[k]
		if fl == nil {
			if own == nil {
				own = &flight{by: by, done: make(chan struct{})}
			}
			own.keys = append(own.keys, k)
			f.aloft[k] = own
			fl = own
		}
		if board[fl] == nil {
			fl.waiters++
		}
		board[fl] = append(board[fl], k)
	}
	if own != nil {
		var ctx context.Context
		ctx, own.cancel = context.WithCancel(f.ctx)
		f.work.Go(func() {
			errs := fn(ctx, own.keys)
			if f.ctx.Err() != nil && errs != nil {
				errs = failAll(errs, own.keys, errClosed)
			}
			own.cancel()
			f.land(own, errs)
		})
	}
	return board
}

func (f *flights) land(fl *flight, errs map[key]error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget(fl)
	fl.errs = errs
	close(fl.done)
}

// forget lets nobody join fl any more.
func (f *flights) forget(fl *flight) {
	for _, k := range fl.keys {
		if f.aloft[k] == fl {
			delete(f.aloft, k)
		}
	}
}

// leave ends the caller's part in flights, and those that nobody waits for.
func (f *flights) leave(board map[*flight][]key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for fl := range board {
		if fl.waiters--; fl.waiters == 0 {
			fl.cancel()
			f.forget(fl)
		}
	}
}
