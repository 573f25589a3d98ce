package rpc

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

// A caller is the other side of one call.
type caller struct {
	peers       *Peers
	fingerprint Fingerprint
	address     string // without port
}

type callerKey struct{}

// callerOf returns what the interceptors put into the context of every call.
func callerOf(ctx context.Context) *caller { return ctx.Value(callerKey{}).(*caller) }

// may reports whether the caller may read the service now.
func (c *caller) may(service string) bool {
	p, err := c.peers.lookup(c.fingerprint)
	return err == nil && p.May(service)
}

// admit finds out who calls, and lets a host that is not paired pair only.
func (s *Server) admit(ctx context.Context, method string) (*caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, fmt.Errorf("call without a peer: %w", manifest.ErrDenied)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil, fmt.Errorf("call without a certificate: %w", manifest.ErrDenied)
	}
	c := &caller{peers: s.peers, fingerprint: fingerprintOf(info.State.PeerCertificates[0]), address: p.Addr.String()}
	if host, _, err := net.SplitHostPort(c.address); err == nil {
		c.address = host
	}
	if method != srvfspb.Srvfs_Pair_FullMethodName {
		if _, err := s.peers.lookup(c.fingerprint); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// enter counts a call of the peer, and refuses it if there are too many.
func (s *Server) enter(f Fingerprint) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[f] >= s.opts.MaxStreams {
		return nil, fmt.Errorf("more than %d calls of one peer at a time: %w", s.opts.MaxStreams, manifest.ErrUnavailable)
	}
	s.streams[f]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.streams[f]--; s.streams[f] == 0 {
			delete(s.streams, f)
		}
	}, nil
}

// guarded runs one call between admission and the log.
func (s *Server) guarded(ctx context.Context, method string, call func(context.Context, *caller) error) error {
	start := time.Now()
	c, err := s.admit(ctx, method)
	if err == nil {
		var leave func()
		if leave, err = s.enter(c.fingerprint); err == nil {
			defer leave()
			if p, ok := peer.FromContext(ctx); ok {
				s.counted(path.Base(method), p.Addr.String(), c.fingerprint)
			}
			err = call(context.WithValue(ctx, callerKey{}, c), c)
		}
	}
	if c != nil {
		s.log.Debug("access", "method", method, "peer", c.fingerprint.ID(), "address", c.address, "took", time.Since(start), "err", err)
	} else {
		s.log.Debug("refused", "method", method, "err", err)
	}
	return toStatus(err)
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	err = s.guarded(ctx, info.FullMethod, func(ctx context.Context, _ *caller) (err error) {
		resp, err = next(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return s.guarded(ss.Context(), info.FullMethod, func(ctx context.Context, c *caller) error {
		return next(srv, &guardedStream{ss, ctx, c})
	})
}

// A guardedStream asks before every message whether the peer is still let in.
type guardedStream struct {
	grpc.ServerStream
	ctx    context.Context
	caller *caller
}

func (g *guardedStream) Context() context.Context { return g.ctx }

func (g *guardedStream) SendMsg(m any) error {
	if _, err := g.caller.peers.lookup(g.caller.fingerprint); err != nil {
		return err
	}
	return g.ServerStream.SendMsg(m)
}

// A limiter counts attempts in windows of time, for each address by itself.
type limiter struct {
	limit  int
	window time.Duration

	mu    sync.Mutex
	since time.Time // when this window began
	count map[netip.Prefix]int
}

// maxLimited bounds the addresses that a limiter remembers: further ones are
// refused until the window ends.
const maxLimited = 4096

func newLimiter(limit int, window time.Duration) *limiter {
	return &limiter{limit: limit, window: window, count: map[netip.Prefix]int{}}
}

// allow reports whether one more attempt from the address is within the limit.
func (l *limiter) allow(address string, now time.Time) bool {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	ip = ip.Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64 // what one host is commonly given
	}
	key, err := ip.Prefix(bits)
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= l.window {
		l.since = now
		clear(l.count)
	}
	n, known := l.count[key]
	if n >= l.limit || !known && len(l.count) >= maxLimited {
		return false
	}
	l.count[key] = n + 1
	return true
}
