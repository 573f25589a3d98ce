// Package origintest is the one conformance suite of [manifest.Origin]: live
// files, wire, store and archive all run it, so that any of them can stand for
// any other.
package origintest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"srvfs/manifest"
)

// A World is an origin under test and what it must provide.
type World struct {
	Origin manifest.Origin
	// Has holds contents of the origin. Give it an empty one, a short one, and
	// one of several chunks (see [Contents]). An Origin that is a Batcher is
	// tested as one too.
	Has map[manifest.Digest][]byte
	// Stale lists contents that the origin had and that have changed since;
	// empty for an origin where that can't happen.
	Stale []manifest.Digest
}

// Contents returns contents that are worth having in every World: empty, one
// byte, around the end of a chunk, several chunks; some that compress and some
// that don't. They are the same in every run.
func Contents() map[manifest.Digest][]byte {
	rng := rand.NewChaCha8([32]byte{1})
	all := map[manifest.Digest][]byte{}
	for _, n := range []int{0, 1, 511, 4096, manifest.ChunkSize - 1, manifest.ChunkSize, manifest.ChunkSize + 1, 5*manifest.ChunkSize + 7} {
		random := make([]byte, n)
		_, _ = rng.Read(random)
		text := bytes.Repeat([]byte(fmt.Sprintf("content of %d bytes\n", n)), n/16+1)[:n]
		all[manifest.Sum(random)] = random
		all[manifest.Sum(text)] = text
	}
	return all
}

// Run tests the origin. The caller closes it.
func Run(t *testing.T, w World) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	t.Run("Ranges", func(t *testing.T) { ranges(ctx, t, w) })
	t.Run("Refusals", func(t *testing.T) { refusals(ctx, t, w) })
	t.Run("EarlyEnd", func(t *testing.T) { earlyEnd(ctx, t, w) })
	t.Run("Parallel", func(t *testing.T) { parallel(ctx, t, w) })
	if b, ok := w.Origin.(manifest.Batcher); ok {
		t.Run("Batch", func(t *testing.T) { batch(ctx, t, b, w) })
		t.Run("BatchStops", func(t *testing.T) { batchStops(ctx, t, b, w) })
	}
}

// fetch reads the whole of one Fetch.
func fetch(ctx context.Context, o manifest.Origin, r manifest.Range) ([]byte, error) {
	body, err := o.Fetch(ctx, r.Digest, r.Off, r.Len)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(body)
	return b, errors.Join(err, body.Close())
}

// someRanges returns ranges that lie within the content b.
func someRanges(d manifest.Digest, b []byte) []manifest.Range {
	n := int64(len(b))
	all := []manifest.Range{{Digest: d, Len: n}, {Digest: d, Len: -1}, {Digest: d, Off: n, Len: 0}, {Digest: d, Off: n, Len: -1}, {Digest: d, Off: n / 2, Len: n - n/2}, {Digest: d, Off: n / 3, Len: n / 3}, {Digest: d, Off: n / 2, Len: -1}}
	if n > manifest.ChunkSize {
		all = append(all, manifest.Range{Digest: d, Off: manifest.ChunkSize - 1, Len: 2})
	}
	return all
}

func part(b []byte, r manifest.Range) []byte {
	if r.Len < 0 {
		return b[r.Off:]
	}
	return b[r.Off : r.Off+r.Len]
}

func ranges(ctx context.Context, t *testing.T, w World) {
	for d, b := range w.Has {
		for _, r := range someRanges(d, b) {
			got, err := fetch(ctx, w.Origin, r)
			if err != nil || !bytes.Equal(got, part(b, r)) {
				t.Errorf("%d bytes from %d of a content of %d: %d bytes, %v", r.Len, r.Off, len(b), len(got), err)
			}
		}
	}
}

