package rpc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"srvfs/manifest"
)

// Lanes are several connections to one source, for bulk: [manifest.Batcher] over
// all of them. A connection alone begins with 14 KB a round trip, whatever the
// wire can do, and is bounded later by the buffers that the kernels allow it
// (Debian: 4 MB, which is 84 MB/s at 50 ms). Several begin with several times as
// much, and what one waits for in vain, after a loss, the others go on without.
type Lanes struct {
	clients []*Client
	next    atomic.Uint32

	measuring atomic.Pointer[context.CancelCauseFunc] // ends the measurement under way
}

var _ manifest.Batcher = (*Lanes)(nil)

// DefaultLanes is a good number of connections. At 50 ms and 1 Gbit/s the 5 MB that
// a start of nginx needs take 0.49 s on four and 0.55 s on one.
const DefaultLanes = 4

// DialLanes returns n connections to the source, as [Dial] makes one.
func DialLanes(source *Source, id *Identity, opts ClientOptions, n int) (*Lanes, error) {
	l := &Lanes{}
	for range max(1, n) {
		c, err := Dial(source, id, opts)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.clients = append(l.clients, c)
	}
	return l, nil
}

// String names the source, as an origin in messages and logs.
func (l *Lanes) String() string { return l.clients[0].String() }

// AwaitConnected returns when all connections stand, as [Client.AwaitConnected].
func (l *Lanes) AwaitConnected(ctx context.Context) error {
	for _, c := range l.clients {
		c.conn.Connect()
	}
	for _, c := range l.clients {
		if err := c.AwaitConnected(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Silence returns for how long nothing has come on any of the connections.
func (l *Lanes) Silence() time.Duration {
	least := l.clients[0].Silence()
	for _, c := range l.clients[1:] {
		least = min(least, c.Silence())
	}
	return least
}

// Close ends all calls under way with an error.
func (l *Lanes) Close() error {
	var errs []error
	for _, c := range l.clients {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Fetch implements [manifest.Origin] on one of the connections, in turn.
func (l *Lanes) Fetch(ctx context.Context, d manifest.Digest, off, n int64) (io.ReadCloser, error) {
	l.interrupt()
	return l.clients[int(l.next.Add(1))%len(l.clients)].Fetch(ctx, d, off, n)
}

// laneShare is how many bytes a batch must have for each connection that is used,
// so that a small one is not spread thin.
const laneShare = 64 << 10

// FetchBatch implements [manifest.Batcher]. The ranges are dealt out so that each
// connection has as many bytes to send, early ones first; they are yielded in
// order, while those that come too early wait in the connections' windows.
func (l *Lanes) FetchBatch(ctx context.Context, want []manifest.Range, yield func(i int, data []byte, err error) error) error {
	l.interrupt()
	deal := l.deal(want)
	if len(deal) == 1 {
		return l.clients[int(l.next.Add(1))%len(l.clients)].FetchBatch(ctx, want, yield)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var lanes sync.WaitGroup
	defer lanes.Wait()
	defer cancel(nil)
	owner := make([]*lane, len(want))
	for n, ranges := range deal {
		a := &lane{items: make(chan laneItem), taken: make(chan struct{}), ended: make(chan struct{})}
		part := make([]manifest.Range, len(ranges))
		for k, i := range ranges {
			part[k], owner[i] = want[i], a
		}
		client := l.clients[(n+int(l.next.Load()))%len(l.clients)]
		lanes.Go(func() { a.run(ctx, client, part) })
	}
	l.next.Add(1)
	for i, a := range owner {
		select {
		case item := <-a.items:
			if err := yield(i, item.data, item.err); err != nil {
				cancel(err)
				return err
			}
			select {
			case a.taken <- struct{}{}:
			case <-a.ended: // the caller has cancelled
				return a.err
			}
		case <-a.ended:
			return cmp.Or(a.err, fmt.Errorf("%v: cut short: %w", l, manifest.ErrCorrupt))
		}
	}
	return nil
}

// deal gives each connection that is to be used its ranges, by index.
func (l *Lanes) deal(want []manifest.Range) [][]int {
	size := func(r manifest.Range) int64 {
		if r.Len < 0 {
			return 16 << 10 // a page, of which nobody knows the length
		}
		return r.Len
	}
	var total int64
	for _, r := range want {
		total += size(r)
	}
	n := min(len(l.clients), int(total/laneShare), len(want))
	if n <= 1 {
		return [][]int{nil}
	}
	deal, load := make([][]int, n), make([]int64, n)
	for i, r := range want {
		least := 0
		for k := range load {
			if load[k] < load[least] {
				least = k
			}
		}
		deal[least] = append(deal[least], i)
		load[least] += size(r)
	}
	return deal
}

// A lane is one connection's part in a batch.
type lane struct {
	items chan laneItem
	taken chan struct{} // the item's memory is free again
	ended chan struct{} // closed when err is set: no more items come
	err   error
}

type laneItem struct {
	data []byte
	err  error
}

func (a *lane) run(ctx context.Context, c *Client, want []manifest.Range) {
	defer close(a.ended)
	a.err = c.FetchBatch(ctx, want, func(_ int, data []byte, err error) error {
		select {
		case a.items <- laneItem{data, err}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		select {
		case <-a.taken:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}
