package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"srvfs/capture"
	"srvfs/cmd/internal/cli"
	"srvfs/cmd/internal/metrics"
	"srvfs/manifest"
	"srvfs/rpc"
)

func (p *program) serveCmd() *cobra.Command {
	var listen, monitor string
	var follow bool
	c := &cobra.Command{
		Use:   "serve",
		Short: "serve the snapshots to paired standbys",
		Long: `Serve answers paired standbys until it is told to end (SIGTERM, SIGINT).

Content is read from this host's live files when a standby asks for it; a file
that has changed since it was captured is refused, and named in the log. Captures
and pairings made meanwhile by other srvd commands are seen at once.

With --follow, a new snapshot is published whenever files of a service have changed:
those that it has, and those that come into folders that were captured as a whole.
What changes all the time is published at most every 30 seconds. Databases, and other
data that must be of one moment, are copied as a whole; those that were captured with
--freeze stay what they were until the next capture. When packages or units of a service
have changed, it is captured anew as it was asked for.

` + cli.Codes,
		Example: "  srvd serve\n  srvd serve --listen 192.0.2.10:7077\n  srvd serve --follow",
		Args:    cli.Args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := cli.NeedRoot("serve"); err != nil {
				return err
			}
			if monitor != "" {
				if err := metrics.Check(monitor); err != nil {
					return cli.UsageError(c, "--metrics %v", err)
				}
			}
			id, peers, err := p.open()
			if err != nil {
				return err
			}
			lib, err := capture.OpenLibrary(p.state)
			if err != nil {
				return err
			}
			live := lib.Live()
			defer func() { _ = live.Close() }()
			var lc net.ListenConfig
			l, err := lc.Listen(c.Context(), "tcp", listen)
			if err != nil {
				return fmt.Errorf("listen on %s: %w; choose another with --listen ADDR:PORT", listen, err)
			}
			log := p.log()
			log.Info("serving", "address", l.Addr().String(), "fingerprint", id.Fingerprint().String())
			t, err := tell(p.state, l.Addr().String(), follow, log)
			if err != nil {
				return errors.Join(err, l.Close())
			}
			defer t.close() // when nothing follows any more
			offer := provider{lib, live, newNews()}
			server := rpc.NewServer(id, peers, offer, rpc.ServerOptions{Log: log})
			told := newGauge(lib, server, t)
			ctx, end := context.WithCancel(c.Context())
			var work sync.WaitGroup
			defer work.Wait()
			defer end()
			if monitor != "" {
				m, err := metrics.Listen(ctx, monitor)
				if err != nil {
					return errors.Join(err, l.Close())
				}
				log.Info("metrics", "address", m.Addr().String())
				work.Go(func() {
					if err := metrics.Serve(ctx, m, log, told.gather); err != nil {
						log.Error("metrics are not told any more", "error", err)
					}
				})
			}
			work.Go(func() { // by itself: who waits for news does not wait for what else they mean
				if err := lib.Watch(ctx, offer.news.tell); err != nil {
					log.Warn("standbys that follow will not hear of new snapshots at once", "error", err)
				}
			})
			work.Go(func() {
				err := lib.Watch(ctx, func() {
					if err := told.look(); err != nil {
						log.Warn("what was published is not counted", "error", err)
					}
					if err := server.Pack(ctx); err != nil && ctx.Err() == nil {
						log.Warn("starts on standbys will take longer", "error", err)
					}
				})
				if err != nil {
					log.Warn("starts on standbys will take longer", "error", err)
				}
			})
			if follow {
				work.Go(func() {
					if err := lib.Follow(ctx, live, log, t.follow); err != nil {
						log.Error("changes are not followed", "error", err)
					}
				})
			}
			return server.Serve(ctx, l)
		},
	}
	c.Flags().StringVar(&listen, "listen", ":"+strconv.Itoa(rpc.DefaultPort), "address and port to listen on")
	c.Flags().StringVar(&monitor, "metrics", "", "answer Prometheus at this [HOST]:PORT, /metrics; without a host on this one alone (default: nowhere)")
	c.Flags().BoolVar(&follow, "follow", false, "publish a new snapshot when files of a service have changed")
	return c
}

// provider offers a capture library to the rpc server.
type provider struct {
	lib  *capture.Library
	live *capture.Live
	news *news
}

// news tells all who wait that something was published.
type news struct {
	mu   sync.Mutex
	next chan struct{} // closed with the next one
}

func newNews() *news { return &news{next: make(chan struct{})} }

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.next)
	n.next = make(chan struct{})
}

func (n *news) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.next
}

func (p provider) Await(ctx context.Context, service string, have manifest.Digest) (rpc.ServiceInfo, error) {
	for {
		next := p.news.wait() // before it is looked
		all, err := p.lib.History(service)
		if err != nil {
			return rpc.ServiceInfo{}, err
		}
		wait := all[0].Digest == have
		if wait {
			select {
			case <-next:
				continue
			case <-ctx.Done():
			}
		}
		infos, err := p.describe(all[:1])
		if err != nil {
			return rpc.ServiceInfo{}, err
		}
		if len(infos) > 0 {
			return infos[0], nil
		}
	}
}

func (p provider) Services(context.Context) ([]rpc.ServiceInfo, error) {
	list, err := p.lib.List()
	if err != nil {
		return nil, err
	}
	return p.describe(list)
}

func (p provider) History(_ context.Context, service string) ([]rpc.ServiceInfo, error) {
	list, err := p.lib.History(service)
	if err != nil {
		return nil, err
	}
	return p.describe(list)
}

func (p provider) describe(list []capture.Published) ([]rpc.ServiceInfo, error) {
	infos := make([]rpc.ServiceInfo, 0, len(list))
	for _, pub := range list {
		s, err := p.lib.Snapshot(manifest.Ref{Service: pub.Service, Sequence: pub.Sequence})
		if errors.Is(err, manifest.ErrNotFound) {
			continue // retired since it was listed
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, rpc.ServiceInfo{Name: s.Service, Sequence: s.Sequence, Created: time.Unix(0, s.Created), Digest: pub.Digest, Totals: s.Totals})
	}
	return infos, nil
}

func (p provider) Snapshot(_ context.Context, ref manifest.Ref) ([]byte, error) {
	return p.lib.Encoded(ref)
}

func (p provider) Missed(ctx context.Context, service, standby string, paths []string) ([]manifest.Verdict, error) {
	return p.lib.Missed(ctx, service, standby, paths)
}

func (p provider) Origin(allowed func(service string) bool) manifest.Batcher {
	return p.live.Restrict(allowed)
}
