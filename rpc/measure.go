package rpc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

// A TCP connection finds out what the wire can carry while it carries something: it
// begins with 14 KB a round trip, and at 50 ms takes a third of a second to get to
// 1 Gbit/s. A start would wait for that. With BBR (see tcp_linux.go) what a
// connection has learned holds while it is idle, so a standby that keeps its
// connections has them learn before they are needed. A measurement moves as much as
// a wire of 1 Gbit/s and 50 ms takes to be full, or what comes in a moment.
const (
	measureFirst = 64 << 10 // on each lane
	measureBytes = 4 << 20  // on each lane, altogether
	measureMax   = 16 << 20
	// measureTime, and measureTrips in round trips, whichever is longer, bound it: on
	// a slow wire little is moved, but for what was asked for last.
	measureTime  = 250 * time.Millisecond
	measureTrips = 12
)

// noise is what is sent to measure.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, pieceSize)
	_, _ = rand.Read(b) // never fails
	return b
})

func (h handlers) Measure(req *srvfspb.MeasureRequest, out srvfspb.Srvfs_MeasureServer) error {
	left := int(req.GetBytes())
	if left > measureMax {
		return fmt.Errorf("measure with %d bytes: at most %d: %w", left, measureMax, manifest.ErrInvalid)
	}
	for left > 0 {
		n := min(left, pieceSize/8) // the end of each is seen
		if err := out.Send(&srvfspb.Piece{Data: noise()[:n]}); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// Measure finds out how many bytes a second the source sends over all connections,
// and has them learn it. It takes a fraction of a second, and ends at once when
// something is fetched: the rate is then 0, not known.
func (l *Lanes) Measure(ctx context.Context) (rate float64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.measuring.Store(&cancel)
	defer l.measuring.Store(nil)
	defer func() {
		if errors.Is(context.Cause(ctx), errFetching) {
			rate, err = 0, nil
		}
	}()
	var moved atomic.Int64
	errs := make([]error, len(l.clients))
	var lanes sync.WaitGroup
	start := time.Now()
	for i, c := range l.clients {
		lanes.Go(func() { errs[i] = c.measure(ctx, &moved) })
	}
	lanes.Wait()
	return float64(moved.Load()) / time.Since(start).Seconds(), errors.Join(errs...)
}

var errFetching = errors.New("something is fetched")

// interrupt ends a measurement under way.
func (l *Lanes) interrupt() {
	if cancel := l.measuring.Load(); cancel != nil {
		(*cancel)(errFetching)
	}
}

// measure asks for twice as much each time, and takes all of it: what is on its way
// when nobody wants it any more would be in the way of what follows.
func (c *Client) measure(ctx context.Context, moved *atomic.Int64) error {
	w := c.watch(ctx, "measure the wire")
	defer w.close()
	start := time.Now()
	var limit time.Duration
	for n, left := measureFirst, measureBytes; left > 0; n *= 2 {
		n = min(n, left)
		if err := c.receiveNoise(w, n); err != nil {
			return err
		}
		left -= n
		moved.Add(int64(n))
		took := time.Since(start)
		if limit == 0 {
			limit = max(measureTime, measureTrips*took)
		}
		if took > limit {
			break
		}
	}
	return nil
}

// receiveNoise receives n bytes.
func (c *Client) receiveNoise(w *watch, n int) error {
	var stream srvfspb.Srvfs_MeasureClient
	err := w.await(func() (err error) {
		stream, err = c.rpc.Measure(w.ctx, &srvfspb.MeasureRequest{Bytes: uint32(n)})
		return err
	})
	got := 0
	for err == nil {
		var p *srvfspb.Piece
		if err = w.await(func() (err error) { p, err = stream.Recv(); return err }); err != nil {
			break
		}
		k := len(p.GetData())
		if got += k; k == 0 || got > n {
			return c.wrap(w.what, fmt.Errorf("%d bytes where %d were asked for: %w", got, n, manifest.ErrInvalid))
		}
	}
	switch {
	case !errors.Is(err, io.EOF):
		return w.fail(err)
	case got < n:
		return c.wrap(w.what, fmt.Errorf("%d bytes where %d were asked for: %w", got, n, manifest.ErrInvalid))
	}
	return nil
}
