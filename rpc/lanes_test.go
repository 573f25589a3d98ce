package rpc

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"srvfs/manifest"
	"srvfs/manifest/origintest"
)

func (w *world) lanes(n int) *Lanes {
	w.t.Helper()
	c := w.pair(ClientOptions{})
	l, err := DialLanes(c.source, w.standby, ClientOptions{}, n)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestLanesConform(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	origintest.Run(t, origintest.World{Origin: w.lanes(3), Has: someContents(), Stale: []manifest.Digest{manifest.Sum([]byte("old"))}})
}

// TestLanesShare: a batch is dealt out evenly, arrives in order, and ends at
// once, for good and without a leak, when it is cancelled or its caller refuses.
func TestLanesShare(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	l := w.lanes(4)
	var want []manifest.Range
	var bodies [][]byte
	for d, b := range someContents() {
		for off := 0; off < len(b); off += 100_000 {
			n := min(100_000, len(b)-off)
			want = append(want, manifest.Range{Digest: d, Off: int64(off), Len: int64(n)})
			bodies = append(bodies, b[off:off+n])
		}
	}
	deal := l.deal(want)
	if len(deal) != 4 {
		t.Fatalf("dealt to %d connections", len(deal))
	}
	for k, part := range deal {
		var n int64
		for _, i := range part {
			n += want[i].Len
		}
		if n < 950_000 || n > 1_150_000 {
			t.Errorf("connection %d sends %d bytes", k, n)
		}
	}
	if one := l.deal(want[:1]); len(one) != 1 {
		t.Errorf("one range is dealt to %d connections", len(one))
	}
	next := 0
	err := l.FetchBatch(w.ctx(), want, func(i int, data []byte, err error) error {
		if err != nil || i != next || !bytes.Equal(data, bodies[i]) {
			t.Fatalf("item %d where %d is due: %d bytes, %v", i, next, len(data), err)
		}
		next++
		return nil
	})
	if err != nil || next != len(want) {
		t.Fatalf("%d items of %d: %v", next, len(want), err)
	}
	enough := errors.New("enough")
	if err := l.FetchBatch(w.ctx(), want, func(i int, _ []byte, _ error) error {
		if i == 3 {
			return enough
		}
		return nil
	}); !errors.Is(err, enough) {
		t.Errorf("a refusal became %v", err)
	}
	ctx, cancel := context.WithCancel(w.ctx())
	if err := l.FetchBatch(ctx, want, func(i int, _ []byte, _ error) error {
		if i == 2 {
			cancel()
		}
		return nil
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled batch ended with %v", err)
	}
}
