package rpc

import (
	"context"
	"errors"
	"os"
	"testing"
)

// A connection that is kept is there before the first call, is missed when the
// source ends, and comes back with it.
func TestConnectedAgain(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	c := w.pair(ClientOptions{})
	lanes, err := DialLanes(c.Source(), w.standby, ClientOptions{}, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lanes.Close() }()
	both := func() {
		t.Helper()
		if err := errors.Join(c.AwaitConnected(w.ctx()), lanes.AwaitConnected(w.ctx())); err != nil {
			t.Fatal(err)
		}
	}
	both()
	if c.link.address() != w.addr {
		t.Errorf("connected to %q", c.link.address())
	}
	w.stop()
	if err := c.AwaitLost(w.ctx()); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancelCause(w.ctx())
	why := errors.New("had enough")
	cancel(why)
	if err := c.AwaitConnected(gone); !errors.Is(err, why) {
		t.Errorf("got %v while the source is away", err)
	}
	w.serve(w.addr, ServerOptions{})
	both()
	if _, err := c.List(w.ctx()); err != nil {
		t.Error(err)
	}
	if err := c.AwaitLost(gone); !errors.Is(err, why) {
		t.Errorf("got %v while it stands", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{c.AwaitConnected(w.ctx()), c.AwaitLost(w.ctx())} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v from a closed client", err)
		}
	}
}