func refusals(ctx context.Context, t *testing.T, w World) {
	unknown := manifest.Sum([]byte("nobody has this"))
	for _, n := range []int64{0, 1, -1} {
		if got, err := fetch(ctx, w.Origin, manifest.Range{Digest: unknown, Len: n}); !errors.Is(err, manifest.ErrNotFound) {
			t.Errorf("%d bytes of an unknown content: %q, %v; want ErrNotFound", n, got, err)
		}
	}
	for _, d := range w.Stale {
		if got, err := fetch(ctx, w.Origin, manifest.Range{Digest: d, Len: -1}); !errors.Is(err, manifest.ErrStale) {
			t.Errorf("changed content: %q, %v; want ErrStale", got, err)
		}
	}
	for d, b := range w.Has {
		n := int64(len(b))
		for _, r := range []manifest.Range{{Digest: d, Len: n + 1}, {Digest: d, Off: n, Len: 1}, {Digest: d, Off: n + 1, Len: 1}, {Digest: d, Off: -1, Len: 1}} {
			if got, err := fetch(ctx, w.Origin, r); err == nil {
				t.Errorf("%d bytes from %d of a content of %d: %d bytes and no error", r.Len, r.Off, n, len(got))
			}
		}
	}
}

func earlyEnd(ctx context.Context, t *testing.T, w World) {
	d, b := largest(w)
	body, err := w.Origin.Fetch(ctx, d, 0, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(body, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := body.Close(); err != nil {
		t.Errorf("early close: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := fetch(cancelled, w.Origin, manifest.Range{Digest: d, Len: int64(len(b))}); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
}

func largest(w World) (d manifest.Digest, b []byte) {
	for k, v := range w.Has {
		if b == nil || len(v) > len(b) {
			d, b = k, v
		}
	}
	return d, b
}

func parallel(ctx context.Context, t *testing.T, w World) {
	var wg sync.WaitGroup
	for range 4 {
		for d, b := range w.Has {
			wg.Go(func() {
				if got, err := fetch(ctx, w.Origin, manifest.Range{Digest: d, Len: int64(len(b))}); err != nil || !bytes.Equal(got, b) {
					t.Errorf("content of %d bytes: %d bytes, %v", len(b), len(got), err)
				}
			})
		}
	}
	wg.Wait()
}

func batch(ctx context.Context, t *testing.T, o manifest.Batcher, w World) {
	unknown := manifest.Range{Digest: manifest.Sum([]byte("nobody has this")), Len: 4}
	want := []manifest.Range{unknown}
	for d, b := range w.Has {
		for _, r := range someRanges(d, b) {
			if r.Len <= manifest.MaxRange {
				want = append(want, r, r) // one content twice is fine
			}
		}
		want = append(want, unknown)
	}
	for _, d := range w.Stale {
		want = append(want, manifest.Range{Digest: d, Len: -1})
	}
	next := 0
	err := o.FetchBatch(ctx, want, func(i int, data []byte, err error) error {
		if i != next {
			return fmt.Errorf("item %d after %d", i, next-1)
		}
		next++
		r := want[i]
		b, has := w.Has[r.Digest]
		switch {
		case has && (err != nil || !bytes.Equal(data, part(b, r))):
			t.Errorf("item %d, %d bytes from %d of a content of %d: %d bytes, %v", i, r.Len, r.Off, len(b), len(data), err)
		case r == unknown && !errors.Is(err, manifest.ErrNotFound):
			t.Errorf("item %d, an unknown content: %v", i, err)
		case !has && r != unknown && !errors.Is(err, manifest.ErrStale):
			t.Errorf("item %d, a changed content: %v", i, err)
		}
		return nil
	})
	if err != nil || next != len(want) {
		t.Errorf("%d of %d items, %v", next, len(want), err)
	}
	if err := o.FetchBatch(ctx, nil, func(int, []byte, error) error { return errors.New("yielded") }); err != nil {
		t.Errorf("empty batch: %v", err)
	}
}

func batchStops(ctx context.Context, t *testing.T, o manifest.Batcher, w World) {
	d, _ := largest(w)
	want := []manifest.Range{{Digest: d, Len: 1}, {Digest: d, Len: 2}, {Digest: d, Len: 3}}
	stop := errors.New("enough")
	n := 0
	if err := o.FetchBatch(ctx, want, func(int, []byte, error) error { n++; return stop }); !errors.Is(err, stop) || n != 1 {
		t.Errorf("after %d items: %v; want the error of the first", n, err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := o.FetchBatch(cancelled, want, func(int, []byte, error) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
}
