package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"srvfs/manifest"
)

// names returns what a reader would ask, in order.
func names(r *Reader) (all []string) {
	for _, o := range r.Sources() {
		all = append(all, o.Name)
	}
	return all
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: asked in the order %v, want %v", what, got, want)
	}
}

// Sources are asked by rank, the nearest first; those that fail come last, and are back
// in their place when they can be reached.
func TestOrderOfSources(t *testing.T) {
	far, near, source, archive := &Health{}, &Health{}, &Health{}, &Health{}
	r := openStore(t, Options{}).Reader(
		Source{Name: "archive", Origin: newOrigin(), Rank: 3, Health: archive},
		Source{Name: "source", Origin: newOrigin(), Rank: 2, Health: source},
		Source{Name: "far", Origin: newOrigin(), Rank: 1, Health: far},
		Source{Name: "near", Origin: newOrigin(), Rank: 1, Health: near},
	)
	same(t, "nothing measured", names(r), "far", "near", "source", "archive")
	near.Measured(time.Millisecond)
	same(t, "one measured", names(r), "near", "far", "source", "archive")
	far.Measured(time.Microsecond)
	same(t, "the other is nearer", names(r), "far", "near", "source", "archive")
	far.Lost(io.ErrUnexpectedEOF)
	same(t, "it is lost", names(r), "near", "source", "archive", "far")
	if c := far.Condition(); !errors.Is(c.Failing, io.ErrUnexpectedEOF) || c.Since.IsZero() {
		t.Errorf("its condition: %+v", c)
	}
	far.Connected()
	same(t, "it is back", names(r), "far", "near", "source", "archive")
	if c := far.Condition(); c.Failing != nil {
		t.Errorf("its condition: %+v", c)
	}
}

// A source that is silent costs a second once, then a moment from time to time, and
// ever more rarely; one that is asked again and answers is back.
func TestSilentSourceIsPassedOver(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		silent, good := newOrigin(), newOrigin()
		silent.gate = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		s, err := Open(Options{Dir: filepath.Join(dir, "store")})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		health := &Health{}
		reader := func() *Reader {
			return s.Reader(Source{Name: "silent", Origin: silent, Health: health}, Source{Name: "good", Origin: good})
		}
		next := uint64(0)
		read := func(r *Reader) time.Duration {
			t.Helper()
			next++
			b := random(1000, next)
			c := good.file(fmt.Sprintf("/%d", next), b)
			silent.file(c.Path, b)
			start := time.Now()
			if err := r.Ensure(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			return time.Since(start)
		}
		if took := read(reader()); took != patience {
			t.Errorf("the first read took %v", took)
		}
		// Another reader knows by then.
		var stalls []time.Duration
		begin := time.Now()
		for r := reader(); time.Since(begin) < 2*time.Minute; time.Sleep(100 * time.Millisecond) {
			if took := read(r); took > trial {
				t.Errorf("a read took %v", took)
			} else if took > 0 {
				stalls = append(stalls, time.Since(begin).Round(time.Second))
			}
		}
		if fmt.Sprint(stalls) != "[1s 4s 8s 16s 32s 1m3s 1m33s]" {
			t.Errorf("reads were held up at %v", stalls)
		}
		silent.gate = nil
		time.Sleep(restMost)
		before := silent.total()
		if took := read(reader()); took != 0 || silent.total() != before+1 || health.Condition().Failing != nil {
			t.Errorf("when it is back: %v, asked %d times, %+v", took, silent.total()-before, health.Condition())
		}
	})
}

// A source that fails alone is asked again after a second, however often it failed.
func TestOnlySourceIsAskedAgain(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := newOrigin()
		c := o.file("/f", random(1000, 1))
		s, err := Open(Options{Dir: filepath.Join(dir, "store")})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		r := s.Reader(Source{Name: "o", Origin: o})
		o.fail = func(manifest.Range) error { return manifest.ErrUnavailable }
		for i := range 6 {
			if err := r.Ensure(t.Context(), c); !errors.Is(err, manifest.ErrUnavailable) || o.total() != i+1 {
				t.Fatalf("attempt %d: %v, asked %d times", i, err, o.total())
			}
			time.Sleep(restFor)
		}
		o.fail = nil
		if err := r.Ensure(t.Context(), c); err != nil {
			t.Error(err)
		}
	})
}

// dialOrigin connects first, to where nobody listens.
type dialOrigin struct {
	*memoryOrigin
	addr string
}

