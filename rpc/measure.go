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
	measureBytes = 3 << 20 // on each lane
	measureMax   = 16 << 20
	// measureTime, and measureTrips in round trips, whichever is longer, bound it: on
	// a slow wire little is moved.
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
// something is fetched.
func (l *Lanes) Measure(ctx context.Context) (rate float64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.measuring.Store(&cancel)
	defer l.measuring.Store(nil)
	defer func() {
		if errors.Is(context.Cause(ctx), errFetching) {
			err = nil
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

func (c *Client) measure(ctx context.Context, moved *atomic.Int64) error {
	const what = "measure the wire"
	w := c.watch(ctx, what)
	defer w.close()
	start := time.Now()
	var stream srvfspb.Srvfs_MeasureClient
	err := w.await(func() (err error) {
		stream, err = c.rpc.Measure(w.ctx, &srvfspb.MeasureRequest{Bytes: measureBytes})
		return err
	})
	var limit time.Duration
	for got := int64(0); err == nil; {
		var p *srvfspb.Piece
		if err = w.await(func() (err error) { p, err = stream.Recv(); return err }); err != nil {
			break
		}
		took := time.Since(start)
		if limit == 0 {
			limit = max(measureTime, measureTrips*took)
		}
		n := int64(len(p.GetData()))
		if got += n; n == 0 || got > measureBytes {
			return c.wrap(what, fmt.Errorf("%d bytes where %d were asked for: %w", got, measureBytes, manifest.ErrInvalid))
		}
		moved.Add(n)
		if took > limit {
			return nil
		}
	}
	if !errors.Is(err, io.EOF) {
		return w.fail(err)
	}
	return nil
}
