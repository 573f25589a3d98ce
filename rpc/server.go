package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

// A ServiceInfo says what a source offers under one name.
type ServiceInfo struct {
	Name     string
	Sequence uint64 // of its newest snapshot
	Created  time.Time
	Digest   manifest.Digest // of the newest snapshot's encoded form
	Totals   manifest.Totals
	// Source is the ID of the source that a standby has the service of, and
	// SourceName what that source calls itself; both are empty where the source
	// itself says what it offers.
	Source, SourceName string
}

// A Provider is what a Server serves. Its methods are called by many goroutines.
type Provider interface {
	// Services lists the published services.
	Services(ctx context.Context) ([]ServiceInfo, error)
	// Await returns the newest snapshot of a service as soon as its digest is not have,
	// and in any case when ctx ends.
	Await(ctx context.Context, service string, have manifest.Digest) (ServiceInfo, error)
	// History lists the snapshots of a service that are kept, the latest first. The
	// error wraps ErrNotFound if there is none.
	History(ctx context.Context, service string) ([]ServiceInfo, error)
	// Snapshot returns the encoded form of a snapshot. The error wraps ErrNotFound if
	// there is none. The bytes are not changed afterwards.
	Snapshot(ctx context.Context, ref manifest.Ref) ([]byte, error)
	// Origin returns an origin of the content that belongs to a snapshot of any
	// service for which allowed is true, and of nothing else: for other content
	// it answers ErrNotFound. It is made for one call of a peer, and allowed
	// follows what that peer may do from moment to moment.
	Origin(allowed func(service string) bool) manifest.Batcher
	// Missed takes the report of a standby that calls itself so: paths that the
	// service there looked for in vain, at most [manifest.MaxMisses]. It returns a
	// verdict for each.
	Missed(ctx context.Context, service, standby string, paths []string) ([]manifest.Verdict, error)
}

// A Relay is the Provider of a standby, which offers what it has of other sources. Its
// own methods are for a standby that does not say of which source, or takes this host
// for one: of a service of that name there must be one only.
type Relay interface {
	Provider
	// Of returns what is offered of the source with that ID; its Services and Origin
	// are not called. The error wraps ErrNotFound if there is nothing.
	Of(source string) (Provider, error)
}

// validSource reports whether s can be the ID of a source.
func validSource(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	})
}

// of returns what is offered of a source; of whichever if that is empty.
func (s *Server) of(source string) (Provider, error) {
	if source == "" || source == s.identity.Fingerprint().ID() {
		return s.provider, nil
	}
	if !validSource(source) {
		return nil, fmt.Errorf("source %.80q: not an ID: %w", source, manifest.ErrInvalid)
	}
	relay, ok := s.provider.(Relay)
	if !ok {
		return nil, fmt.Errorf("source %s: this host offers services of its own only: %w", source, manifest.ErrNotFound)
	}
	return relay.Of(source)
}

// ServerOptions are what a Server can be told; the zero value is good.
type ServerOptions struct {
	Log *slog.Logger // nil: slog.Default; each access is a line of level debug
	// Name is how this source calls itself to people at standbys; empty: the
	// host's name.
	Name string
	// Grace is how long calls under way may go on when the server is told to
	// end; 0: 5 seconds, negative: not at all.
	Grace time.Duration
	// MaxConns bounds the connections, 0: 1024; MaxStreams the calls that one
	// peer has under way on all its connections, 0: 256.
	MaxConns, MaxStreams int
	// PairsPerMinute bounds the attempts to pair from one address; 0: 30.
	PairsPerMinute int
}

// A Server answers standbys. Make it with [NewServer].
type Server struct {
	identity *Identity
	peers    *Peers
	provider Provider
	opts     ServerOptions
	log      *slog.Logger
	pairs    *limiter
	packs    packs

	mu      sync.Mutex
	streams map[Fingerprint]int // calls under way
	ledger  ledger
}

