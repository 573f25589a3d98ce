package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"srvfs/manifest"
)

// A key names a piece of work that must not be done twice at a time.
type key struct {
	kind   work
	digest manifest.Digest
}

type work uint8

const (
	workMeta    work = iota // fetch a page or chunk list
	workLocal               // check the blob, else look for an identical host file and pin it
	workSearch              // the same, thoroughly
	workBlob                // bring in a small file
	workProfile             // a whole stream
	workFill                // bring in all chunks of a large one
	workStream              // the same in the background: what yields to demand must not be what demand waits for
)

// An asker is on whose behalf a flight is made. When it fails, another asker
// may have better sources, or more right to an answer, and tries itself.
type asker struct {
	reader     *Reader
	background bool  // stands back while anybody waits
	ahead      bool  // a guess: of its failure nobody is told
	pace       *pace // of background work that others may overtake; or nil
}

// A flight is one piece of work, or a batch of them, and those who wait for it.
type flight struct {
	by      asker
	errands []*errand
	waiters int // callers that wait for at least one of its errands
	cancel  context.CancelFunc
}

// An errand is one key of a flight. It lands by itself: a file that many are
// fetched with is there for those who wait as soon as it has arrived.
type errand struct {
	key    key
	flight *flight
	done   chan struct{}
	err    error // once done is closed
}

// flights makes callers who want the same share the work. It differs from
// singleflight in that it batches, and in that a caller who leaves takes
// nothing away from the others: the work ends when the last one left.
type flights struct {
	ctx  context.Context
	work *sync.WaitGroup

	mu     sync.Mutex
	aloft  map[key]*errand
	closed bool
}

var errClosed = fmt.Errorf("the store is being closed: %w", manifest.ErrUnavailable)

// close makes further work fail. The caller cancels what is under way.
func (f *flights) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
}

// A landing tells those who wait for a key that it is done, before the whole
// flight is.
type landing func(k key, err error)

// do returns when all keys are done, by this call or by others, with the
// errors of those that failed. Of the keys that nobody is at, fn gets those
// together in mine, in a goroutine of its own; it may let each land as soon as
// it is done, and those that it has not are done when it returns. If ctx ends
// first all keys that are not done have its error.
func (f *flights) do(ctx context.Context, by asker, keys []key, fn func(ctx context.Context, mine []key, land landing) map[key]error) map[key]error {
	errs := map[key]error{}
	for attempt := 1; len(keys) > 0; attempt++ {
		board := f.board(by, keys, fn)
		if board == nil {
			return failAll(errs, keys, errClosed)
		}
		var again []key
		for i, e := range board {
			switch err := f.await(ctx, by, e); {
			case errors.Is(err, errOvertake):
				again = append(again, e.key)
				continue
			case err != nil:
				f.leave(board)
				return failAll(errs, keys[i:], err)
			}
			if e.err == nil {
				delete(errs, e.key)
			} else if errs[e.key] = e.err; e.flight.by != by && attempt < 3 && ctx.Err() == nil {
				again = append(again, e.key)
			}
		}
		f.leave(board)
		keys = again
	}
	return errs
}

// errOvertake says that background work is too far from what the caller waits
// for.
var errOvertake = errors.New("to be overtaken")

// await returns when e is done; or when it is part of a stream that is far from
// it, and the caller is not in the background: asked for again, e's key is then
// the caller's own.
func (f *flights) await(ctx context.Context, by asker, e *errand) error {
	pace := e.flight.by.pace
	if by.background {
		pace = nil
	}
	for {
		select {
		case <-e.done:
			return nil
		default:
		}
		patience := pace.patience(pace.where(e.key))
		if patience <= 0 {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.forget(e)
			return errOvertake
		}
		timer := time.NewTimer(patience)
		select {
		case <-e.done:
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// one is do for a single key.
func (f *flights) one(ctx context.Context, by asker, k key, fn func(ctx context.Context) error) error {
	return f.do(ctx, by, []key{k}, func(ctx context.Context, _ []key, _ landing) map[key]error {
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
// others. It returns the errand of each key, in order; nil if all is closed.
func (f *flights) board(by asker, keys []key, fn func(context.Context, []key, landing) map[key]error) []*errand {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	if f.aloft == nil {
		f.aloft = map[key]*errand{}
	}
	board := make([]*errand, len(keys))
	var own *flight
	for i, k := range keys {
		e := f.aloft[k]
		if e == nil {
			if own == nil {
				own = &flight{by: by}
			}
			e = &errand{key: k, flight: own, done: make(chan struct{})}
			own.errands = append(own.errands, e)
			f.aloft[k] = e
		}
		board[i] = e
	}
	for fl := range flightsOf(board) {
		fl.waiters++
	}
	if own != nil {
		var ctx context.Context
		ctx, own.cancel = context.WithCancel(f.ctx)
		f.work.Go(func() { f.fly(ctx, own, fn) })
	}
	return board
}

// fly does the work of a flight.
func (f *flights) fly(ctx context.Context, fl *flight, fn func(context.Context, []key, landing) map[key]error) {
	defer fl.cancel()
	mine := make([]key, len(fl.errands))
	byKey := make(map[key]*errand, len(fl.errands))
	for i, e := range fl.errands {
		mine[i], byKey[e.key] = e.key, e
	}
	var landed sync.Mutex // guards byKey: fn may let keys land from several goroutines
	land := func(k key, err error) {
		landed.Lock()
		e := byKey[k]
		delete(byKey, k)
		landed.Unlock()
		if e != nil {
			f.land(e, err)
		}
	}
	errs := fn(ctx, mine, land)
	if f.ctx.Err() != nil && errs != nil {
		errs = failAll(errs, mine, errClosed)
	}
	for _, k := range mine {
		land(k, errs[k])
	}
}

// flightsOf returns the flights that some errands belong to, each once.
func flightsOf(errands []*errand) map[*flight]bool {
	all := map[*flight]bool{}
	for _, e := range errands {
		all[e.flight] = true
	}
	return all
}

func (f *flights) land(e *errand, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget(e)
	e.err = err
	close(e.done)
}

// forget lets nobody join e any more.
func (f *flights) forget(e *errand) {
	if f.aloft[e.key] == e {
		delete(f.aloft, e.key)
	}
}

// leave ends the caller's part in flights, and those that nobody waits for.
func (f *flights) leave(board []*errand) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for fl := range flightsOf(board) {
		if fl.waiters--; fl.waiters == 0 {
			fl.cancel()
			for _, e := range fl.errands {
				f.forget(e)
			}
		}
	}
}
