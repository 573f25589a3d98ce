package store

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"srvfs/manifest"
)

// A slowBatch answers one range of a batch at a time, when it is told to.
type slowBatch struct {
	batchOrigin
	next chan struct{}
}

func (o slowBatch) FetchBatch(ctx context.Context, want []manifest.Range, yield func(int, []byte, error) error) error {
	return o.batchOrigin.FetchBatch(ctx, want, func(i int, data []byte, err error) error {
		select {
		case <-o.next:
		case <-ctx.Done():
			return ctx.Err()
		}
		return yield(i, data, err)
	})
}

// TestStream: everything that a profile names comes with one request on the way
// for bulk; who reads meanwhile waits for what is near, asks by himself for what
// is far, and nothing is fetched twice.
func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		files := map[string][]byte{"/a/near": random(9000, 1), "/b/middle": random(5*chunk+7, 3), "/c/far": random(8000, 2), "/c/other": random(100, 4)}
		snap := o.tree(files, "/a/near", "/b/middle", "/c/far")
		demand, bulk := newOrigin(), newOrigin()
		demand.content, bulk.content = o.content, o.content
		step := make(chan struct{})
		s, err := Open(Options{Dir: filepath.Join(t.TempDir(), "store")})
		if err != nil {
			t.Fatal(err)
		}
		r := s.Reader(Source{Name: "origin", Origin: batchOrigin{demand}, Bulk: slowBatch{batchOrigin{bulk}, step}})
		ended, got := make(chan error, 1), make(chan error, 1)
		go func() { ended <- r.Stream(t.Context(), snap) }()
		synctest.Wait()
		content := func(p string) manifest.Content { return newOrigin().file(p, files[p]) }
		want := func(p string) {
			go func() { got <- r.Ensure(t.Context(), content(p)) }()
			synctest.Wait()
		}
		want("/c/far") // 1.3 MB away: not waited for
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		for _, w := range []struct {
			path  string
			steps int // parts of the stream
		}{{"/a/near", 1}, {"/b/middle", 6}} {
			want(w.path)
			for range w.steps {
				select {
				case err := <-got:
					t.Fatalf("%s is there before it came: %v", w.path, err)
				default:
				}
				step <- struct{}{}
				synctest.Wait()
			}
			if err := <-got; err != nil {
				t.Fatal(err)
			}
		}
		step <- struct{}{}
		if err := <-ended; err != nil {
			t.Errorf("stream: %v", err)
		}
		for p, b := range files {
			if p != "/c/other" && !s.known(manifest.Sum(b)) {
				t.Errorf("%s is missing", p)
			}
		}
		d := content("/c/far").Digest
		if len(demand.asked) == 0 || demand.times(manifest.Range{Digest: d, Len: 8000}) != 1 || bulk.requests != 1 {
			t.Errorf("asked on the way for demand: %v; %d requests for bulk", demand.asked, bulk.requests)
		}
		for g := range demand.asked {
			if g.Digest != d && g.Len >= 0 {
				t.Errorf("asked on the way for demand: %v", g)
			}
		}
		if st := s.Stats(); st.FetchedBytes != 9000+8000+5*chunk+7 {
			t.Errorf("%d bytes were fetched", st.FetchedBytes)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A stream that stands still, or breaks, keeps nobody waiting.
func TestStreamThatStops(t *testing.T) {
	for name, want := range map[string]struct {
		stop func(context.Context) error
		err  error
	}{
		"silent": {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, context.Canceled},
		"broken": {func(context.Context) error { return manifest.ErrUnavailable }, manifest.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin()
			small, large := random(9000, 1), random(5*chunk+7, 3)
			snap := o.tree(map[string][]byte{"/small": small, "/large": large}, "/small", "/large")
			bulk := newOrigin()
			bulk.content, bulk.gate = o.content, want.stop
			s := openStore(t, Options{})
			r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}, Bulk: batchOrigin{bulk}})
			ctx, stop := context.WithCancel(ctxOf(t))
			ended := make(chan error, 1)
			go func() { ended <- r.Stream(ctx, snap) }()
			waitFor(t, func() bool { return r.stream.Load() != nil })
			start := time.Now()
			mustRead(t, r, newOrigin().file("/small", small), small)
			mustRead(t, r, newOrigin().file("/large", large), large)
			if d := time.Since(start); d > DefaultDeadline/2 {
				t.Errorf("reads took %v", d)
			}
			stop()
			if err := <-ended; !errors.Is(err, want.err) && err != nil {
				t.Errorf("stream ended with %v", err)
			}
		})
	}
}

// What the host has is not asked for; what only looks like it is, a little later.
func TestStreamAndTheHost(t *testing.T) {
	root, o := t.TempDir(), newOrigin()
	same, other := random(9000, 1), random(8000, 2)
	writeFile(t, root+"/usr/lib/same", same)
	writeFile(t, root+"/usr/lib/other", random(8000, 3))
	settleClock()
	snap := o.tree(map[string][]byte{"/usr/lib/same": same, "/usr/lib/other": other}, "/usr/lib/same", "/usr/lib/other")
	s := openStore(t, Options{HostRoot: root})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	if err := r.Stream(ctxOf(t), snap); err != nil {
		t.Fatal(err)
	}
	before := o.total()
	mustRead(t, r, newOrigin().file("/usr/lib/same", same), same)
	mustRead(t, r, newOrigin().file("/usr/lib/other", other), other)
	if n := o.total(); n != before {
		t.Errorf("%d requests after the stream", n-before)
	}
	if st := s.Stats(); st.HostHits != 1 || st.FetchedFiles != 1 {
		t.Errorf("stats %+v", st)
	}
}
