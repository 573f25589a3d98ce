package store

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"

	"srvfs/manifest"
)

// Reading many small files one after the other costs few requests when they are
// asked for ahead, and each is asked for once, whoever was first.
func TestReadAheadMakesFewRequests(t *testing.T) {
	o := newOrigin()
	cs, _ := smallFiles(o)
	cs = cs[:1500]
	s := openStore(t, Options{})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	const window = 256
	// An origin without a delay answers a reader before its window has left.
	leaves := func(c manifest.Content) bool {
		if s.known(c.Digest) {
			return true
		}
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		return s.flights.aloft[key{workBlob, c.Digest}] != nil
	}
	for i, c := range cs {
		if i%(window/2) == 0 {
			end := min(i+window, len(cs))
			r.ReadAhead(cs[min(i+1, len(cs)):end])
			waitFor(t, func() bool { return leaves(cs[end-1]) })
		}
		mustRead(t, r, c, o.content[c.Digest])
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	// Each window is two requests of 1 MiB at most; the first file is the reader's.
	if limit := len(cs)/window*2*4 + 50; o.requests > limit {
		t.Errorf("%d requests for %d files, at most %d are due", o.requests, len(cs), limit)
	}
	for g, n := range o.asked {
		if n != 1 {
			t.Errorf("%v was asked for %d times", g, n)
		}
	}
}

// What is under way ahead is bounded, and makes room for more when it is there.
func TestReadAheadIsBounded(t *testing.T) {
	o := newOrigin()
	open := make(chan struct{})
	o.gate = func(ctx context.Context) error {
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var cs []manifest.Content
	for i := range 40 {
		cs = append(cs, o.file(name(i), random(1<<20, uint64(i)+900)))
	}
	large := o.file("/large", random(smallFile+1, 899))
	dir := filepath.Join(t.TempDir(), "store")
	s := openStore(t, Options{Dir: dir})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	requests := func() int {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.requests
	}
	r.ReadAhead(append([]manifest.Content{large, {Path: "/nonsense", Size: 5}}, cs...))
	waitFor(t, func() bool { return requests() == aheadBytes/groupBytes })
	for range 2 * aheadCalls { // there is no room for them
		r.ReadAhead(cs)
	}
	waitFor(t, func() bool {
		s.ahead.mu.Lock()
		defer s.ahead.mu.Unlock()
		return s.ahead.calls == 1
	})
	if n := requests(); n > aheadBytes/groupBytes {
		t.Errorf("%d requests of 1 MiB are under way, %d are the limit", n, aheadBytes/groupBytes)
	}
	close(open)
	waitFor(t, func() bool { return idle(s) })
	if n := o.times(manifest.Range{Digest: large.Digest, Len: large.Size}); n != 0 {
		t.Errorf("a large file was asked for %d times", n)
	}
	r.ReadAhead(cs)
	waitFor(t, func() bool { return idle(s) })
	if n := verifyBlobs(t, dir); n < 2*aheadBytes/groupBytes {
		t.Errorf("%d files have arrived", n)
	}
}

// idle reports whether nothing is under way ahead.
func idle(s *Store) bool {
	s.ahead.mu.Lock()
	defer s.ahead.mu.Unlock()
	return s.ahead.calls == 0 && s.ahead.files == 0 && s.ahead.bytes == 0 && s.ahead.pages == 0
}

// Nobody is told of a guess that failed; who needs the content tries himself,
// also if he waited for the guess.
func TestReadAheadFailsSilently(t *testing.T) {
	o := newOrigin()
	data := random(5000, 910)
	c := o.file("/f", data)
	page := o.put(random(100, 911))
	entered, fail := make(chan struct{}, 10), make(chan struct{})
	var failures atomic.Int64
	o.fail = func(manifest.Range) error {
		if failures.Add(1) > 2 {
			return nil
		}
		entered <- struct{}{}
		<-fail
		return manifest.ErrStale
	}
	var log logbook
	s := openStore(t, Options{Log: log.logger()})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	r.ReadAhead([]manifest.Content{c})
	r.MetaAhead([]manifest.Digest{page})
	<-entered
	<-entered
	done := make(chan error)
	go func() { done <- r.Ensure(ctxOf(t), c) }()
	waitFor(t, func() bool { // Ensure has joined
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		e := s.flights.aloft[key{workBlob, c.Digest}]
		return e != nil && e.flight.waiters == 2
	})
	close(fail)
	if err := <-done; err != nil {
		t.Errorf("who waited for a guess that failed: %v", err)
	}
	if _, err := r.Meta(ctxOf(t), []manifest.Digest{page}); err != nil {
		t.Errorf("metadata: %v", err)
	}
	mustRead(t, r, c, data)
	if log.String() != "" || s.Stats().Failed != 0 {
		t.Errorf("%d failures were counted, and the log says %q", s.Stats().Failed, log.String())
	}
}

// Metadata asked for ahead comes in one request, and Meta then needs none.
func TestMetaAhead(t *testing.T) {
	o := newOrigin()
	snap, _ := bigTree(o, 300)
	s := openStore(t, Options{})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	var pages []manifest.Digest
	for d, b := range o.content {
		if _, err := manifest.DecodePage(b); err == nil {
			pages = append(pages, d, d)
		}
	}
	r.MetaAhead(pages)
	waitFor(t, func() bool { return s.Stats().MetaFetched == uint64(len(pages)/2) && idle(s) })
	if o.requests != 1 {
		t.Errorf("%d requests", o.requests)
	}
	got, err := r.Meta(ctxOf(t), append(pages, snap.Root.Digest))
	if err != nil || o.requests != 1 {
		t.Fatal(err, o.requests)
	}
	for i, b := range got[:len(pages)] {
		if manifest.Sum(b) != pages[i] {
			t.Errorf("page %v is another", pages[i])
		}
	}
}

// The host's identical files come first, and closing the store ends it all.
func TestReadAheadPinsAndEnds(t *testing.T) {
	o := newOrigin()
	root := hostRoot(t)
	here := o.file("/srv/here", random(3000, 920))
	writeFile(t, root+"/srv/here", o.content[here.Digest])
	there := o.file("/srv/there", random(3000, 921))
	settleClock()
	entered := make(chan struct{})
	o.gate = func(ctx context.Context) error { close(entered); <-ctx.Done(); return ctx.Err() }
	s := openStore(t, Options{HostRoot: root})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	r.ReadAhead([]manifest.Content{here, there})
	<-entered
	if o.times(manifest.Range{Digest: here.Digest, Len: here.Size}) != 0 || s.Pin(here.Digest) == Unpinned {
		t.Error("the host's file was not pinned")
	}
	if err := s.Close(); err != nil { // waits for the request
		t.Fatal(err)
	}
	if !idle(s) {
		t.Error("something is under way in a closed store")
	}
	r.ReadAhead([]manifest.Content{there})
	r.MetaAhead([]manifest.Digest{there.Digest})
	if !idle(s) {
		t.Error("a closed store keeps places")
	}
}
