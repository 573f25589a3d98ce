package world

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"srvfs/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	Private()
	os.Exit(m.Run())
}

// A wire delays and limits what TCP sends over it, and can be changed while
// connections live.
func TestWire(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w, err := New(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	far, near := client(ctx, t, w, "far"), client(ctx, t, w, "near")
	l, err := far.Listen(ctx, "tcp4", ":7")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); serve(l) }()
	defer func() { _ = l.Close(); <-done }()

	for _, wire := range []Wire{{}, {RTT: 10 * time.Millisecond}, {RTT: 50 * time.Millisecond, Rate: 1e9}, {RTT: time.Millisecond, Rate: 1e8}, {Rate: 1e9}, {}} {
		if err := far.SetWire(ctx, wire); err != nil {
			t.Fatal(err)
		}
		conn, err := near.Dial(ctx, "tcp4", far.Addr+":7") // TCP doesn't forget how long the last wire was
		if err != nil {
			t.Fatal(err)
		}
		rtt, rate := measure(t, conn)
		_ = conn.Close()
		t.Logf("%v: %v, %.0f Mbit/s ", wire, rtt.Round(10*time.Microsecond), rate/1e6)
		if rtt < wire.RTT || rtt > wire.RTT+wire.RTT/4+5*time.Millisecond {
			t.Errorf("%v: the fastest of the round trips took %v", wire, rtt)
		}
		if wire.Rate > 0 && rate > float64(wire.Rate) {
			t.Errorf("%v: %.0f bit/s fit through", wire, rate)
		}
	}
}

func client(ctx context.Context, t *testing.T, w *World, name string) *Host {
	t.Helper()
	h, err := w.boot(ctx, &Host{Name: name, Root: "/"})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// serve sends as many bytes as each number asks for, one connection after the
// other.
func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		zeros := make([]byte, transfer)
		for err == nil {
			var n uint32
			if err = binary.Read(c, binary.BigEndian, &n); err == nil {
				_, err = c.Write(zeros[:n])
			}
		}
		_ = c.Close()
	}
}

// transfer is the size in bytes of what measures the rate.
const transfer = 16 << 20

// measure returns the fastest of some round trips, and the rate in bits per
// second of a transfer.
func measure(t *testing.T, c net.Conn) (rtt time.Duration, rate float64) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	ask := func(n uint32) time.Duration {
		start := time.Now()
		err := binary.Write(c, binary.BigEndian, n)
		if err == nil {
			_, err = io.CopyN(io.Discard, c, int64(n))
		}
		if err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	rtt = time.Hour
	for range 10 {
		rtt = min(rtt, ask(1))
	}
	return rtt, transfer * 8 / ask(transfer).Seconds()
}