// NewServer returns a server that lets in the peers and serves what the
// provider has.
func NewServer(id *Identity, peers *Peers, provider Provider, opts ServerOptions) *Server {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.Name == "" {
		opts.Name, _ = os.Hostname() // a source without a name is "unnamed"
	}
	opts.Name = cleanName(opts.Name)
	if opts.Grace == 0 {
		opts.Grace = 5 * time.Second
	}
	if opts.MaxConns == 0 {
		opts.MaxConns = 1024
	}
	if opts.MaxStreams == 0 {
		opts.MaxStreams = 256
	}
	if opts.PairsPerMinute == 0 {
		opts.PairsPerMinute = 30
	}
	return &Server{
		identity: id, peers: peers, provider: provider, opts: opts, log: opts.Log,
		pairs:   newLimiter(opts.PairsPerMinute, time.Minute),
		streams: map[Fingerprint]int{},
		ledger:  ledger{calls: map[string]uint64{}, of: map[string]Served{}, conns: map[string]Fingerprint{}},
	}
}

const (
	maxRequest = 512 << 10 // bytes of a request: a batch of MaxBatch ranges needs some 50 each
	// window is how much may be under way in one direction of one connection
	// before the other side says that it has read it. 1 Gbit/s for 100 ms are
	// 12 MB. Set, and not left to grpc's estimator, which starts at 64 KiB and
	// needs many round trips to find out.
	window       = 16 << 20
	ioBuffer     = 128 << 10
	connTimeout  = 10 * time.Second // for TCP's accept to HTTP/2's settings
	maxPerConn   = 128              // streams of one connection
	idleInterval = 30 * time.Second // after which a silent standby is asked whether it lives
)

// Serve answers on the listener, which it closes, until ctx ends; then calls
// under way have [ServerOptions.Grace] to finish. It returns when nothing of it
// runs any more: nil if ctx ended, else why the listener failed. Serve may be
// called on several listeners at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if err := s.peers.recordListen(l.Addr()); err != nil {
		return errors.Join(fmt.Errorf("serve on %v: %w", l.Addr(), err), l.Close())
	}
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(s.identity.serverTLS())),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxPerConn),
		grpc.MaxHeaderListSize(16<<10),
		grpc.InitialWindowSize(1<<20), // requests are small: a peer may not make us hold much
		grpc.InitialConnWindowSize(1<<20),
		grpc.WriteBufferSize(ioBuffer),
		grpc.ReadBufferSize(32<<10),
		grpc.ConnectionTimeout(connTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: idleInterval, Timeout: connTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
		grpc.ForceServerCodecV2(wireCodec),
		experimental.BufferPool(memory),
	)
	srvfspb.RegisterSrvfsServer(g, handlers{srv: s})
	ended := make(chan error, 1)
	go func() { ended <- g.Serve(newListener(l, s.opts.MaxConns, s.came, s.gone)) }()
	select {
	case err := <-ended:
		g.Stop()
		return fmt.Errorf("serve on %v: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	hard := time.AfterFunc(max(s.opts.Grace, 0), g.Stop)
	g.GracefulStop()
	hard.Stop()
	g.Stop() // returns when handlers have, which GracefulStop does not promise after a Stop beside it
	if err := <-ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve on %v: %w", l.Addr(), err)
	}
	return nil
}

// handlers implements the calls; the interceptors have let the peer in before.
type handlers struct {
	srvfspb.UnimplementedSrvfsServer
	srv *Server
}

func (h handlers) Pair(ctx context.Context, req *srvfspb.PairRequest) (*srvfspb.PairResponse, error) {
	c := callerOf(ctx)
	if !h.srv.pairs.allow(c.address, time.Now()) {
		return nil, fmt.Errorf("too many attempts to pair from %s, wait a minute: %w", c.address, manifest.ErrUnavailable)
	}
	p, err := h.srv.peers.redeem(req.GetSecret(), c.fingerprint, req.GetName(), c.address)
	if err != nil {
		h.srv.log.Warn("pairing refused", "peer", c.fingerprint.ID(), "address", c.address, "err", err)
		return nil, err
	}
	h.srv.log.Info("paired", "peer", p.ID(), "name", p.Name, "address", p.Address, "services", p.Services)
	_, standby := h.srv.provider.(Relay)
	return &srvfspb.PairResponse{Name: h.srv.opts.Name, Services: p.Services, Standby: standby}, nil
}

