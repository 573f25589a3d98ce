package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/manifest"
	"srvfs/rpc"
	"srvfs/store"
)

// Ways are the connections to a source, which all its views share: one for what
// somebody waits for, and several for the rest. They are kept: a start need not
// wait for TCP, and for TLS five times over.
type ways struct {
	source *rpc.Source
	demand *rpc.Client
	bulk   *rpc.Lanes
	health *store.Health
	offers []rpc.ServiceInfo // of a standby, as it said last; guarded by the daemon's mu
}

// client returns the connections to a source.
func (d *daemon) client(s *rpc.Source) (*ways, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.clients[s.Fingerprint]
	if w != nil && w.leadsTo(s.Addresses) {
		return w, nil
	}
	demand, err := rpc.Dial(s, d.identity, rpc.ClientOptions{Deadline: d.Deadline})
	if err != nil {
		return nil, err
	}
	bulk, err := rpc.DialLanes(s, d.identity, rpc.ClientOptions{Deadline: d.Deadline}, rpc.DefaultLanes)
	if err != nil {
		return nil, errors.Join(err, demand.Close())
	}
	if w != nil {
		d.retired = append(d.retired, w) // what reads through it may go on
	}
	w = &ways{source: s, demand: demand, bulk: bulk, health: &store.Health{}}
	d.clients[s.Fingerprint] = w
	d.work.Go(func() { d.keepConnected(d.ctx, w) })
	return w, nil
}

// leadsTo reports whether these are the addresses that w was made for, in
// whatever order.
func (w *ways) leadsTo(addresses []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(w.source.Addresses)), slices.Sorted(slices.Values(addresses)))
}

// keepConnected keeps a source's connections until ctx ends. While the source does
// not answer, only one of them tries.
func (d *daemon) keepConnected(ctx context.Context, w *ways) {
	for w.demand.AwaitConnected(ctx) == nil {
		w.health.Connected()
		connected, lost := context.WithCancel(ctx)
		var asking sync.WaitGroup
		if w.source.Standby {
			asking.Go(func() { d.keepAsking(connected, w) })
		}
		if w.bulk.AwaitConnected(ctx) == nil {
			d.measure(ctx, w)
		}
		if w.demand.AwaitLost(ctx) == nil {
			w.health.Lost(errLost)
			d.Log.Warn("connection lost", "source", w.source.String())
		}
		lost()
		asking.Wait()
	}
}

var errLost = fmt.Errorf("the connection is lost: %w", manifest.ErrUnavailable)

// measure has new connections learn the wire. One command that a daemon was started
// for is not worth what that moves.
func (d *daemon) measure(ctx context.Context, w *ways) {
	var rate float64
	var err error
	if d.Stay {
		rate, err = w.bulk.Measure(ctx)
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		d.Log.Warn("connected", "source", w.source.String(), "error", err)
	case rate > 0:
		d.Log.Info("connected", "source", w.source.String(), "rate", cli.Bytes(uint64(rate))+"/s")
	default:
		d.Log.Info("connected", "source", w.source.String())
	}
}

// connect begins to connect to all sources that this host is paired with.
func (d *daemon) connect() error {
	all, err := d.sources.List()
	errs := []error{err}
	for i := range all {
		_, err := d.client(&all[i])
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// connectOp is called when a source was added.
func (d *daemon) connectOp(context.Context, control.Call, control.Stream) (any, error) {
	return nil, d.connect()
}

func (d *daemon) closeClients() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, w := range d.clients {
		d.retired = append(d.retired, w)
	}
	for _, w := range d.retired {
		errs = append(errs, w.demand.Close(), w.bulk.Close())
	}
	d.retired = nil
	return errors.Join(errs...)
}
