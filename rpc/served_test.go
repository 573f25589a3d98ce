package rpc

import (
	"context"
	"net"
	"testing"
)

// What is given is counted by call and service, and who is connected is known for as long
// as that is so.
func TestServerStats(t *testing.T) {
	w := newPackedWorld(t)
	want := w.publish(t, 7, []byte("some content"), []byte("more"))
	if err := w.server.Pack(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if st := w.server.Stats(); len(st.Calls) != 0 || len(st.Services) != 0 || st.Standbys != 0 {
		t.Errorf("before anybody came: %+v", st)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(w.ctx())
	ended := make(chan error, 1)
	go func() { ended <- w.server.Serve(ctx, l) }()
	defer func() {
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	w.addr = l.Addr().String()
	c := w.pair(ClientOptions{})
	if err := c.FetchBatch(w.ctx(), want, func(_ int, _ []byte, err error) error { return err }); err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(w.ctx()); err != nil {
		t.Fatal(err)
	}
	st := w.server.Stats()
	if st.Calls["FetchBatch"] != 1 || st.Calls["List"] != 1 || st.Standbys != 1 || st.Conns < 1 {
		t.Errorf("%+v", st)
	}
	if got := st.Services["web"]; got.Contents != 2 || got.Bytes != uint64(len("some content")+len("more")) {
		t.Errorf("of web: %+v, all %+v", got, st)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for w.server.Stats().Standbys != 0 { // a connection's end is told by nobody else
		if w.ctx().Err() != nil {
			t.Fatalf("still connected: %+v", w.server.Stats())
		}
	}
}
