package rpc

import (
	"maps"
	"net"

	"srvfs/manifest"
)

// An Attributor is what a [Provider]'s origin may be besides: it knows which service the
// contents belong to that it gave in its call. A content of several is of one of them.
type Attributor interface {
	ServiceOf(d manifest.Digest) string
}

// Served counts what a Server has given.
type Served struct {
	Contents uint64 // files, ranges of files, pages and snapshots
	Bytes    uint64 // of these, before they were packed
}

// ServerStats is what a Server has done since it was made.
type ServerStats struct {
	Calls    map[string]uint64 // by the name of the call
	Services map[string]Served // by service; what belongs to none that is known is under ""
	Standbys int               // that are connected
	Conns    int               // their connections
}

// ledger is what a Server counts.
type ledger struct {
	calls map[string]uint64
	of    map[string]Served
	conns map[string]Fingerprint // by address and port: the peer that was let in, zero before that
}

// count adds contents of a service that were given.
func (s *Server) count(service string, contents, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.ledger.of[service]
	v.Contents += uint64(contents)
	v.Bytes += uint64(bytes)
	s.ledger.of[service] = v
}

// counted notes a call that was let in.
func (s *Server) counted(method, address string, peer Fingerprint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledger.calls[method]++
	if _, open := s.ledger.conns[address]; open {
		s.ledger.conns[address] = peer
	}
}

// came notes a connection.
func (s *Server) came(a net.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledger.conns[a.String()] = Fingerprint{}
}

// gone notes that a connection has ended.
func (s *Server) gone(a net.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ledger.conns, a.String())
}

// Stats returns the counters.
func (s *Server) Stats() ServerStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	peers := map[Fingerprint]bool{}
	for _, f := range s.ledger.conns {
		if f != (Fingerprint{}) {
			peers[f] = true
		}
	}
	return ServerStats{Calls: maps.Clone(s.ledger.calls), Services: maps.Clone(s.ledger.of), Standbys: len(peers), Conns: len(s.ledger.conns)}
}

// attribution counts the contents of one call by service, and enters them at its end.
type attribution struct {
	origin any
	of     map[string]Served
}

func (a *attribution) add(d manifest.Digest, bytes int) {
	service := ""
	if o, ok := a.origin.(Attributor); ok {
		service = o.ServiceOf(d)
	}
	a.addTo(service, bytes)
}

func (a *attribution) addTo(service string, bytes int) {
	if a.of == nil {
		a.of = map[string]Served{}
	}
	v := a.of[service]
	v.Contents++
	v.Bytes += uint64(bytes)
	a.of[service] = v
}

func (a *attribution) enter(s *Server) {
	for service, v := range a.of {
		s.count(service, int(v.Contents), int(v.Bytes))
	}
}
