package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"srvfs/manifest"
)

// Progress is how far a Prefetch has come. A file that has several names
// counts once. The caller knows the time and so the rate.
type Progress struct {
	Done    Count `json:"done"`    // in the store, by whatever way
	Total   Count `json:"total"`   // as the snapshot says
	Host    Count `json:"host"`    // of Done: pinned from the host by this Prefetch
	Fetched Count `json:"fetched"` // of Done: fetched by this Prefetch
	Failed  Count `json:"failed"`  // given up: the error says why
	// Stage is what is being brought: "profile", and then the names of ranks.
	Stage string `json:"stage"`
}

const (
	groupBytes   = 1 << 20 // small files in one request
	groupFiles   = 512
	groupStreams = 3                      // such requests in flight
	reportEvery  = 100 * time.Millisecond // between two calls of report
	tellErrors   = 5                      // failed files that the error names
)

// Prefetch brings a whole snapshot into the store: first the files of its
// profile, then the others by their rank, each stage whole before the next, so
// that the service could start long before all its data is here. Identical host files are
// pinned, small files fetched many to a request, large ones in chunk groups, with few
// requests in flight, standing back while anybody waits for content. What an
// earlier Prefetch, or any reader, brought is not fetched again.
//
// When it returns nil the snapshot is detached: all its content stands in blobs,
// all its metadata in meta, verified and flushed to disk.
//
// report, if not nil, is called about ten times a second and once at the end,
// never twice at a time. A file that no source has any more (ErrStale) or that comes
// damaged from all (ErrCorrupt) does not stop the others; the error then
// names the first such files. It does stop with ErrUnavailable when no source
// answers, with ErrNoSpace, and with ctx; it can be called again.
func (r *Reader) Prefetch(ctx context.Context, snap *manifest.Snapshot, report func(Progress)) error {
	p := &prefetch{r: r, snap: snap}
	p.progress.Total = Count{snap.Totals.Files, int64(snap.Totals.Bytes)}
	return p.do(ctx, report)
}

