package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"srvfs/manifest"
)

// bigTree has many small files, a few large ones, and duplicates.
func bigTree(o *memoryOrigin, small int) (*manifest.Snapshot, map[string][]byte) {
	files := map[string][]byte{"/empty": nil, "/dup1": random(999, 50), "/dup2": random(999, 50)}
	for i := range small {
		files[name(i)] = random(100+i*13%5000, uint64(i)+4000)
	}
	for i := range 3 {
		files[fmt.Sprintf("/var/big%d", i)] = random(5*chunk+i*chunk/2, uint64(i)+5000)
	}
	files["/var/middle"] = random(2*chunk, 5100)
	return o.tree(files, name(5), "/var/big2", name(1)), files
}

func TestPrefetchDetaches(t *testing.T) {
	o := newOrigin()
	snap, files := bigTree(o, 800)
	root := hostRoot(t)
	local := 0
	for i := range 100 {
		writeFile(t, root+name(i), files[name(i)])
		local += len(files[name(i)])
	}
	settleClock()
	dir := filepath.Join(t.TempDir(), "store")
	s := openStore(t, Options{Dir: dir, HostRoot: root})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	before, err := r.Tally(ctxOf(t), snap)
	if err != nil || before.Detached || before.MissingMeta == 0 || before.Missing != before.Total || o.total() != 0 {
		t.Errorf("before: %+v, %v", before, err)
	}
	var last Progress
	var calls sync.Mutex
	if err := r.Prefetch(ctxOf(t), snap, func(p Progress) {
		if !calls.TryLock() {
			t.Error("report is called twice at a time")
			return
		}
		defer calls.Unlock()
		if p.Done.Files < last.Done.Files || p.Done.Files > p.Total.Files || p.Done.Bytes > p.Total.Bytes {
			t.Errorf("from %+v to %+v", last, p)
		}
		last = p
	}); err != nil {
		t.Fatal(err)
	}
	if last.Done != last.Total || last.Host.Files != 100 || last.Host.Bytes != int64(local) || last.Failed.Files != 0 {
		t.Errorf("at the end %+v", last)
	}
	tally, err := r.Tally(ctxOf(t), snap)
	if err != nil || !tally.Detached || tally.Local.Files != 100 || tally.Local.Bytes != int64(local) ||
		tally.Stored.Files+100 != tally.Total.Files || tally.Missing != (Count{}) || tally.MissingMeta != 0 {
		t.Errorf("after: %+v, %v", tally, err)
	}
	if o.requests > 60 {
		t.Errorf("%d requests for %d files", o.requests, len(files))
	}
	for g, n := range o.asked {
		if n != 1 {
			t.Errorf("%v was asked for %d times", g, n)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// Without source, and with the host's files gone.
	if err := os.RemoveAll(root + "/srv"); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Options{Dir: dir, HostRoot: root})
	r = s.Reader()
	for p, b := range files {
		mustRead(t, r, newOrigin().file(p, b), b)
	}
	if tally, err = r.Tally(ctxOf(t), snap); err != nil || !tally.Detached {
		t.Errorf("later: %+v, %v", tally, err)
	}
	if err := r.Prefetch(ctxOf(t), snap, nil); err != nil {
		t.Errorf("prefetch of what is there, without a source: %v", err)
	}
	v, err := s.Verify(ctxOf(t))
	if err != nil || len(v.Removed) != 0 || v.Files != 806 {
		t.Errorf("verify: %+v, %v", v, err)
	}
}

// The profile's files come first; an interrupted Prefetch goes on where it was.
func TestPrefetchOrderAndResume(t *testing.T) {
	o := newOrigin()
	snap, _ := bigTree(o, 400)
	dir := filepath.Join(t.TempDir(), "store")
	s := openStore(t, Options{Dir: dir})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	ctx, cancel := context.WithCancel(ctxOf(t))
	var mu sync.Mutex
	served := 0
	o.fail = func(g manifest.Range) error {
		mu.Lock()
		defer mu.Unlock()
		if g.Len > 0 {
			if served++; served == 150 {
				cancel()
			}
		}
		return nil
	}
	if err := r.Prefetch(ctx, snap, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	o.mu.Lock() // requests that were under way may still ask
	o.fail = nil
	o.mu.Unlock()
	st := s.Stats()
	if st.FetchedFiles == 0 {
		t.Error("nothing was kept of an interrupted prefetch")
	}
	if err := r.Prefetch(ctxOf(t), snap, nil); err != nil {
		t.Fatal(err)
	}
	twice := 0
	o.mu.Lock()
	defer o.mu.Unlock()
	for g, n := range o.asked {
		if n > 1 && g.Len > 0 {
			twice++
		}
	}
	// What was in flight when it was interrupted comes again.
	if limit := groupStreams*groupFiles + fillStreams; twice > limit {
		t.Errorf("%d ranges were fetched twice, at most %d were in flight", twice, limit)
	}
}

// Each rank is here, whole, before anything of the next is asked for.
func TestPrefetchTakesRanksInOrder(t *testing.T) {
	o := newOrigin()
	files := map[string][]byte{}
	var marks []manifest.Mark
	rank := map[manifest.Digest]manifest.Rank{}
	add := func(p string, n int, r manifest.Rank) {
		files[p] = random(n, uint64(len(files))+9000)
		marks = append(marks, manifest.Mark{Path: p, Rank: r})
		rank[manifest.Sum(files[p])] = r
	}
	for r := range manifest.Rank(manifest.Ranks) {
		for i := range 40 {
			add(fmt.Sprintf("/%c/f%d", 'z'-rune(r), i), 500, r) // by name it would be the other way round
			add(fmt.Sprintf("/mixed/%d-%d", i, r), 500, r)
		}
		add(fmt.Sprintf("/mixed/large%d", r), 3*chunk, r)
	}
	first := "/a-profile"
	add(first, 500, manifest.RankData)
	snap := o.tree(files, first)
	order, err := manifest.MakeOrder(marks).Encode()
	if err != nil {
		t.Fatal(err)
	}
	snap.Order = manifest.Sum(order)
	o.content[snap.Order] = order
	var mu sync.Mutex
	var asked []manifest.Digest
	o.fail = func(g manifest.Range) error {
		mu.Lock()
		defer mu.Unlock()
		if _, ok := rank[g.Digest]; ok {
			asked = append(asked, g.Digest)
		}
		return nil
	}
	s := openStore(t, Options{})
	var stages []string
	if err := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}}).Prefetch(ctxOf(t), snap, func(p Progress) {
		if len(stages) == 0 || stages[len(stages)-1] != p.Stage {
			stages = append(stages, p.Stage)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if asked[0] != manifest.Sum(files[first]) {
		t.Error("the profile did not come first")
	}
	last := manifest.Rank(0)
	for _, d := range asked[1:] {
		if rank[d] < last {
			t.Fatalf("something %v was asked for after something %v", rank[d], last)
		}
		last = rank[d]
	}
	if len(asked) < len(files) || stages[len(stages)-1] != "data" {
		t.Errorf("%d requests for %d files; stages %v", len(asked), len(files), stages)
	}
	if tally, err := s.Reader().Tally(ctxOf(t), snap); err != nil || !tally.Detached {
		t.Errorf("%+v, %v", tally, err)
	}
	// What an order says is a hint: a snapshot whose order is lost comes all the same.
	lost := *snap
	lost.Order = manifest.Sum([]byte("lost"))
	other := openStore(t, Options{})
	if err := other.Reader(Source{Name: "origin", Origin: batchOrigin{o}}).Prefetch(ctxOf(t), &lost, nil); err != nil {
		t.Errorf("without its order: %v", err)
	}
	// The order is kept with the snapshot, and goes with it.
	if _, err := s.Collect(ctxOf(t), snap); err != nil || s.readMeta(snap.Order) == nil {
		t.Errorf("collect took the order of a snapshot that is needed: %v", err)
	}
	if _, err := s.Collect(ctxOf(t)); err != nil || s.readMeta(snap.Order) != nil {
		t.Errorf("collect left the order: %v", err)
	}
}

func TestPrefetchFailures(t *testing.T) {
	o := newOrigin()
	snap, files := bigTree(o, 200)
	stale := manifest.Sum(files[name(17)])
	o.fail = func(g manifest.Range) error {
		if g.Digest == stale {
			return manifest.ErrStale
		}
		return nil
	}
	s := openStore(t, Options{Deadline: 300 * time.Millisecond})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	err := r.Prefetch(ctxOf(t), snap, nil)
	if !errors.Is(err, manifest.ErrStale) || !strings.Contains(err.Error(), name(17)) {
		t.Errorf("one stale file: %v", err)
	}
	tally, terr := r.Tally(ctxOf(t), snap)
	if terr != nil || tally.Detached || tally.Missing.Files != 1 {
		t.Errorf("%+v, %v", tally, terr)
	}
	s = openStore(t, Options{Deadline: 300 * time.Millisecond})
	o.fail = func(g manifest.Range) error {
		if g.Len > 0 {
			return manifest.ErrUnavailable
		}
		return nil
	}
	if err := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}}).Prefetch(ctxOf(t), snap, nil); !errors.Is(err, manifest.ErrUnavailable) {
		t.Errorf("a source that goes away: %v", err)
	}
}

