package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"srvfs/manifest"
)

// Stream brings in what a service touches while it starts: the contents of the
// snapshot's profile that are not here, in the profile's order and in one
// request, on the way that is kept for bulk. It is meant to run beside the start,
// which reads what has arrived, waits a moment for what is about to, and asks for
// anything else by itself.
//
// A file of this host that may be identical is looked at first, without
// holding up the others: those that turn out to differ are asked for in a second
// request. Ranges of large files come as the profile has them.
//
// Nothing depends on a stream's success: it returns the first error that would
// befall others too, for the log.
func (r *Reader) Stream(ctx context.Context, snap *manifest.Snapshot) error {
	st := &stream{r: r, ready: make(chan struct{}), expected: map[manifest.Digest]bool{}}
	by := asker{reader: r, background: true, pace: newPace()}
	sure, unsure := st.divide(snap)
	r.stream.Store(st)
	var work sync.WaitGroup
	var errs [2]error
	work.Go(func() { errs[0] = st.run(ctx, by, snap, sure) })
	work.Go(func() {
		rest, err := st.look(ctx, unsure)
		if errs[1] = err; err == nil && len(rest) > 0 {
			second := &stream{r: r, ready: make(chan struct{})}
			errs[1] = second.run(ctx, asker{reader: r, background: true, pace: newPace()}, snap, rest)
		}
	})
	work.Wait()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("stream of what %s needs to start: %w", snap.Service, err)
		}
	}
	return nil
}

// A stream is the first request of a Stream.
type stream struct {
	r        *Reader
	expected map[manifest.Digest]bool // large files of which ranges will be claimed
	ready    chan struct{}            // closed when they are
	once     sync.Once
}

func (st *stream) isReady() { st.once.Do(func() { close(st.ready) }) }

