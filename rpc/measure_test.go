package rpc

import (
	"context"
	"errors"
	"testing"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

func TestMeasure(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	c := w.pair(ClientOptions{})
	lanes, err := DialLanes(c.Source(), w.standby, ClientOptions{}, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lanes.Close() }()
	if rate, err := lanes.Measure(w.ctx()); err != nil || rate < 1e6 || rate > 1e12 {
		t.Errorf("%g bytes a second over loopback, %v", rate, err)
	}
	ctx, cancel := context.WithCancel(w.ctx())
	cancel()
	if _, err := lanes.Measure(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v when nobody wants to know", err)
	}
	s, err := c.rpc.Measure(w.ctx(), &srvfspb.MeasureRequest{Bytes: measureMax + 1})
	if err == nil {
		_, err = s.Recv()
	}
	wantErr(t, fromStatus(err), manifest.ErrInvalid, "at most")
}

// A measurement never delays what is needed: it ends, without an error, when
// something is fetched.
func TestMeasureGivesWay(t *testing.T) {
	c := believe(t, &liar{pieces: []*srvfspb.Piece{{Data: []byte("a")}}, silent: true})
	lanes := &Lanes{clients: []*Client{c}}
	type result struct {
		rate float64
		err  error
	}
	done := make(chan result, 1)
	go func() {
		rate, err := lanes.Measure(testContext(t))
		done <- result{rate, err}
	}()
	for lanes.measuring.Load() == nil { // it begins in a moment
		if len(done) > 0 {
			break
		}
	}
	// The liar has no batch: that the call fails says that it was made.
	err := lanes.FetchBatch(testContext(t), []manifest.Range{{Len: 2}}, func(int, []byte, error) error { return nil })
	wantErr(t, err, manifest.ErrCorrupt)
	if r := <-done; r.err != nil || r.rate != 0 {
		t.Errorf("%g bytes a second, %v", r.rate, r.err)
	}
}

func TestHostileMeasure(t *testing.T) {
	for name, pieces := range map[string][]*srvfspb.Piece{
		"more than asked for": {{Data: make([]byte, measureBytes+1)}},
		"empty":               {{}},
		"less than asked for": {{Data: []byte("a")}},
	} {
		lanes := &Lanes{clients: []*Client{believe(t, &liar{pieces: pieces})}}
		if _, err := lanes.Measure(testContext(t)); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