func (p *prefetch) do(ctx context.Context, report func(Progress)) error {
	p.ctx, p.stop = context.WithCancelCause(ctx)
	defer p.stop(nil)
	done := make(chan struct{})
	var reporter sync.WaitGroup
	if report != nil {
		reporter.Go(func() { p.report(report, done) })
	}
	p.run()
	close(done)
	reporter.Wait()
	if report != nil {
		report(p.now())
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return p.verdict()
}

// prefetch is one Prefetch under way. In each stage contents flow from the tour through
// locate, which looks on the host, and group to the fetchers.
type prefetch struct {
	r      *Reader
	snap   *manifest.Snapshot
	before *manifest.Snapshot // is here; nil: nothing is known to be
	ctx    context.Context
	stop   context.CancelCauseFunc

	mu       sync.Mutex
	progress Progress
	failures []error // the first ones
	fatal    error
	filling  manifest.Content // the large file that is being fetched
}

func (p *prefetch) run() {
	keep := func(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
		return p.r.meta(ctx, digests, mustKeep)
	}
	t, err := newTour(p.ctx, p.snap, keep)
	if err != nil {
		p.fail(err)
		return
	}
	if p.before != nil {
		p.stage("changes", keep, func(ctx context.Context, visit func(manifest.Content) error) error {
			return t.changes(ctx, p.before, func(c manifest.Content) error {
				p.count(func(g *Progress) { g.Total.add(1, c.Size) })
				return visit(c)
			})
		})
		return
	}
	p.stage("profile", keep, t.profile)
	for _, rank := range t.ranking.Present() {
		p.stage(rank.String(), keep, func(ctx context.Context, visit func(manifest.Content) error) error {
			return t.rank(ctx, rank, visit)
		})
	}
}

// stage brings what walk visits.
func (p *prefetch) stage(name string, meta metaFunc, walk func(context.Context, func(manifest.Content) error) error) {
	if p.ctx.Err() != nil {
		return
	}
	p.count(func(g *Progress) { g.Stage = name })
	found, missing := make(chan manifest.Content, 256), make(chan manifest.Content, 256)
	groups, large := make(chan []manifest.Content), make(chan manifest.Content, 1024)
	var all, locators sync.WaitGroup
	all.Go(func() {
		defer close(found)
		if err := p.walk(found, meta, walk); err != nil {
			p.fail(err)
		}
	})
	for range 2 {
		locators.Go(func() { p.locate(found, missing) })
	}
	all.Go(func() {
		locators.Wait()
		close(missing)
	})
	all.Go(func() {
		defer close(groups)
		defer close(large)
		p.group(missing, groups, large)
	})
	for range groupStreams {
		all.Go(func() {
			for g := range groups {
				p.fetch(g)
			}
		})
	}
	all.Go(func() {
		for c := range large {
			p.fetchLarge(c)
		}
	})
	all.Wait()
}

// walk sends the contents of a stage to found, and gets the chunk lists of large
// files.
func (p *prefetch) walk(found chan<- manifest.Content, meta metaFunc, walk func(context.Context, func(manifest.Content) error) error) error {
	var lists []manifest.Digest
	var size int64
	flush := func() error {
		_, err := meta(p.ctx, lists)
		lists, size = lists[:0], 0
		return err
	}
	err := walk(p.ctx, func(c manifest.Content) error {
		select {
		case found <- c:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
		if c.Size <= manifest.ChunkSize {
			return nil
		}
		lists = append(lists, c.Chunks)
		if size += manifest.Chunks(c.Size) * manifest.DigestSize; size > groupBytes || len(lists) == walkPages {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	return err
}

func (p *prefetch) locate(found <-chan manifest.Content, missing chan<- manifest.Content) {
	for c := range found {
		if p.ctx.Err() != nil {
			continue
		}
		where, err := p.r.look(p.ctx, c, thorough)
		switch {
		case err != nil:
			p.lose(c, err)
		case where == absent:
			select {
			case missing <- c:
			case <-p.ctx.Done():
			}
		default:
			p.count(func(g *Progress) {
				g.Done.add(1, c.Size)
				if where == pinned {
					g.Host.add(1, c.Size)
				}
			})
		}
	}
}

func (p *prefetch) group(missing <-chan manifest.Content, groups chan<- []manifest.Content, large chan<- manifest.Content) {
	var g group
	send := func() {
		if len(g.contents) == 0 {
			return
		}
		select {
		case groups <- g.contents:
		case <-p.ctx.Done():
		}
		g = group{}
	}
	for c := range missing {
		if c.Size > smallFile {
			select {
			case large <- c:
			case <-p.ctx.Done():
			}
			continue
		}
		if !g.add(c) {
			send()
			g.add(c)
		}
	}
	send()
}

// fetch gets a group of small files in one request.
func (p *prefetch) fetch(group []manifest.Content) {
	if p.r.store.demand.yield(p.ctx) != nil {
		return
	}
	byDigest := map[manifest.Digest]manifest.Content{}
	keys := make([]key, 0, len(group))
	for _, c := range group {
		if err := valid(c); err != nil {
			p.lose(c, err)
			continue
		}
		if _, twice := byDigest[c.Digest]; !twice {
			byDigest[c.Digest] = c
			keys = append(keys, key{workBlob, c.Digest})
		}
	}
	by := asker{reader: p.r, background: true}
	errs := p.r.store.flights.do(p.ctx, by, keys, func(ctx context.Context, mine []key, land landing) map[key]error {
		return p.r.fetchGroup(ctx, by, mine, byDigest, land)
	})
	for _, c := range group {
		if _, ok := byDigest[c.Digest]; !ok {
			continue
		}
		if err := errs[key{workBlob, c.Digest}]; err != nil {
			p.lose(c, err)
		} else {
			p.gain(c)
		}
	}
}

// fetchGroup gets small files in one request. Each lands when it has arrived.
func (r *Reader) fetchGroup(ctx context.Context, by asker, keys []key, contents map[manifest.Digest]manifest.Content, land landing) map[key]error {
	errs := map[key]error{}
	var want []wanted
	var wantKeys []key
	for _, k := range keys {
		c := contents[k.digest]
		switch {
		case r.store.known(c.Digest): // a reader was faster
		case c.Size == 0:
			if err := r.store.acceptSmall(c, nil); err != nil {
				errs[k] = err
			}
		default:
			want = append(want, wanted{Range: manifest.Range{Digest: c.Digest, Len: c.Size}, what: c.Path})
			wantKeys = append(wantKeys, k)
		}
	}
	if len(want) == 0 {
		return errs
	}
	failed, err := r.batch(ctx, want, by.background, func(i int, data []byte) error {
		err := r.store.acceptSmall(contents[wantKeys[i].digest], data)
		if err == nil {
			land(wantKeys[i], nil)
		}
		return err
	})
	if err != nil {
		return failAll(errs, wantKeys, err)
	}
	for i, err := range failed {
		errs[wantKeys[i]] = err
		if !by.ahead {
			r.store.report(want[i].what, want[i].Digest, err)
		}
	}
	return errs
}

func (p *prefetch) fetchLarge(c manifest.Content) {
	if p.ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	p.filling = c
	p.mu.Unlock()
	err := p.r.ensureLarge(p.ctx, asker{reader: p.r, background: true}, workStream, c)
	p.mu.Lock()
	p.filling = manifest.Content{}
	p.mu.Unlock()
	if err != nil {
		p.lose(c, err)
	} else {
		p.gain(c)
	}
}

func (p *prefetch) count(f func(*Progress)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.progress)
}

func (p *prefetch) gain(c manifest.Content) {
	p.count(func(g *Progress) {
		g.Done.add(1, c.Size)
		g.Fetched.add(1, c.Size)
	})
}

// lose notes a file that could not be had, and ends everything if the others
// would fare alike.
func (p *prefetch) lose(c manifest.Content, err error) {
	if p.ctx.Err() != nil {
		return
	}
	if !errors.Is(err, manifest.ErrStale) && !errors.Is(err, manifest.ErrCorrupt) && (isLocal(err) || errors.Is(err, errClosed) || p.r.allResting()) {
		p.fail(err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress.Failed.add(1, c.Size)
	if len(p.failures) < tellErrors {
		p.failures = append(p.failures, err)
	}
}

// allResting reports whether no source would be asked now.
func (r *Reader) allResting() bool {
	for _, o := range r.sources() {
		if o.rest(true).resting() == nil {
			return false
		}
	}
	return true
}

// fail ends everything.
func (p *prefetch) fail(err error) {
	p.mu.Lock()
	if p.fatal == nil {
		p.fatal = err
	}
	p.mu.Unlock()
	p.stop(err)
}

// verdict returns nil if the snapshot is detached.
func (p *prefetch) verdict() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Flushed in any case: what came is not to be fetched again.
	flushed := p.r.store.Flush()
	switch lost := p.progress.Failed.Files; {
	case p.fatal != nil:
		return fmt.Errorf("prefetch of %s stopped after %d of %d files, among those of %q: %w", p.snap.Service, p.progress.Done.Files, p.progress.Total.Files, p.progress.Stage, p.fatal)
	case lost > uint64(len(p.failures)):
		return fmt.Errorf("prefetch of %s: %d files could not be had, among them: %w", p.snap.Service, lost, errors.Join(p.failures...))
	case lost > 0:
		return fmt.Errorf("prefetch of %s: %d files could not be had: %w", p.snap.Service, lost, errors.Join(p.failures...))
	}
	return flushed
}

func (p *prefetch) report(report func(Progress), done <-chan struct{}) {
	t := time.NewTicker(reportEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			report(p.now())
		case <-done:
			return
		}
	}
}

// now returns the progress, with the bytes of the large file under way.
func (p *prefetch) now() Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.progress
	if p.filling.Size > 0 {
		n := p.r.store.partialBytes(p.filling)
		g.Done.Bytes += n
		g.Fetched.Bytes += n
	}
	return g
}