// claimed returns when the stream has claimed the chunks of d that it brings, so
// that nobody asks for them twice. It may be called on nil.
func (st *stream) claimed(ctx context.Context, d manifest.Digest) error {
	if st == nil || !st.expected[d] {
		return nil
	}
	select {
	case <-st.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A part is one range of a stream.
type part struct {
	manifest.Touch
	at    int64 // bytes of the stream before it
	begin int64 // the same of the touch that it is a part of
	whole bool  // it is all of a small file
	// perhaps: it may be, or it is the beginning of a larger one
	perhaps bool
	// of a large file, once its chunks are claimed:
	partial *partial
	haul    *haul
}

// divide returns what of a profile is not in the store: parts that this host
// surely has not got under the same path, and those that it may have.
func (st *stream) divide(snap *manifest.Snapshot) (sure, unsure []*part) {
	s := st.r.store
	seen := map[manifest.Range]bool{}
	for _, t := range snap.Profile {
		id := manifest.Range{Digest: t.Content, Off: t.Off, Len: t.Len}
		if t.Len == 0 || seen[id] || s.known(t.Content) {
			continue
		}
		seen[id] = true
		p := &part{Touch: t}
		// What is as long as a whole number of chunks may be the beginning of a
		// longer file: the tree will tell.
		p.perhaps = t.Off == 0 && t.Len <= smallFile
		p.whole = p.perhaps && t.Len%manifest.ChunkSize != 0
		if s.host != nil && t.Off == 0 {
			switch is, maybe := s.host.glance(manifest.Content{Digest: t.Content, Size: t.Len, Path: t.Path}); {
			case is:
				continue // whoever opens it has it linked in no time
			case maybe:
				unsure = append(unsure, p)
				continue
			}
		}
		sure = append(sure, p)
	}
	for _, p := range sure {
		if !p.whole {
			st.expected[p.Content] = true
		}
	}
	return sure, unsure
}

// look looks for identical host files, and returns the parts for which there are
// none.
func (st *stream) look(ctx context.Context, parts []*part) (rest []*part, err error) {
	for _, p := range parts {
		there, err := st.r.local(ctx, manifest.Content{Digest: p.Content, Size: p.Len, Path: p.Path}, quick)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			return nil, err
		}
		if !there {
			rest = append(rest, p)
		}
	}
	return rest, nil
}

// cut makes requests of touches: no longer than one may be, and each with its
// place in the stream. It returns the keys of the small files among them.
func cut(touches []*part, pace *pace) (parts []*part, keys []key) {
	seen := map[key]bool{}
	at := int64(0)
	for _, t := range touches {
		if k := (key{workBlob, t.Content}); t.whole && seen[k] {
			continue
		} else if t.whole {
			seen[k] = true
			keys = append(keys, k)
			pace.place(k, stretch{at, t.Len})
		}
		begin := at
		step := int64(manifest.ChunkSize) // so that what comes shows soon
		if t.perhaps {
			step = smallFile
		}
		for off := t.Off; off < t.Off+t.Len; off += step {
			p := &part{Touch: t.Touch, at: at, begin: begin, whole: t.whole, perhaps: t.perhaps}
			p.Off, p.Len = off, min(step, t.Off+t.Len-off)
			at += p.Len
			parts = append(parts, p)
		}
	}
	return parts, keys
}

// run asks for the parts and takes them in as they come.
func (st *stream) run(ctx context.Context, by asker, snap *manifest.Snapshot, touches []*part) (err error) {
	defer st.isReady()
	if len(touches) == 0 {
		return nil
	}
	parts, keys := cut(touches, by.pace)
	self := key{workProfile, manifest.Digest{}} // no other has this number
	binary.LittleEndian.PutUint64(self.digest[:], st.r.store.temp.next())
	var claiming sync.WaitGroup
	claiming.Go(func() {
		defer st.isReady()
		st.claim(ctx, by, snap, parts)
	})
	errs := st.r.store.flights.do(ctx, by, append(keys, self), func(ctx context.Context, mine []key, land landing) map[key]error {
		failed, err := st.fetch(ctx, by, parts, mine, land)
		if err != nil {
			return failAll(map[key]error{}, mine, err)
		}
		for _, err := range failed {
			failed[self] = err // any one tells enough
			break
		}
		return failed
	})
	claiming.Wait()
	for _, p := range parts {
		p.release(errs[self])
	}
	return errs[self]
}

// fetch makes the request, less the small files that others are at.
func (st *stream) fetch(ctx context.Context, by asker, parts []*part, mine []key, land landing) (map[key]error, error) {
	ours := make(map[key]bool, len(mine))
	for _, k := range mine {
		ours[k] = true
	}
	parts = slices.DeleteFunc(slices.Clone(parts), func(p *part) bool { return p.whole && !ours[key{workBlob, p.Content}] })
	want := make([]wanted, len(parts))
	for i, p := range parts {
		want[i] = wanted{Range: manifest.Range{Digest: p.Content, Off: p.Off, Len: p.Len}, what: p.Path}
	}
	failed, err := st.r.batch(ctx, want, true, func(i int, data []byte) error {
		p := parts[i]
		err := st.accept(ctx, p, data)
		by.pace.arrived(p.at + p.Len)
		if p.whole && err == nil {
			land(key{workBlob, p.Content}, nil)
		}
		return err
	})
	errs := make(map[key]error, len(failed))
	for i, err := range failed {
		errs[key{workBlob, parts[i].Content}] = err
	}
	return errs, err
}

// claim says of the large files' chunks that they are coming.
func (st *stream) claim(ctx context.Context, by asker, snap *manifest.Snapshot, parts []*part) {
	meta := func(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
		return st.r.meta(ctx, digests, keepIfPossible)
	}
	f := &finder{root: snap.Root.Digest, meta: meta, pages: map[manifest.Digest]*manifest.Page{}}
	// All in one request: what is not in the batch is looked up one by one.
	if _, err := meta(ctx, append([]manifest.Digest{snap.Root.Digest}, snap.Metadata...)); err != nil {
		return
	}
	for _, p := range parts {
		if p.whole {
			continue
		}
		e, err := f.find(ctx, p.Path)
		if err != nil || e == nil || e.Type != manifest.File || e.Digest != p.Content || p.Off+p.Len > e.Size {
			continue
		}
		c := e.Content(p.Path)
		end := p.Off + p.Len
		if c.Size <= smallFile || p.Off%manifest.ChunkSize != 0 || end%manifest.ChunkSize != 0 && end != c.Size || valid(c) != nil {
			continue // small ones are taken when they come
		}
		lists, err := meta(ctx, []manifest.Digest{c.Chunks})
		if err != nil {
			return
		}
		list, err := manifest.DecodeChunkList(lists[0], c.Size)
		if err != nil {
			continue
		}
		pt, err := st.r.store.begin(ctx, c, list)
		if pt == nil || err != nil {
			continue
		}
		p.claim(by, pt)
	}
}

// claim says that p brings chunks of pt.
func (p *part) claim(by asker, pt *partial) {
	from, to := p.Off/manifest.ChunkSize, manifest.Chunks(p.Off+p.Len)
	p.haul = pt.expect(by, from, to, stretch{p.begin, manifest.ChunkSize}) // a read waits for a chunk
	p.partial = pt
}

// release lets go of what a part has claimed.
func (p *part) release(err error) {
	if p.partial != nil {
		p.partial.end(p.haul, err)
		p.partial.release()
		p.partial = nil
	}
}

// accept takes one part in.
func (st *stream) accept(ctx context.Context, p *part, data []byte) error {
	if p.whole || p.perhaps && manifest.Sum(data) == p.Content {
		if st.r.store.known(p.Content) {
			return nil
		}
		return st.r.store.acceptSmall(manifest.Content{Digest: p.Content, Size: p.Len, Path: p.Path}, data)
	}
	select {
	case <-st.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if p.partial == nil {
		return nil // nothing tells where it belongs; who needs it asks for it
	}
	err := p.partial.deliver(p.haul, data)
	p.release(err)
	return err
}
