package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"srvfs/manifest"
)

var (
	errSilent   = errors.New("no byte for too long")
	errDeadline = errors.New("deadline exceeded")
)

// A job is a range of one content to be brought in, in pieces that can be
// verified one by one.
type job struct {
	what       string // for messages: the file's path
	digest     manifest.Digest
	background bool
	off, n     int64 // bytes; what is done is taken off the front
	piece      int64 // length of a piece in bytes; the last may be shorter
	// accept verifies a piece and keeps it. ErrCorrupt sends us to the next
	// source; a localError ends the job.
	accept func(off int64, data []byte) error
}

// bring does the job with the first source that can, going on with the next
// where one failed on the way.
func (r *Reader) bring(ctx context.Context, j job) error {
	start := time.Now()
	deadline := start.Add(r.store.deadline)
	failure := &FetchError{What: j.what, Digest: j.digest}
	order := r.order(j.background)
	for i := range order {
		o := &order[i]
		began := time.Now()
		err := o.rest(j.background).resting()
		if err == nil {
			if err = r.attempt(ctx, o, &j, r.patience(order[i:], j.background), &deadline); err == nil {
				o.rest(j.background).answered(nil)
				return nil
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if isLocal(err) {
				return err
			}
			o.rest(j.background).answered(err)
			r.blame(o, j.what, j.digest, err)
		}
		failure.Attempts = append(failure.Attempts, Attempt{Source: o.Name, Err: err, Took: time.Since(began)})
	}
	failure.Took = time.Since(start)
	return failure
}

// blame notes that a source sent wrong bytes, if that is what err says.
func (r *Reader) blame(o *Source, what string, d manifest.Digest, err error) {
	if errors.Is(err, manifest.ErrCorrupt) {
		r.store.stats.badFromSource.add(1)
		o.Health.blame(what)
		if r.store.quiet.pass("corrupt " + o.Name + d.Hex()) {
			r.store.log.Warn("a source sent wrong bytes", "source", o.Name, "path", what, "digest", d.Hex(), "err", err)
		}
	}
}

// attempt does as much of the job as one source can.
func (r *Reader) attempt(ctx context.Context, o *Source, j *job, patience time.Duration, deadline *time.Time) (err error) {
	w := watch(ctx, patience, *deadline, nil)
	defer func() { err = w.end(err) }()
	r.store.stats.fetches.add(1)
	body, err := o.way(j.background).Fetch(w.ctx, j.digest, j.off, j.n)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	buf := takeBuffer(min(j.piece, j.n))
	defer giveBuffer(buf)
	for j.n > 0 {
		data := (*buf)[:min(j.piece, j.n)]
		for got := 0; got < len(data); {
			n, err := body.Read(data[got:])
			if n > 0 {
				w.alive()
			}
			got += n
			if err != nil && got < len(data) {
				if errors.Is(err, io.EOF) {
					err = fmt.Errorf("ended %d bytes early: %w", j.n-int64(got), manifest.ErrCorrupt)
				}
				return err
			}
		}
		w.pause()
		if err := j.accept(j.off, data); err != nil {
			return err
		}
		r.got(o, len(data))
		j.off += int64(len(data))
		j.n -= int64(len(data))
		*deadline = time.Now().Add(r.store.deadline)
		w.resume(*deadline)
	}
	return nil
}

// A watcher cancels a request that is silent for too long, or late.
type watcher struct {
	ctx           context.Context
	cancel        context.CancelCauseFunc
	silence       time.Duration
	silent, total *time.Timer
	heard         Listener // if not nil, knows better than we when something came
	paused        atomic.Bool
}

// A Listener is an origin that knows for how long it has heard nothing at all of its
// other side. Of a long answer on a slow wire nothing else shows that it is coming.
type Listener interface{ Silence() time.Duration }

func watch(ctx context.Context, silence time.Duration, deadline time.Time, heard Listener) *watcher {
	w := &watcher{silence: silence, heard: heard}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.silent = time.AfterFunc(time.Hour, w.quiet)
	w.silent.Reset(silence)
	w.total = time.AfterFunc(time.Until(deadline), func() { w.cancel(errDeadline) })
	return w
}

// quiet is called when nothing has come for as long as is borne, as far as we know.
func (w *watcher) quiet() {
	if w.paused.Load() {
		return
	}
	if w.heard != nil {
		if ago := w.heard.Silence(); ago < w.silence {
			w.silent.Reset(w.silence - ago)
			return
		}
	}
	w.cancel(errSilent)
}

func (w *watcher) alive() { w.silent.Reset(w.silence) }

// pause stops the clocks while we are at work ourselves.
func (w *watcher) pause() {
	w.paused.Store(true)
	w.silent.Stop()
	w.total.Stop()
}

func (w *watcher) resume(deadline time.Time) {
	w.paused.Store(false)
	w.silent.Reset(w.silence)
	w.total.Reset(time.Until(deadline))
}

// end stops the watch, and says why the request was cancelled if it was.
func (w *watcher) end(err error) error {
	w.pause()
	defer w.cancel(nil)
	if err == nil || isLocal(err) {
		return err
	}
	if cause := context.Cause(w.ctx); errors.Is(cause, errSilent) || errors.Is(cause, errDeadline) {
		return fmt.Errorf("%w: %w", cause, manifest.ErrUnavailable)
	}
	return err
}

// A wanted is one element of a batch.
type wanted struct {
	manifest.Range
	what string
}

// batch asks the sources for all of want, many in one round trip, and passes
// each piece to accept, which is as in job but never called twice at a time.
// It returns the errors of those that no source had; or an error of ours.
func (r *Reader) batch(ctx context.Context, want []wanted, background bool, accept func(i int, data []byte) error) (map[int]error, error) {
	failed := map[int]*FetchError{}
	left := make([]int, len(want))
	for i := range left {
		left[i] = i
	}
	start := time.Now()
	deadline := start.Add(r.store.deadline) // moves on with each answer
	order := r.order(background)
	for n := range order {
		if len(left) == 0 {
			break
		}
		o := &order[n]
		began := time.Now()
		errs := map[int]error{}
		some := false // of them it has sent
		resting := o.rest(background).resting()
		if err := resting; err != nil {
			for _, i := range left {
				errs[i] = err
			}
		} else {
			silence := r.patience(order[n:], background)
			if _, ok := o.way(background).(Listener); background && !ok {
				silence = r.store.deadline // one answer may be a MiB, and the wire slow
			}
			err := r.exchange(ctx, o, request{want, left, background, silence, &deadline, errs, func(i int, data []byte) error {
				err := accept(i, data)
				if err == nil {
					r.got(o, len(data))
				}
				return err
			}})
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err != nil {
				return nil, err
			}
			if some = len(errs) < len(left); some {
				o.rest(background).answered(nil)
			}
		}
		for _, i := range left {
			err := errs[i]
			if err == nil {
				continue
			}
			if resting == nil && (!some || !about(err)) {
				o.rest(background).answered(err)
			}
			r.blame(o, want[i].what, want[i].Digest, err)
			if failed[i] == nil {
				failed[i] = &FetchError{What: want[i].what, Digest: want[i].Digest}
			}
			failed[i].Attempts = append(failed[i].Attempts, Attempt{Source: o.Name, Err: err, Took: time.Since(began)})
		}
		var next []int
		for _, i := range left {
			if errs[i] != nil {
				next = append(next, i)
			}
		}
		left = next
	}
	out := map[int]error{}
	for _, i := range left {
		if failed[i] == nil {
			failed[i] = &FetchError{What: want[i].what, Digest: want[i].Digest}
		}
		failed[i].Took = time.Since(start)
		out[i] = failed[i]
	}
	return out, nil
}

// A request is what of a batch one source is asked for.
type request struct {
	want       []wanted
	left       []int // which of want
	background bool
	silence    time.Duration // that is borne
	deadline   *time.Time    // of the next answer
	errs       map[int]error // gets the failures
	accept     func(i int, data []byte) error
}

// answer accepts one element. What it returns is an error of ours.
func (q *request) answer(i int, data []byte, err error) error {
	if err == nil {
		err = q.accept(i, data)
	}
	if isLocal(err) {
		return err
	}
	if err != nil {
		q.errs[i] = err
	}
	return nil
}

// exchange asks one source. What it returns is an error of ours.
func (r *Reader) exchange(ctx context.Context, o *Source, q request) error {
	b, ok := o.way(q.background).(manifest.Batcher)
	if !ok {
		return r.each(ctx, o, q)
	}
	for start := 0; start < len(q.left); start += manifest.MaxBatch {
		part := q.left[start:min(len(q.left), start+manifest.MaxBatch)]
		ranges := make([]manifest.Range, len(part))
		for i, k := range part {
			ranges[i] = q.want[k].Range
		}
		var heard Listener
		if q.background {
			heard, _ = o.way(true).(Listener)
		}
		w := watch(ctx, q.silence, *q.deadline, heard)
		r.store.stats.fetches.add(1)
		answered := 0
		err := b.FetchBatch(w.ctx, ranges, func(i int, data []byte, err error) error {
			if i != answered || i >= len(part) {
				return fmt.Errorf("answered number %d where %d was due: %w", i, answered, manifest.ErrUnavailable)
			}
			answered++
			w.pause()
			err = q.answer(part[i], data, err)
			*q.deadline = time.Now().Add(r.store.deadline)
			w.resume(*q.deadline)
			return err
		})
		if err == nil && answered < len(part) {
			err = fmt.Errorf("answered %d of %d: %w", answered, len(part), manifest.ErrUnavailable)
		}
		if err = w.end(err); isLocal(err) {
			return err
		}
		if err != nil {
			for _, k := range q.left[start+answered:] {
				q.errs[k] = err
			}
			return nil
		}
	}
	return nil
}

// each is exchange for a source that takes one request at a time: several run
// in parallel.
func (r *Reader) each(ctx context.Context, o *Source, q request) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // of ours and the request
		ours  error
		queue = make(chan int, len(q.left))
	)
	for _, i := range q.left {
		queue <- i
	}
	close(queue)
	for range min(8, len(q.left)) {
		wg.Go(func() {
			for i := range queue {
				mu.Lock()
				stop, deadline := ours != nil, *q.deadline
				mu.Unlock()
				if stop {
					return
				}
				data, err := r.whole(ctx, o, q.want[i].Range, q, deadline)
				mu.Lock()
				if err == nil {
					*q.deadline = time.Now().Add(r.store.deadline)
				}
				if err := q.answer(i, data, err); err != nil {
					ours = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return ours
}

// whole fetches one range into memory.
func (r *Reader) whole(ctx context.Context, o *Source, g manifest.Range, q request, deadline time.Time) (data []byte, err error) {
	w := watch(ctx, q.silence, deadline, nil)
	defer func() { err = w.end(err) }()
	r.store.stats.fetches.add(1)
	body, err := o.way(q.background).Fetch(w.ctx, g.Digest, g.Off, g.Len)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	limit := int64(manifest.MaxMeta)
	if g.Len >= 0 {
		limit = g.Len
	}
	data, err = io.ReadAll(io.LimitReader(listened{body, w}, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("sent more than the %d bytes that were due: %w", limit, manifest.ErrCorrupt)
	}
	return data, err
}

// listened tells the watcher that bytes arrive.
type listened struct {
	io.Reader
	w *watcher
}

func (l listened) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if n > 0 {
		l.w.alive()
	}
	return n, err
}

var pieces = sync.Pool{New: func() any { b := make([]byte, manifest.ChunkSize); return &b }}

// takeBuffer returns n bytes, or more.
func takeBuffer(n int64) *[]byte {
	if n <= manifest.ChunkSize {
		return pieces.Get().(*[]byte)
	}
	b := make([]byte, n)
	return &b
}

func giveBuffer(b *[]byte) {
	if len(*b) == manifest.ChunkSize {
		pieces.Put(b)
	}
}
