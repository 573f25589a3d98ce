package transfer

import (
	"context"
	"net"
	"sync"
	"time"
)

// A wire is a line of so many bytes a second, and so long a way there and back.
// It delays what the source sends; TCP's own slow start it does not show.
type wire struct {
	rate float64 // bytes a second towards the standby
	rtt  time.Duration
}

func (w wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	wc := &wireConn{Conn: c, wire: w, arrived: sync.NewCond(&sync.Mutex{}), ended: make(chan struct{})}
	go wc.carry()
	return wc, nil
}

type wireConn struct {
	net.Conn
	wire wire

	arrived *sync.Cond // guards what follows
	queue   []parcel
	err     error
	ended   chan struct{}
}

type parcel struct {
	due  time.Time
	data []byte
}

// carry takes what the source sends as fast as the wire lets it.
func (c *wireConn) carry() {
	defer close(c.ended)
	free := time.Now()
	for {
		buf := make([]byte, 16<<10)
		n, err := c.Conn.Read(buf)
		if now := time.Now(); now.Sub(free) > 10*time.Millisecond { // less is a sleep that was too long
			free = now
		}
		free = free.Add(time.Duration(float64(n) / c.wire.rate * 1e9))
		c.arrived.L.Lock()
		if n > 0 {
			// The way there is counted here too.
			c.queue = append(c.queue, parcel{free.Add(c.wire.rtt), buf[:n]})
		}
		c.err = err
		c.arrived.Signal()
		c.arrived.L.Unlock()
		if err != nil {
			return
		}
		if ahead := time.Until(free); ahead > time.Millisecond {
			time.Sleep(ahead) // the wire is full, and the source feels it
		}
	}
}

func (c *wireConn) Read(p []byte) (int, error) {
	c.arrived.L.Lock()
	defer c.arrived.L.Unlock()
	for len(c.queue) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		c.arrived.Wait()
	}
	if wait := time.Until(c.queue[0].due); wait > 0 {
		c.arrived.L.Unlock()
		time.Sleep(wait)
		c.arrived.L.Lock()
	}
	first := &c.queue[0] // not before: the queue may have moved
	n := copy(p, first.data)
	if first.data = first.data[n:]; len(first.data) == 0 {
		c.queue = c.queue[1:]
	}
	return n, nil
}

func (c *wireConn) Close() error {
	err := c.Conn.Close()
	<-c.ended
	return err
}