// A demand read is answered while a Prefetch waits for a slow source.
func TestDemandOvertakesPrefetch(t *testing.T) {
	o := newOrigin()
	snap, files := bigTree(o, 50)
	s := openStore(t, Options{})
	entered, open := make(chan struct{}, 100), make(chan struct{})
	slow := &memoryOrigin{content: o.content, asked: map[manifest.Range]int{}, gate: func(ctx context.Context) error {
		entered <- struct{}{}
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	if err := s.Reader(Source{Name: "meta", Origin: batchOrigin{o}}).Match(ctxOf(t), snap); err != nil {
		t.Fatal(err)
	}
	if err := walk(ctxOf(t), snap, func(ctx context.Context, d []manifest.Digest) ([][]byte, error) {
		return s.Reader(Source{Name: "meta", Origin: batchOrigin{o}}).Meta(ctx, d)
	}, visitor{file: func(string, *manifest.Entry) error { return nil }}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		done <- s.Reader(Source{Name: "slow", Origin: batchOrigin{slow}}).Prefetch(ctxOf(t), snap, nil)
	}()
	<-entered
	other := o.file("/other", random(5000, 60))
	mustRead(t, s.Reader(Source{Name: "origin", Origin: o}), other, random(5000, 60))
	close(open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for p, b := range files {
		mustRead(t, s.Reader(), newOrigin().file(p, b), b)
	}
}

func TestMatchPins(t *testing.T) {
	o := newOrigin()
	snap, files := bigTree(o, 60)
	root := hostRoot(t)
	for i := range 30 {
		writeFile(t, root+name(i), files[name(i)])
	}
	writeFile(t, root+"/usr/lib/big1", files["/var/big1"]) // found by its name
	settleClock()
	s := openStore(t, Options{HostRoot: root})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	if err := r.Match(ctxOf(t), snap); err != nil {
		t.Fatal(err)
	}
	tally, err := r.Tally(ctxOf(t), snap)
	if err != nil || tally.Local.Files != 31 || tally.Stored.Files != 0 || s.Stats().FetchedFiles != 0 {
		t.Errorf("%+v, %v, %+v", tally, err, s.Stats())
	}
}

// A tree that shares its pages could be endless, and its totals can lie.
func TestHostileTree(t *testing.T) {
	o := newOrigin()
	d, err := manifest.EncodeDirectory(nil, func(_ manifest.Digest, b []byte) error { o.put(b); return nil })
	if err != nil {
		t.Fatal(err)
	}
	for range 40 { // 2^40 directories
		d, err = manifest.EncodeDirectory([]manifest.Entry{
			{Name: "a", Type: manifest.Dir, Links: 2, Digest: d}, {Name: "b", Type: manifest.Dir, Links: 2, Digest: d},
		}, func(_ manifest.Digest, b []byte) error { o.put(b); return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	r := openStore(t, Options{}).Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	snap := &manifest.Snapshot{Service: "web", Sequence: 1, Root: manifest.Entry{Type: manifest.Dir, Links: 2, Digest: d}, Totals: manifest.Totals{Entries: 1000}}
	if err := r.Prefetch(ctxOf(t), snap, nil); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("prefetch: %v", err)
	}
	if _, err := r.Tally(ctxOf(t), snap); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("tally: %v", err)
	}
	for name, b := range map[string][]byte{"empty": {}, "noise": random(500, 70)} {
		snap.Root.Digest = o.put(b)
		if err := r.Prefetch(ctxOf(t), snap, nil); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%s as a page: %v", name, err)
		}
	}
}

// TestMetadataOnce: callers who want the same metadata at about the same time
// cost one request for each, however they come between one another.
func TestMetadataOnce(t *testing.T) {
	o := newOrigin()
	var digests []manifest.Digest
	for i := range 2000 {
		digests = append(digests, o.put(fmt.Appendf(nil, "page %d", i)))
	}
	s := openStore(t, Options{})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for _, d := range digests {
				if got, err := r.Meta(ctxOf(t), []manifest.Digest{d}); err != nil || manifest.Sum(got[0]) != d {
					t.Errorf("%v: %q, %v", d, got, err)
				}
			}
		})
	}
	callers.Wait()
	for _, d := range digests {
		if n := o.times(manifest.Range{Digest: d, Len: -1}); n != 1 {
			t.Errorf("%v was asked for %d times", d, n)
		}
	}
}