func (h handlers) List(ctx context.Context, req *srvfspb.ListRequest) (*srvfspb.ListResponse, error) {
	c := callerOf(ctx)
	list := h.srv.provider.Services
	if name := req.GetHistory(); name != "" {
		if !manifest.ValidService(name) {
			return nil, fmt.Errorf("service %.80q: not a service name: %w", name, manifest.ErrInvalid)
		}
		if !c.may(name) {
			return nil, fmt.Errorf("service %s: this host was not paired for it: %w", name, manifest.ErrDenied)
		}
		offer, err := h.srv.of(req.GetSource())
		if err != nil {
			return nil, err
		}
		list = func(ctx context.Context) ([]ServiceInfo, error) { return offer.History(ctx, name) }
	}
	infos, err := list(ctx)
	if err != nil {
		return nil, err
	}
	resp := &srvfspb.ListResponse{}
	for _, v := range infos {
		if !c.may(v.Name) {
			continue
		}
		resp.Services = append(resp.Services, v.encode())
	}
	return resp, nil
}

func (v *ServiceInfo) encode() *srvfspb.Service {
	return &srvfspb.Service{
		Name: v.Name, Sequence: v.Sequence, Created: v.Created.UnixNano(), Digest: v.Digest[:],
		Entries: v.Totals.Entries, Files: v.Totals.Files, Bytes: v.Totals.Bytes, Dirs: v.Totals.Dirs,
		Source: v.Source, SourceName: v.SourceName,
	}
}

// awaitMost bounds how long a standby may have a call wait.
const awaitMost = time.Minute

func (h handlers) Await(ctx context.Context, req *srvfspb.AwaitRequest) (*srvfspb.Service, error) {
	name, c := req.GetService(), callerOf(ctx)
	if !manifest.ValidService(name) {
		return nil, fmt.Errorf("service %.80q: not a service name: %w", name, manifest.ErrInvalid)
	}
	if !c.may(name) {
		return nil, fmt.Errorf("service %s: this host was not paired for it: %w", name, manifest.ErrDenied)
	}
	var have manifest.Digest
	if b := req.GetDigest(); len(b) > 0 {
		var err error
		if have, err = manifest.DigestFromBytes(b); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, min(time.Duration(req.GetMilliseconds())*time.Millisecond, awaitMost))
	defer cancel()
	offer, err := h.srv.of(req.GetSource())
	if err != nil {
		return nil, err
	}
	v, err := offer.Await(ctx, name, have)
	if err != nil {
		return nil, err
	}
	if !c.may(name) { // it may have been taken away meanwhile
		return nil, fmt.Errorf("service %s: this host is not paired for it any more: %w", name, manifest.ErrDenied)
	}
	return v.encode(), nil
}

// maxAlong bounds the metadata that goes with a snapshot, in bytes before they are
// packed: as much as a start needs, and not so much that it matters where it is
// there already.
const maxAlong = 512 << 10

