package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

// snapshotOf returns a snapshot of web whose root and metadata are these pages.
func snapshotOf(t testing.TB, pages ...[]byte) []byte {
	s := manifest.Snapshot{
		Service: "web", Sequence: 7, Created: 1, Source: "here", Totals: manifest.Totals{Dirs: 1},
		Root: manifest.Entry{Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: manifest.Sum(pages[0])},
	}
	for _, p := range pages {
		s.Metadata = append(s.Metadata, manifest.Sum(p))
	}
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func pagesOf(n, size int) (pages [][]byte, want []manifest.Range) {
	for i := range n {
		p := bytes.Repeat([]byte{byte(i), byte(i >> 8), 7}, size/3)
		pages = append(pages, p)
		want = append(want, manifest.Range{Digest: manifest.Sum(p), Len: -1})
	}
	return pages, want
}

// batch returns what a batch brings.
func batch(ctx context.Context, o manifest.Batcher, want []manifest.Range) (all [][]byte, err error) {
	err = o.FetchBatch(ctx, want, func(i int, data []byte, err error) error {
		if i != len(all) {
			return errors.New("out of order")
		}
		all = append(all, bytes.Clone(data))
		return err
	})
	return all, err
}

// The metadata that a start needs comes behind the snapshot: nobody asks for it.
func TestMetadataComesWithTheSnapshot(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	pages, want := pagesOf(20, 3000)
	late := w.lib.add("web", []byte("a page that no profile leads through"))
	for _, p := range pages {
		w.lib.add("web", p)
	}
	w.lib.snapshot["web"] = snapshotOf(t, pages...)
	c := w.pair(ClientOptions{})
	ctx, cancel := context.WithCancel(w.ctx())
	o, err := c.Open(ctx, manifest.Ref{Service: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if o.watch.free() {
		t.Error("the metadata depends on the context that the snapshot was waited with")
	}
	cancel() // as one does who would not have waited longer for the snapshot
	if b, err := o.Snapshot.Encode(); err != nil || !bytes.Equal(b, w.lib.snapshot["web"]) {
		t.Errorf("another snapshot: %d bytes, %v", len(b), err)
	}
	asked := make(chan [][]byte)
	go func() { // before any has come
		all, err := batch(w.ctx(), o, want)
		if err != nil {
			t.Error(err)
		}
		asked <- all
	}()
	if err := o.Receive(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if all := <-asked; !slices.EqualFunc(all, pages, bytes.Equal) {
		t.Errorf("%d pages of %d", len(all), len(pages))
	}
	// Only now is the source asked: for one that has been handed out, and another.
	before := w.lib.batches.Load()
	all, err := batch(w.ctx(), o, []manifest.Range{want[3], {Digest: late, Len: -1}})
	if err != nil || len(all) != 2 || !bytes.Equal(all[0], pages[3]) {
		t.Errorf("%d pages, %v", len(all), err)
	}
	if n := w.lib.batches.Load() - before; n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// Who has the snapshot before gets what has changed since then: for one name in a folder
// of 100,000 that is not much, and nothing has to be asked for.
func TestChangedPagesComeWithTheSnapshot(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	entries := make([]manifest.Entry, 100_000)
	for i := range entries {
		entries[i] = manifest.Entry{Name: fmt.Sprintf("message-%06d", i), Type: manifest.File, Mode: 0o644, Links: 1, Size: 1, Digest: manifest.Sum(fmt.Append(nil, i))}
	}
	mine := map[manifest.Digest]bool{}
	snapshot := func(sequence uint64) ([]byte, []manifest.Range) {
		var fresh []manifest.Range
		directory := func(entries []manifest.Entry) manifest.Digest {
			d, err := manifest.EncodeDirectory(entries, func(d manifest.Digest, b []byte) error {
				if !mine[d] {
					fresh = append(fresh, manifest.Range{Digest: d, Len: -1})
				}
				mine[d] = true
				w.lib.add("web", b)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		queue := manifest.Entry{Name: "queue", Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: directory(entries)}
		s := manifest.Snapshot{
			Service: "web", Sequence: sequence, Created: 1, Source: "here", Totals: manifest.Totals{Dirs: 2, Entries: 100_001, Files: 100_000, Bytes: 100_000},
			Root: manifest.Entry{Type: manifest.Dir, Mode: 0o755, Links: 3, Digest: directory([]manifest.Entry{queue})},
		}
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b, fresh
	}
	before, _ := snapshot(6)
	entries[77_777].Mode = 0o600
	after, want := snapshot(7)
	w.lib.older, w.lib.sequence, w.lib.snapshot["web"] = map[uint64][]byte{6: before}, 7, after
	c := w.pair(ClientOptions{})
	o, err := c.OpenSince(w.ctx(), manifest.Ref{Service: "web"}, 6)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan int)
	go func() { // before any has come
		all, err := batch(w.ctx(), o, want)
		if err != nil {
			t.Error(err)
		}
		n := len(after)
		for _, b := range all {
			n += len(b)
		}
		asked <- n
	}()
	if err := o.Receive(w.ctx()); err != nil {
		t.Fatal(err)
	}
	n := <-asked
	t.Logf("%d pages and the snapshot have %d bytes; %d batches", len(want), n, w.lib.batches.Load())
	if len(want) < 3 || n > 64<<10 {
		t.Errorf("%d pages and the snapshot have %d bytes", len(want), n)
	}
	if n := w.lib.batches.Load(); n != 3 { // the source's own: root, index, leaves
		t.Errorf("%d requests", n)
	}
	// A source that has the snapshot before no more sends what a start needs.
	w.lib.mu.Lock()
	w.lib.older = nil
	w.lib.mu.Unlock()
	if o, err = c.OpenSince(w.ctx(), manifest.Ref{Service: "web"}, 6); err != nil {
		t.Fatal(err)
	}
	if err := o.Receive(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if all, err := batch(w.ctx(), o, want); err != nil || len(all) != len(want) {
		t.Errorf("%d pages, %v", len(all), err)
	}
}

func TestMuchMetadataDoesNotComeWithTheSnapshot(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	pages, want := pagesOf(9, maxAlong/4) // more than goes along
	for _, p := range pages {
		w.lib.add("web", p)
	}
	w.lib.snapshot["web"] = snapshotOf(t, pages...)
	o, err := w.pair(ClientOptions{}).Open(w.ctx(), manifest.Ref{Service: "web", Sequence: 0})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Receive(w.ctx()); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range o.pages {
		if p != nil {
			n++
		}
	}
	if n != 4 {
		t.Errorf("%d pages came along, want 4", n)
	}
	if all, err := batch(w.ctx(), o, want); err != nil || !slices.EqualFunc(all, pages, bytes.Equal) {
		t.Errorf("%d pages of %d: %v", len(all), len(pages), err)
	}
	o.Forget()
	if all, err := batch(w.ctx(), o, want[:1]); err != nil || len(all) != 1 {
		t.Errorf("%d pages after all was forgotten: %v", len(all), err)
	}
}

// What is sent behind a snapshot is not believed, and the transfer's end is no
// end of what waits for it.
func TestHostileMetadata(t *testing.T) {
	pages, want := pagesOf(3, 300)
	snap := &srvfspb.Piece{Data: snapshotOf(t, pages...)}
	page := func(b []byte) *srvfspb.Piece { return &srvfspb.Piece{Data: b, Metadata: true} }
	for name, pieces := range map[string][]*srvfspb.Piece{
		"another page":   {snap, page(pages[0]), page([]byte("no page of it"))},
		"twice":          {snap, page(pages[0]), page(pages[0])},
		"empty":          {snap, page(pages[0]), page(nil)},
		"a bomb":         {snap, page(pages[0]), {Raw: pieceSize, Data: bomb(), Metadata: true}},
		"more snapshot":  {snap, page(pages[0]), {Data: pages[1]}},
		"first is wrong": {snap, page([]byte("no page of it"))},
	} {
		o, err := believe(t, &liar{pieces: pieces}).Open(testContext(t), manifest.Ref{Service: "web", Sequence: 7})
		if err == nil {
			err = o.Receive(testContext(t))
		} else if name != "first is wrong" {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !errors.Is(err, manifest.ErrCorrupt) && !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if o == nil {
			continue
		}
		all, err := batch(testContext(t), o, want)
		if len(all) < 1 || !bytes.Equal(all[0], pages[0]) || err == nil {
			t.Errorf("%s: %d pages, %v; want the good one, and what the source says to the rest", name, len(all), err)
		}
	}
}

func TestMetadataIsWaitedForNoLongerThanItMayCome(t *testing.T) {
	pages, want := pagesOf(2, 300)
	l := &liar{pieces: []*srvfspb.Piece{{Data: snapshotOf(t, pages...)}, {Data: pages[0], Metadata: true}}, silent: true}
	o, err := believe(t, l, ClientOptions{Deadline: time.Second}).Open(testContext(t), manifest.Ref{Service: "web", Sequence: 7})
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan error, 1)
	go func() { received <- o.Receive(testContext(t)) }()
	ctx, cancel := context.WithCancelCause(testContext(t))
	why := errors.New("had enough")
	n := 0
	err = o.FetchBatch(ctx, want, func(int, []byte, error) error {
		n++
		cancel(why)
		return nil
	})
	if n != 1 || !errors.Is(err, why) {
		t.Errorf("%d pages, %v", n, err)
	}
	// The source is silent: its deadline ends the transfer, and who waits goes on.
	if all, err := batch(testContext(t), o, want[1:]); len(all) != 0 || err == nil {
		t.Errorf("%d pages, %v", len(all), err)
	}
	wantErr(t, <-received, manifest.ErrUnavailable)
}