func (o dialOrigin) Fetch(ctx context.Context, d manifest.Digest, off, n int64) (io.ReadCloser, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", o.addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, manifest.ErrUnavailable)
	}
	return nil, c.Close()
}

// A source that refuses the connection is passed over at once, and one that sends wrong
// bytes is named with the file that it spoiled.
func TestDeadAndCorruptSources(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	bad, good := newOrigin(), newOrigin()
	b := random(5*chunk, 3)
	c := good.file("/usr/share/large", b)
	bad.file("/usr/share/large", b)
	bad.spoil = func(p []byte) []byte { p[0]++; return p }
	dead, wrong := &Health{}, &Health{}
	r := openStore(t, Options{}).Reader(
		Source{Name: "dead", Origin: dialOrigin{newOrigin(), addr}, Health: dead},
		Source{Name: "wrong", Origin: bad, Health: wrong},
		Source{Name: "good", Origin: good},
	)
	mustRead(t, r, c, b)
	if s := dead.Condition(); !errors.Is(s.Failing, manifest.ErrUnavailable) {
		t.Errorf("the dead one: %+v", s)
	}
	if s := wrong.Condition(); s.Corrupt == 0 || s.LastBad != "/usr/share/large" || s.Failing != nil {
		t.Errorf("the one that sends wrong bytes: %+v", s)
	}
	same(t, "afterwards", names(r), "wrong", "good", "dead")
}

// slowOrigin answers a batch after a while, in which it hears the other side, or not.
type slowOrigin struct {
	batchOrigin
	takes time.Duration
	deaf  bool
}

func (o slowOrigin) Silence() time.Duration {
	if o.deaf {
		return time.Hour
	}
	return 100 * time.Millisecond
}

func (o slowOrigin) FetchBatch(ctx context.Context, want []manifest.Range, yield func(int, []byte, error) error) error {
	select {
	case <-time.After(o.takes):
		return o.batchOrigin.FetchBatch(ctx, want, yield)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// In the background too a source that is silent is passed over, but not one whose long
// answer is on its way.
func TestPrefetchPassesOverSilence(t *testing.T) {
	dir := t.TempDir()
	for _, deaf := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			first, second := newOrigin(), newOrigin()
			files := map[string][]byte{"/a": random(1000, 1), "/b": random(2000, 2)}
			first.tree(files)
			snap := second.tree(files)
			s, err := Open(Options{Dir: filepath.Join(dir, fmt.Sprint(deaf))})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			quick := batchOrigin{first}
			r := s.Reader(
				Source{Name: "first", Origin: quick, Bulk: slowOrigin{quick, 4 * time.Second, deaf}},
				Source{Name: "second", Origin: batchOrigin{second}},
			)
			start := time.Now()
			if err := r.Prefetch(t.Context(), snap, func(Progress) {}); err != nil {
				t.Fatal(err)
			}
			got := second.total() > 0
			if took := time.Since(start); got != deaf || deaf && took >= 2*time.Second || !deaf && took < 4*time.Second {
				t.Errorf("deaf %v: took %v, the second was asked %v", deaf, took, got)
			}
		})
	}
}

// A standby that has nothing of what is asked for is asked last for a while, and is no
// failing one.
func TestSourceThatLacksAll(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		empty, full := newOrigin(), newOrigin()
		s, err := Open(Options{Dir: filepath.Join(dir, "store")})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		health := &Health{}
		r := s.Reader(Source{Name: "empty", Origin: empty, Health: health}, Source{Name: "full", Origin: full})
		next := uint64(0)
		read := func() {
			t.Helper()
			next++
			if err := r.Ensure(t.Context(), full.file(fmt.Sprintf("/%d", next), random(100, next))); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 * lacking {
			read()
		}
		if n := empty.total(); n != lacking || health.Condition().Failing != nil {
			t.Errorf("asked %d times for what it does not have; %+v", n, health.Condition())
		}
		time.Sleep(lackFor)
		read()
		read()
		if n := empty.total(); n != lacking+1 {
			t.Errorf("later asked %d times", n-lacking)
		}
		time.Sleep(lackFor)
		next++
		b := random(100, next)
		if err := r.Ensure(t.Context(), empty.file("/has", b)); err != nil {
			t.Fatal(err)
		}
		same(t, "it had that", names(r), "empty", "full")
	})
}