func (h handlers) Snapshot(req *srvfspb.SnapshotRequest, out srvfspb.Srvfs_SnapshotServer) error {
	name := req.GetService()
	if !manifest.ValidService(name) {
		return fmt.Errorf("service %.80q: not a service name: %w", name, manifest.ErrInvalid)
	}
	ctx, c := out.Context(), callerOf(out.Context())
	if !c.may(name) {
		return fmt.Errorf("service %s: this host was not paired for it: %w", name, manifest.ErrDenied)
	}
	offer, err := h.srv.of(req.GetSource())
	if err != nil {
		return err
	}
	b, err := offer.Snapshot(ctx, manifest.Ref{Service: name, Sequence: req.GetSequence(), By: req.GetBy()})
	if err != nil {
		return err
	}
	if len(b) > manifest.MaxSnapshot {
		return fmt.Errorf("service %s: snapshot of %d bytes: %w", name, len(b), manifest.ErrInvalid)
	}
	var pk packer
	for rest := b; len(rest) > 0; {
		n := min(len(rest), pieceSize)
		data, raw := pk.pack(rest[:n])
		if err := out.Send(&srvfspb.Piece{Data: data, Raw: raw}); err != nil {
			return err
		}
		rest = rest[n:]
	}
	h.srv.count(name, 1, len(b))
	s, err := manifest.DecodeSnapshot(b)
	if err != nil {
		return fmt.Errorf("service %s: %w", name, err)
	}
	left := maxAlong
	enough := errors.New("enough")
	err = h.srv.provider.Origin(c.may).FetchBatch(ctx, metadataOf(s), func(_ int, page []byte, err error) error {
		// What is not sent the standby asks for if it needs it, and there it gets
		// the error.
		if send := err == nil && len(page) > 0 && len(page) <= pieceSize; !send {
			return nil
		}
		if left -= len(page); left < 0 {
			return enough
		}
		h.srv.count(name, 1, len(page))
		data, raw := pk.pack(page)
		return out.Send(&srvfspb.Piece{Data: data, Raw: raw, Metadata: true})
	})
	if errors.Is(err, enough) {
		return nil
	}
	return err
}

// metadataOf returns the ranges of a snapshot's root page, and of the metadata
// that its profile leads through: not more than one batch.
func metadataOf(s *manifest.Snapshot) []manifest.Range {
	want := []manifest.Range{{Digest: s.Root.Digest, Len: -1}}
	for _, d := range s.Metadata[:min(len(s.Metadata), manifest.MaxBatch-1)] {
		if d != s.Root.Digest {
			want = append(want, manifest.Range{Digest: d, Len: -1})
		}
	}
	return want
}

func (h handlers) Missed(ctx context.Context, req *srvfspb.MissedRequest) (*srvfspb.MissedResponse, error) {
	name, c := req.GetService(), callerOf(ctx)
	if !manifest.ValidService(name) || len(req.GetPaths()) > manifest.MaxMisses {
		return nil, fmt.Errorf("report of %d paths that service %.80q missed: %w", len(req.GetPaths()), name, manifest.ErrInvalid)
	}
	p, err := c.peers.lookup(c.fingerprint)
	if err != nil {
		return nil, err
	}
	if !p.May(name) {
		return nil, fmt.Errorf("service %s: this host was not paired for it: %w", name, manifest.ErrDenied)
	}
	paths := make([]string, len(req.GetPaths()))
	for i, b := range req.GetPaths() {
		if paths[i] = string(b); !manifest.ValidPath(paths[i]) {
			return nil, fmt.Errorf("path %.300q that service %s missed: %w", paths[i], name, manifest.ErrInvalid)
		}
	}
	verdicts, err := h.srv.provider.Missed(ctx, name, p.Name, paths)
	if err != nil {
		return nil, err
	}
	resp := &srvfspb.MissedResponse{Verdicts: make([]byte, len(verdicts))}
	for i, v := range verdicts {
		if resp.Verdicts[i] = byte(v); v == manifest.VerdictNoted {
			h.srv.log.Info("missed on a standby; it will be in the next snapshot", "service", name, "standby", p.Name, "path", paths[i])
		}
	}
	return resp, nil
}

// checkRange reads a range from the wire.
func checkRange(r *srvfspb.Range) (manifest.Range, error) {
	d, err := manifest.DigestFromBytes(r.GetDigest())
	if err != nil {
		return manifest.Range{}, err
	}
	v := manifest.Range{Digest: d, Off: r.GetOff(), Len: r.GetLen()}
	if v.Off < 0 || v.Len > 0 && v.Off+v.Len < 0 || v.Len < -1 {
		return manifest.Range{}, fmt.Errorf("range of %d bytes from %d: %w", v.Len, v.Off, manifest.ErrInvalid)
	}
	return v, nil
}

