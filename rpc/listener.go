package rpc

import (
	"net"
	"sync"
	"time"
)

// userTimeout is how long sent bytes may stay unacknowledged before the kernel
// gives the connection up. Without it a dead peer's connections last for a
// quarter of an hour.
const userTimeout = 20 * time.Second

// A listener bounds the connections that are open at a time: further ones wait
// in the kernel's queue.
type listener struct {
	net.Listener
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
	// Are told of each connection that begins, and that ends.
	came, gone func(peer net.Addr)
}

func newListener(l net.Listener, limit int, came, gone func(net.Addr)) *listener {
	return &listener{Listener: l, came: came, gone: gone, slots: make(chan struct{}, limit), done: make(chan struct{})}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	l.came(c.RemoteAddr())
	setCongestion(c)
	// Where the kernel can't, TCP keepalive and HTTP/2 pings remain.
	_ = setUserTimeout(c, userTimeout)
	return &slotConn{Conn: c, release: sync.OnceFunc(func() {
		l.gone(c.RemoteAddr())
		<-l.slots
	})}, nil
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

type slotConn struct {
	net.Conn
	release func()
}

func (c *slotConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
