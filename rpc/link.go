package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"srvfs/manifest"
)

// A link makes the connections of one Client, and remembers what grpc does not
// tell: why the last attempt failed, and when the source was last heard.
type link struct {
	source *Source
	tls    *tls.Config
	opts   ClientOptions

	mu   sync.Mutex
	err  error     // of the last attempt; nil if it succeeded
	conn *wireConn // the last that was made
	addr string    // to where
}

// stagger is how long an address is tried alone before the next is tried beside it.
const stagger = 200 * time.Millisecond

// dial connects to the first of the source's addresses that answers and proves
// to be the source. It is grpc's dialer; TLS is done here and not by grpc,
// because an address where another host answers must not keep us from the
// next, and because the reason of a refusal must not become text.
func (l *link) dial(ctx context.Context, _ string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.opts.connectTimeout())
	type result struct {
		conn *tls.Conn
		raw  *wireConn
		addr string
		err  error
	}
	results := make(chan result)
	left := l.source.Addresses
	running := 0
	start := func() {
		addr := left[0]
		left = left[1:]
		running++
		go func() {
			conn, raw, err := l.attempt(ctx, addr)
			results <- result{conn, raw, addr, err}
		}()
	}
	// Whatever happens, every attempt is waited for and its connection closed.
	defer func() {
		cancel()
		for ; running > 0; running-- {
			if r := <-results; r.conn != nil {
				_ = r.conn.Close()
			}
		}
	}()
	var errs []error
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			if len(left) > 0 {
				start()
				next.Reset(stagger)
			}
		case r := <-results:
			running--
			if r.err == nil {
				l.set(r.raw, r.addr, nil)
				return r.conn, nil
			}
			errs = append(errs, r.err)
			if len(left) > 0 {
				next.Reset(0)
			} else if running == 0 {
				err := errors.Join(errs...)
				l.set(nil, "", err)
				return nil, err
			}
		}
	}
}

func (l *link) attempt(ctx context.Context, addr string) (*tls.Conn, *wireConn, error) {
	raw, err := l.opts.dial(ctx, "tcp", addr)
	if err != nil {
		if e := (*net.OpError)(nil); errors.As(err, &e) && e.Err != nil {
			err = e.Err // without "dial tcp" and the address again
		}
		if timeout := net.Error(nil); ctx.Err() != nil || errors.As(err, &timeout) && timeout.Timeout() {
			err = errors.New("no answer")
		}
		return nil, nil, fmt.Errorf("%s: %s: %w", addr, err.Error(), manifest.ErrUnavailable)
	}
	// Where the kernel can't, the deadline of each call remains.
	_ = setUserTimeout(raw, l.opts.deadline())
	w := &wireConn{Conn: raw}
	w.last.Store(int64(time.Since(started)))
	conn := tls.Client(w, l.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		switch alert := (*net.OpError)(nil); {
		case errors.Is(err, manifest.ErrDenied):
			return nil, nil, fmt.Errorf("%s: %w", addr, err)
		case errors.As(err, &alert) && alert.Op == "remote error": // so crypto/tls calls an alert
			return nil, nil, fmt.Errorf("%s: it refuses TLS 1.3 with this host's key (%s): %w", addr, err.Error(), manifest.ErrDenied)
		case ctx.Err() != nil:
			err = errors.New("connected, but no answer")
		}
		// As text only: an io.EOF of the handshake is no end of a content.
		return nil, nil, fmt.Errorf("%s: %s: %w", addr, err.Error(), manifest.ErrUnavailable)
	}
	return conn, w, nil
}

func (l *link) set(c *wireConn, addr string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c != nil {
		l.conn, l.addr = c, addr
	}
	l.err = err
}

// lastError returns why there is no connection, or nil.
func (l *link) lastError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// address returns where the last connection went.
func (l *link) address() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addr
}

// silence returns how long nothing was heard on the connection; without one,
// for ever.
func (l *link) silence() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return 1<<63 - 1
	}
	return time.Since(started) - time.Duration(l.conn.last.Load())
}

// drop breaks the connection, so that all calls on it end at once and a new one
// is made.
func (l *link) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		_ = l.conn.Close()
	}
}

// started is what times are measured from, by a clock that nobody sets.
var started = time.Now()

// A wireConn knows when bytes last came in.
type wireConn struct {
	net.Conn
	last atomic.Int64 // nanoseconds after started
}

func (c *wireConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.last.Store(int64(time.Since(started)))
	}
	return n, err
}