func (h handlers) Fetch(req *srvfspb.FetchRequest, out srvfspb.Srvfs_FetchServer) (err error) {
	r, err := checkRange(req.GetRange())
	if err != nil {
		return err
	}
	ctx := out.Context()
	origin := h.srv.provider.Origin(callerOf(ctx).may)
	body, err := origin.Fetch(ctx, r.Digest, r.Off, r.Len)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	var pk packer
	sent := int64(0)
	given := attribution{origin: origin}
	defer func() {
		given.add(r.Digest, int(sent))
		given.enter(h.srv)
	}()
	for {
		want := int64(pieceSize)
		if r.Len >= 0 {
			want = min(want, r.Len-sent)
		}
		m, n, err := readPiece(body, int(want), &pk)
		if n > 0 {
			size, began := len(m.body()), time.Now()
			if err := out.SendMsg(m); err != nil {
				return err
			}
			pk.sent(size, began)
			sent += int64(n)
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			if r.Len >= 0 && sent < r.Len {
				return fmt.Errorf("content %v: %d bytes from %d: there are only %d: %w", r.Digest, r.Len, r.Off, sent, manifest.ErrInvalid)
			}
			return nil
		case err != nil:
			return err
		case sent == r.Len:
			return nil
		}
	}
}

// readPiece reads the next n bytes into an encoded Piece, or fewer with the error.
func readPiece(body io.Reader, n int, pk *packer) (*message, int, error) {
	buf := memory.Get(pieceHead + n)
	n, err := io.ReadFull(body, (*buf)[pieceHead:])
	if n == 0 {
		memory.Put(buf)
		return nil, 0, err
	}
	if packed, raw := pk.pack((*buf)[pieceHead : pieceHead+n]); raw > 0 {
		memory.Put(buf)
		buf = memory.Get(2*pieceHead + len(packed))
		*buf = appendPackedPiece((*buf)[:0], packed, raw)
		return &message{mem.NewBuffer(buf, memory)}, n, err
	}
	from := putPieceHead(*buf, pieceHead, n)
	whole := mem.NewBuffer(buf, memory)
	defer whole.Free()
	return &message{whole.Slice(from, pieceHead+n)}, n, err
}

func (h handlers) FetchBatch(req *srvfspb.FetchBatchRequest, out srvfspb.Srvfs_FetchBatchServer) error {
	ranges := req.GetRanges()
	if len(ranges) > manifest.MaxBatch {
		return fmt.Errorf("batch of %d ranges: at most %d: %w", len(ranges), manifest.MaxBatch, manifest.ErrInvalid)
	}
	want := make([]manifest.Range, len(ranges))
	for i, v := range ranges {
		r, err := checkRange(v)
		if err == nil && r.Len > manifest.MaxRange {
			err = fmt.Errorf("range of %d bytes in a batch: at most %d: %w", r.Len, manifest.MaxRange, manifest.ErrInvalid)
		}
		if err != nil {
			return fmt.Errorf("range %d: %w", i, err)
		}
		want[i] = r
	}
	ctx := out.Context()
	w := newBatchWriter(func(m *message) error { return out.SendMsg(m) })
	defer w.close()
	may := callerOf(ctx).may
	origin := h.srv.provider.Origin(may)
	packed, whose := h.srv.packs.find(may, want)
	given := attribution{origin: origin}
	defer func() { given.enter(h.srv) }()
	for i := 0; i < len(want); {
		if packed[i] != nil {
			if err := w.addPacked(i, packed[i]); err != nil {
				return err
			}
			given.addTo(whose[i], int(want[i].Len))
			i++
			continue
		}
		first := i
		for i++; i < len(want) && packed[i] == nil; i++ {
		}
		if err := origin.FetchBatch(ctx, want[first:i], func(k int, data []byte, err error) error {
			if err == nil {
				given.add(want[first+k].Digest, len(data))
			}
			return w.add(first+k, data, err)
		}); err != nil {
			return err
		}
	}
	return w.flush()
}
