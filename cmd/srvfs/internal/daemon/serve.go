package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"srvfs/cmd/srvfs/internal/control"
	"srvfs/rpc"
)

// A serving answers other standbys, until it is told to end; also when the daemon is
// started anew.
type serving struct {
	serveRecord
	cancel context.CancelFunc
	done   chan struct{}
}

// A serveRecord is what is kept of it on disk.
type serveRecord struct {
	Listen string `json:"listen"` // address and port
}

// The folder of what belongs to it: whom this host lets in, which is nothing that it
// knows its own sources by.
func servingDir(state string) string { return filepath.Join(state, "serving") }
func (d *daemon) serveFile() string  { return filepath.Join(servingDir(d.State), "serve.json") }

// OpenPeers opens the peers of a standby: other standbys that may read what is here.
func OpenPeers(state string) (*rpc.Peers, error) {
	dir := servingDir(state)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return rpc.OpenPeersOf(dir, "srvfs peers token", "srvfs peers")
}

// Serves reports whether the daemon of a state folder is to serve other standbys.
func Serves(state string) bool {
	_, err := os.Stat(filepath.Join(servingDir(state), "serve.json"))
	return err == nil
}

// serveOp begins to serve other standbys at an address, instead of another one if there
// is one; or ends that.
func (d *daemon) serveOp(ctx context.Context, c control.Call, _ control.Stream) (any, error) {
	unlock, err := d.lock(ctx, "serve")
	if err != nil {
		return nil, err
	}
	defer unlock()
	d.mu.Lock()
	old := d.serving
	d.mu.Unlock()
	if c.Force {
		if err := os.Remove(d.serveFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if old == nil {
			return nil, fmt.Errorf("this host serves no other standbys")
		}
		return nil, d.endServing(ctx, old)
	}
	if old != nil && old.Listen != c.Listen {
		if err := d.endServing(ctx, old); err != nil {
			return nil, err
		}
		old = nil
	}
	if old == nil {
		if err := d.serve(ctx, serveRecord{c.Listen}); err != nil {
			return nil, err
		}
	}
	b, err := json.Marshal(serveRecord{c.Listen})
	if err != nil {
		return nil, err
	}
	return nil, renameio.WriteFile(d.serveFile(), b, 0o600)
}

// serve answers in the background.
func (d *daemon) serve(ctx context.Context, r serveRecord) error {
	peers, err := OpenPeers(d.State)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", r.Listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; choose another with --listen ADDR:PORT", r.Listen, err)
	}
	s := &serving{serveRecord: r, done: make(chan struct{})}
	ctx, s.cancel = context.WithCancel(d.ctx)
	d.mu.Lock()
	d.serving = s
	d.mu.Unlock()
	server := rpc.NewServer(d.identity, peers, relay{daemon: d}, rpc.ServerOptions{Log: d.Log, Grace: time.Second})
	d.work.Go(func() {
		defer close(s.done)
		d.Log.Info("serving other standbys", "address", l.Addr().String())
		if err := server.Serve(ctx, l); err != nil {
			d.Log.Error("other standbys are served no more", "error", err)
		}
	})
	return nil
}

func (d *daemon) endServing(ctx context.Context, s *serving) error {
	s.cancel()
	select {
	case <-s.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.serving = nil
	return nil
}

// resumeServing serves again if an earlier daemon did. An address that this host does
// not have yet may come: a daemon is started early.
func (d *daemon) resumeServing() error {
	b, err := os.ReadFile(d.serveFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var r serveRecord
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.serveFile(), err)
	}
	if err = d.serve(d.ctx, r); err == nil {
		return nil
	}
	d.work.Go(func() {
		for pause := time.Second; d.ctx.Err() == nil; pause = min(2*pause, followMost) {
			await(d.ctx, pause)
			if again, err := d.serveLate(r); err == nil || !again {
				return
			}
		}
	})
	return err
}

// serveLate is serve unless somebody has decided otherwise meanwhile, which it then
// reports.
func (d *daemon) serveLate(r serveRecord) (again bool, err error) {
	unlock, err := d.lock(d.ctx, "serve")
	if err != nil {
		return false, err
	}
	defer unlock()
	d.mu.Lock()
	serving := d.serving != nil
	d.mu.Unlock()
	if _, err := os.Stat(d.serveFile()); serving || err != nil {
		return false, err
	}
	return true, d.serve(d.ctx, r)
}
