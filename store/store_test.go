package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"srvfs/manifest"
)

const chunk = manifest.ChunkSize

func TestReadFetchesOnceAndKeeps(t *testing.T) {
	o := newOrigin()
	small, large := random(5000, 1), random(5*chunk+77, 2)
	cs, cl, ce := o.file("/small", small), o.file("/large", large), o.file("/empty", nil)
	dir := filepath.Join(t.TempDir(), "store")
	s := openStore(t, Options{Dir: dir})
	r := s.Reader(Source{Name: "origin", Origin: o})
	for range 2 {
		mustRead(t, r, cs, small)
		mustRead(t, r, cl, large)
		mustRead(t, r, ce, nil)
	}
	if err := r.Ensure(ctxOf(t), cl); err != nil {
		t.Fatal(err)
	}
	if n := verifyBlobs(t, dir); n != 3 {
		t.Errorf("%d blobs, want 3", n)
	}
	o.mu.Lock()
	for g, n := range o.asked {
		if n != 1 {
			t.Errorf("%v was asked for %d times", g, n)
		}
	}
	o.mu.Unlock()
	if st := s.Stats(); st.FetchedBytes != uint64(len(small)+len(large)) {
		t.Errorf("stats %+v", st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s2 := openStore(t, Options{Dir: dir})
	r2 := s2.Reader()
	mustRead(t, r2, cs, small)
	mustRead(t, r2, cl, large)
	if st := s2.Stats(); st.Rehashed != 0 {
		t.Errorf("after a clean restart %d blobs were hashed again", st.Rehashed)
	}
}

// What is held is known and opened without a source, and only as long as it is
// what was verified.
func TestHolds(t *testing.T) {
	o := newOrigin()
	small, large := random(5000, 1), random(5*chunk+77, 2)
	cs, cl := o.file("/small", small), o.file("/large", large)
	dir := filepath.Join(t.TempDir(), "store")
	r := openStore(t, Options{Dir: dir}).Reader(Source{Name: "origin", Origin: o})
	held := func(c manifest.Content) bool {
		f, ok := r.OpenHeld(c)
		if ok != r.Holds(c) {
			t.Fatalf("%s: opened %v, held %v", c.Path, ok, !ok)
		}
		if ok {
			got := make([]byte, c.Size)
			if _, err := f.ReadAt(ctxOf(t), got, 0); err != nil || manifest.Sum(got) != c.Digest {
				t.Errorf("%s: %v, %v", c.Path, manifest.Sum(got), err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
		return ok
	}
	if held(cs) || held(cl) {
		t.Error("a new store holds something")
	}
	mustRead(t, r, cs, small)
	f, err := r.Open(ctxOf(t), cl)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(ctxOf(t), make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	if !held(cs) || held(cl) {
		t.Error("one file that was read, and a chunk of another: the first alone is held")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Ensure(ctxOf(t), cl); err != nil {
		t.Fatal(err)
	}
	if !held(cl) {
		t.Error("a whole file is not held")
	}
	blob := filepath.Join(dir, "blobs", cs.Digest.Hex())
	if err := os.Chmod(blob, 0o600); err != nil {
		t.Fatal(err)
	}
	writeFile(t, blob, random(5000, 9))
	if held(cs) {
		t.Error("a file that was changed on the disk is held")
	}
	mustRead(t, r, cs, small)
}

func TestReadAtBounds(t *testing.T) {
	o := newOrigin()
	b := random(3*chunk, 3)
	c := o.file("/f", b)
	f, err := openStore(t, Options{}).Reader(Source{Name: "origin", Origin: o}).Open(ctxOf(t), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	p := make([]byte, 10)
	if n, err := f.ReadAt(ctxOf(t), p, c.Size-4); n != 4 || !errors.Is(err, io.EOF) || !bytes.Equal(p[:4], b[c.Size-4:]) {
		t.Errorf("across the end: %d, %v", n, err)
	}
	if n, err := f.ReadAt(ctxOf(t), p, c.Size); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if _, err := f.ReadAt(ctxOf(t), p, -1); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("before the beginning: %v", err)
	}
}

// A partial keeps its chunks over a restart, and hashes them again.
func TestPartialSurvivesRestart(t *testing.T) {
	o := newOrigin()
	b := random(16*chunk, 4)
	c := o.file("/f", b)
	dir := filepath.Join(t.TempDir(), "store")
	read := func(s *Store, at int64) {
		t.Helper()
		f, err := s.Reader(Source{Name: "origin", Origin: o}).Open(ctxOf(t), c)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		p := make([]byte, 100)
		if _, err := f.ReadAt(ctxOf(t), p, at); err != nil || !bytes.Equal(p, b[at:at+100]) {
			t.Fatalf("at %d: %v", at, err)
		}
	}
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	read(s, 3*chunk+5)
	read(s, 9*chunk)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// One of the two is damaged on the disk.
	part, err := os.OpenFile(filepath.Join(dir, "partial", partialID(c).Hex()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.WriteAt([]byte("damage"), 9*chunk+50); err != nil {
		t.Fatal(err)
	}
	if err := part.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Options{Dir: dir})
	before := o.total()
	read(s, 3*chunk+5)
	if n := o.total() - before; n != 0 {
		t.Errorf("a chunk that was there was fetched again (%d requests)", n)
	}
	read(s, 9*chunk)
	if n := o.total() - before; n != 1 {
		t.Errorf("%d requests for one damaged chunk", n)
	}
}

// 32 readers of one chunk cause one fetch; those who leave break nothing for
// the others; the fetch ends when the last one has left.
func TestOneFetchForManyReaders(t *testing.T) {
	o := newOrigin()
	small, large := random(900, 5), random(8*chunk, 6)
	cs, cl := o.file("/small", small), o.file("/large", large)
	s := openStore(t, Options{})
	r := s.Reader(Source{Name: "origin", Origin: o})
	if _, err := r.Meta(ctxOf(t), []manifest.Digest{cl.Chunks}); err != nil {
		t.Fatal(err)
	}
	arrived, open := make(chan struct{}, 64), make(chan struct{})
	o.gate = func(ctx context.Context) error {
		arrived <- struct{}{}
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, c := range []manifest.Content{cs, cl} {
		impatient, leave := context.WithCancel(ctxOf(t))
		var wg sync.WaitGroup
		for i := range 32 {
			ctx := ctxOf(t)
			if i%2 == 1 {
				ctx = impatient
			}
			wg.Go(func() {
				f, err := r.Open(ctx, c)
				if err == nil {
					p := make([]byte, 100)
					_, err = f.ReadAt(ctx, p, min(c.Size-100, 2*chunk))
					_ = f.Close()
				}
				if i%2 == 1 && !errors.Is(err, context.Canceled) || i%2 == 0 && err != nil {
					t.Errorf("reader %d: %v", i, err)
				}
			})
		}
		<-arrived
		waitFor(t, func() bool { return waiting(s, c) == 32 })
		leave()
		waitFor(t, func() bool { return waiting(s, c) == 16 })
		close(open)
		wg.Wait()
		open = make(chan struct{})
	}
	for _, g := range []manifest.Range{{Digest: cs.Digest, Len: cs.Size}, {Digest: cl.Digest, Off: 2 * chunk, Len: chunk}} {
		if n := o.times(g); n != 1 {
			t.Errorf("%v was asked for %d times by 32 readers", g, n)
		}
	}
	// Nobody waits any more: the origin sees its context end.
	ctx, leave := context.WithCancel(ctxOf(t))
	gone := make(chan struct{})
	o.gate = func(ctx context.Context) error { leave(); <-ctx.Done(); close(gone); return ctx.Err() }
	f, err := r.Open(ctxOf(t), cl)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(ctx, make([]byte, 10), 7*chunk); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled read: %v", err)
	}
	<-gone
	o.mu.Lock()
	o.gate = nil
	o.mu.Unlock()
	if _, err := f.ReadAt(ctxOf(t), make([]byte, 10), 7*chunk); err != nil {
		t.Errorf("read after a cancelled one: %v", err)
	}
	_ = f.Close()
}

// waiting returns how many wait for fetches of c.
func waiting(s *Store, c manifest.Content) (n int) {
	s.flights.mu.Lock()
	if e := s.flights.aloft[key{workBlob, c.Digest}]; e != nil {
		n += e.flight.waiters
	}
	s.flights.mu.Unlock()
	s.mu.Lock()
	p := s.partials[partialID(c)]
	s.mu.Unlock()
	if p != nil {
		p.mu.Lock()
		for _, h := range p.hauls {
			n += h.waiters
		}
		p.mu.Unlock()
	}
	return n
}

// waitFor polls a state that has no event.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}

func TestBadSources(t *testing.T) {
	good, bad := newOrigin(), newOrigin()
	small, large := random(3000, 7), random(9*chunk+1, 8)
	cs, cl := good.file("/usr/share/small", small), good.file("/usr/share/large", large)
	bad.file("/usr/share/small", small)
	bad.file("/usr/share/large", large)
	for name, set := range map[string]func(){
		"corrupt":  func() { bad.spoil = func(b []byte) []byte { b[len(b)/2] ^= 1; return b } },
		"short":    func() { bad.spoil = func(b []byte) []byte { return b[:len(b)-1] } },
		"stale":    func() { bad.fail = func(manifest.Range) error { return manifest.ErrStale } },
		"lost":     func() { bad.fail = func(manifest.Range) error { return manifest.ErrNotFound } },
		"gone":     func() { bad.fail = func(manifest.Range) error { return manifest.ErrUnavailable } },
		"half way": func() { bad.fail = failAfter(2) },
	} {
		t.Run(name, func(t *testing.T) {
			bad.spoil, bad.fail = nil, nil
			set()
			s := openStore(t, Options{})
			r := s.Reader(Source{Name: "bad", Origin: bad}, Source{Name: "good", Origin: good})
			mustRead(t, r, cs, small)
			mustRead(t, r, cl, large)
			if err := r.Ensure(ctxOf(t), cl); err != nil {
				t.Fatal(err)
			}
			if n := verifyBlobs(t, s.Dir()); n != 2 {
				t.Errorf("%d blobs", n)
			}
		})
	}
	t.Run("alone", func(t *testing.T) {
		bad.spoil, bad.fail = func(b []byte) []byte { b[0] ^= 1; return b }, nil
		book := &logbook{}
		r := openStore(t, Options{Log: book.logger()}).Reader(Source{Name: "bad", Origin: bad})
		for range 5 {
			if _, err := readAll(t, r, cs); !errors.Is(err, manifest.ErrCorrupt) || !errors.Is(err, manifest.ErrUnavailable) {
				t.Fatalf("corrupt from the only source: %v", err)
			}
		}
		if n := strings.Count(book.String(), "content can't be read"); n != 1 {
			t.Errorf("%d lines for one file:\n%s", n, book)
		}
		for _, want := range []string{"source=bad", "path=/usr/share/small"} {
			if !strings.Contains(book.String(), want) {
				t.Errorf("no %s in the log:\n%s", want, book)
			}
		}
		bad.fail = func(manifest.Range) error { return manifest.ErrStale }
		r = openStore(t, Options{}).Reader(Source{Name: "a", Origin: newOrigin()}, Source{Name: "b", Origin: bad})
		_, err := readAll(t, r, cs)
		if !errors.Is(err, manifest.ErrStale) || errors.Is(err, manifest.ErrUnavailable) || !strings.Contains(err.Error(), "/usr/share/small") {
			t.Errorf("stale: %v", err)
		}
		_, err = readAll(t, openStore(t, Options{}).Reader(), cs)
		if !errors.Is(err, manifest.ErrUnavailable) || !strings.Contains(err.Error(), "no source to ask") {
			t.Errorf("no source: %v", err)
		}
	})
}

// failAfter lets n requests pass.
func failAfter(n int) func(manifest.Range) error {
	var mu sync.Mutex
	return func(manifest.Range) error {
		mu.Lock()
		defer mu.Unlock()
		if n--; n < 0 {
			return manifest.ErrUnavailable
		}
		return nil
	}
}

// A source that answers nothing is given up after the deadline, and after a
// second if there is another one.
func TestDeadline(t *testing.T) {
	dir := t.TempDir()
	for _, twice := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			frozen, good := newOrigin(), newOrigin()
			frozen.gate = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
			b := random(2000, 9)
			c := good.file("/f", b)
			s, err := Open(Options{Dir: filepath.Join(dir, map[bool]string{true: "two", false: "one"}[twice])})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			sources := []Source{{Name: "frozen", Origin: frozen}}
			if twice {
				sources = append(sources, Source{Name: "good", Origin: good})
			}
			r := s.Reader(sources...)
			start := time.Now()
			err = r.Ensure(t.Context(), c)
			took := time.Since(start)
			if twice && (err != nil || took != patience) {
				t.Errorf("with another source: %v after %v", err, took)
			}
			if twice {
				return
			}
			if !errors.Is(err, manifest.ErrUnavailable) || took != DefaultDeadline || !strings.Contains(err.Error(), "frozen") || !strings.Contains(err.Error(), "10s") {
				t.Errorf("alone: %v after %v", err, took)
			}
			// For a second it is not asked again, then it is.
			n := frozen.total()
			start = time.Now()
			if err := r.Ensure(t.Context(), c); !errors.Is(err, manifest.ErrUnavailable) || time.Since(start) != 0 || frozen.total() != n {
				t.Errorf("at once again: %v after %v", err, time.Since(start))
			}
			time.Sleep(restFor)
			frozen.gate = nil
			frozen.file("/f", b)
			if err := r.Ensure(t.Context(), c); err != nil {
				t.Errorf("when it is back: %v", err)
			}
		})
	}
}

func TestLockNamesHolder(t *testing.T) {
	s := openStore(t, Options{})
	_, err := Open(Options{Dir: s.Dir()})
	if err == nil || !strings.Contains(err.Error(), "in use by process") || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("second open: %v", err)
	}
	if _, err := Open(Options{Dir: filepath.Join(t.TempDir(), "no", "such")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a parent: %v", err)
	}
}

func TestClosedStore(t *testing.T) {
	o := newOrigin()
	c := o.file("/f", random(100, 10))
	s := openStore(t, Options{})
	r := s.Reader(Source{Name: "origin", Origin: o})
	entered := make(chan struct{})
	o.gate = func(ctx context.Context) error { close(entered); <-ctx.Done(); return ctx.Err() }
	done := make(chan error)
	go func() { done <- r.Ensure(context.Background(), c) }()
	<-entered
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, manifest.ErrUnavailable) {
		t.Errorf("a fetch under way at Close: %v", err)
	}
	if err := r.Ensure(ctxOf(t), c); !errors.Is(err, manifest.ErrUnavailable) {
		t.Errorf("a fetch after Close: %v", err)
	}
}

func TestHostileContent(t *testing.T) {
	o := newOrigin()
	b := random(3000, 11)
	big := random(6*chunk, 12)
	c, cb := o.file("/f", b), o.file("/big", big)
	r := openStore(t, Options{}).Reader(Source{Name: "origin", Origin: o})
	other := o.file("/other", random(6*chunk, 13))
	for name, bad := range map[string]manifest.Content{
		"negative":       {Digest: c.Digest, Size: -1},
		"no digest":      {Size: 10},
		"no chunk list":  {Digest: cb.Digest, Size: cb.Size},
		"a list too few": {Digest: c.Digest, Size: c.Size, Chunks: cb.Chunks},
		"empty or not":   {Digest: c.Digest},
		"wrong size":     {Digest: cb.Digest, Size: cb.Size + chunk, Chunks: cb.Chunks},
	} {
		if _, err := r.Open(ctxOf(t), bad); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A chunk list of another file: its chunks verify, the whole does not.
	mixed := manifest.Content{Digest: cb.Digest, Size: cb.Size, Chunks: other.Chunks, Path: "/mixed"}
	o.spoil = func(p []byte) []byte {
		if i := bytes.Index(big, p[:min(64, len(p))]); i >= 0 && len(p) > 64 {
			return o.content[other.Digest][i : i+len(p)]
		}
		return p
	}
	if err := r.Ensure(ctxOf(t), mixed); !errors.Is(err, manifest.ErrCorrupt) {
		t.Errorf("a chunk list of another file: %v", err)
	}
	o.spoil = nil
	mustRead(t, r, cb, big)
}
