package fstest

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"srvfs/fs"
	"srvfs/manifest"
)

// A Wire is a [Source] at a distance: what is not here yet takes a round trip to
// come, and whoever wants it meanwhile waits for the rest of that. It can be
// asked ahead (fs.Anticipator).
type Wire struct {
	*Source
	RoundTrip time.Duration

	mu   sync.Mutex
	here map[manifest.Digest]chan struct{} // closed on arrival

	// Asked counts the requests that a caller had to make because nobody had
	// asked ahead; Ahead those that were made ahead, and AheadFiles,
	// AheadPages what was asked for in them.
	Asked, Ahead, AheadFiles, AheadPages atomic.Int64
}

// order asks for what neither is here nor on its way, in one request, and says
// whether there was anything.
func (w *Wire) order(digests []manifest.Digest) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.here == nil {
		w.here = map[manifest.Digest]chan struct{}{}
	}
	arrives := make(chan struct{})
	n := 0
	for _, d := range digests {
		if w.here[d] == nil {
			w.here[d] = arrives
			n++
		}
	}
	if n > 0 {
		time.AfterFunc(w.RoundTrip, func() { close(arrives) })
	}
	return n > 0
}

// want waits for what it orders.
func (w *Wire) want(ctx context.Context, digests ...manifest.Digest) error {
	if w.order(digests) {
		w.Asked.Add(1)
	}
	for _, d := range digests {
		w.mu.Lock()
		arrives := w.here[d]
		w.mu.Unlock()
		select {
		case <-arrives:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Meta implements manifest.MetaSource.
func (w *Wire) Meta(ctx context.Context, digests []manifest.Digest) ([][]byte, error) {
	if err := w.want(ctx, digests...); err != nil {
		return nil, err
	}
	return w.Source.Meta(ctx, digests)
}

// Open implements fs.Content.
func (w *Wire) Open(ctx context.Context, c manifest.Content) (fs.File, error) {
	if err := w.want(ctx, c.Digest); err != nil {
		return nil, err
	}
	return w.Source.Open(ctx, c)
}

// Ensure implements fs.Content.
func (w *Wire) Ensure(ctx context.Context, c manifest.Content) error {
	if err := w.want(ctx, c.Digest); err != nil {
		return err
	}
	return w.Source.Ensure(ctx, c)
}

// ReadAhead implements fs.Anticipator.
func (w *Wire) ReadAhead(contents []manifest.Content) {
	digests := make([]manifest.Digest, len(contents))
	for i, c := range contents {
		digests[i] = c.Digest
	}
	w.Ahead.Add(1)
	w.AheadFiles.Add(int64(len(digests)))
	w.order(digests)
}

// MetaAhead implements fs.Anticipator.
func (w *Wire) MetaAhead(digests []manifest.Digest) {
	w.Ahead.Add(1)
	w.AheadPages.Add(int64(len(digests)))
	w.order(digests)
}
