package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"

	"srvfs/manifest"
	"srvfs/rpc/srvfspb"
)

// DefaultDeadline is how long a source may be silent unless told otherwise.
const DefaultDeadline = 10 * time.Second

// ClientOptions are what a Client can be told; the zero value is good.
type ClientOptions struct {
	// Deadline is how long the source may be silent while something is awaited
	// from it, before the call ends with ErrUnavailable; 0: DefaultDeadline. It
	// bounds each wait, not a whole transfer.
	Deadline time.Duration
	// Dial makes TCP connections; nil: as this process does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (o *ClientOptions) deadline() time.Duration {
	if o.Deadline > 0 {
		return o.Deadline
	}
	return DefaultDeadline
}

// connectTimeout leaves room for a second attempt within the deadline.
func (o *ClientOptions) connectTimeout() time.Duration { return o.deadline() / 2 }

func (o *ClientOptions) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if o.Dial != nil {
		return o.Dial(ctx, network, address)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

// A Client reads from one source over one connection. It may be used by several
// goroutines, and shares the connection fairly between their calls; for a bulk
// transfer that others should overtake, make a second Client.
type Client struct {
	source *Source
	opts   ClientOptions
	link   *link
	conn   *grpc.ClientConn
	rpc    srvfspb.SrvfsClient
	of     string // the ID of the source whose snapshots are asked for
}

var _ manifest.Batcher = (*Client)(nil)

// maxServices bounds how many services a source may list.
const maxServices = 4096

// Dial returns a client of the source. It begins to connect and does not wait
// for it: whether the source answers shows in the first call. The error wraps
// ErrInvalid.
func Dial(source *Source, id *Identity, opts ClientOptions) (*Client, error) {
	if len(source.Addresses) == 0 {
		return nil, fmt.Errorf("source %s: no address: %w", source.Name, manifest.ErrInvalid)
	}
	for _, a := range source.Addresses {
		if err := checkAddress(a); err != nil {
			return nil, fmt.Errorf("source %s: %w", source.Name, err)
		}
	}
	c := &Client{source: source, opts: opts}
	c.link = &link{source: source, tls: id.clientTLS(source.Fingerprint), opts: opts}
	conn, err := grpc.NewClient("passthrough:///"+source.Fingerprint.ID(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // TLS is the link's
		grpc.WithContextDialer(c.link.dial),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: idleInterval, Timeout: opts.deadline(), PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			// Calls fail at once while a reconnection is waited for; so a short
			// wait costs nobody anything, and a long one would cost time after
			// the source is back.
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: opts.connectTimeout(),
		}),
		grpc.WithInitialWindowSize(window),
		grpc.WithInitialConnWindowSize(window),
		grpc.WithReadBufferSize(ioBuffer),
		grpc.WithWriteBufferSize(32<<10),
		grpc.WithMaxHeaderListSize(64<<10),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxRequest), grpc.ForceCodecV2(wireCodec)),
		experimental.WithBufferPool(memory),
		grpc.WithUserAgent("srvfs"),
	)
	if err != nil {
		return nil, fmt.Errorf("source %s: %s: %w", source, err.Error(), manifest.ErrInvalid)
	}
	c.conn, c.rpc = conn, srvfspb.NewSrvfsClient(conn)
	conn.Connect()
	return c, nil
}

// Of returns a client on the same connection that asks a standby for the snapshots
// that it has of the source with that ID.
func (c *Client) Of(source string) *Client {
	of := *c
	of.of = source
	return &of
}

// Source returns whom the client reads from.
func (c *Client) Source() *Source { return c.source }

// String names the source, as an origin in messages and logs.
func (c *Client) String() string { return "source " + c.source.String() }

// Close ends all calls under way with an error.
func (c *Client) Close() error {
	if err := c.conn.Close(); err != nil {
		return fmt.Errorf("%v: close: %w", c, err)
	}
	return nil
}

// AwaitConnected returns when there is a connection to the source that has proved
// to be it; it tries until ctx ends, whose cause it then returns.
func (c *Client) AwaitConnected(ctx context.Context) error {
	for s := c.conn.GetState(); s != connectivity.Ready; s = c.conn.GetState() {
		switch s {
		case connectivity.Shutdown:
			return c.wrap("connect", os.ErrClosed)
		case connectivity.Idle: // a connection that was lost is not made anew by itself
			c.conn.Connect()
		}
		if !c.conn.WaitForStateChange(ctx, s) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// AwaitLost returns nil when there is no connection any more, and an error if ctx
// has ended or the client was closed.
func (c *Client) AwaitLost(ctx context.Context) error {
	if s := c.conn.GetState(); s == connectivity.Ready && !c.conn.WaitForStateChange(ctx, s) {
		return context.Cause(ctx)
	}
	if c.conn.GetState() == connectivity.Shutdown {
		return c.wrap("connection", os.ErrClosed)
	}
	return nil
}

// Silence returns for how long nothing has come from the source, whatever it says.
func (c *Client) Silence() time.Duration { return c.link.silence() }

// List returns the services that this host may read.
func (c *Client) List(ctx context.Context) ([]ServiceInfo, error) {
	return c.list(ctx, "list", &srvfspb.ListRequest{})
}

// History returns the snapshots of a service that the source keeps, the latest first.
func (c *Client) History(ctx context.Context, service string) ([]ServiceInfo, error) {
	what := "snapshots of " + service
	if !manifest.ValidService(service) {
		return nil, c.wrap(what, fmt.Errorf("%.80q is not a service name: %w", service, manifest.ErrInvalid))
	}
	all, err := c.list(ctx, what, &srvfspb.ListRequest{History: service, Source: c.of})
	for _, v := range all {
		if v.Name != service {
			return nil, c.wrap(what, fmt.Errorf("it sent one of %s: %w", v.Name, manifest.ErrInvalid))
		}
	}
	return all, err
}

func (c *Client) list(ctx context.Context, what string, req *srvfspb.ListRequest) ([]ServiceInfo, error) {
	var resp *srvfspb.ListResponse
	err := c.unary(ctx, what, func(ctx context.Context) (err error) {
		resp, err = c.rpc.List(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	if n := len(resp.GetServices()); n > maxServices {
		return nil, c.wrap(what, fmt.Errorf("%d services: at most %d: %w", n, maxServices, manifest.ErrInvalid))
	}
	out := make([]ServiceInfo, 0, len(resp.GetServices()))
	for _, v := range resp.GetServices() {
		info, err := decodeInfo(v)
		if err != nil {
			return nil, c.wrap(what, err)
		}
		out = append(out, info)
	}
	return out, nil
}

func decodeInfo(v *srvfspb.Service) (ServiceInfo, error) {
	d, err := manifest.DigestFromBytes(v.GetDigest())
	if err == nil && (!manifest.ValidService(v.GetName()) || v.GetSequence() == 0) {
		err = fmt.Errorf("service %.80q with sequence number %d: %w", v.GetName(), v.GetSequence(), manifest.ErrInvalid)
	}
	name := ""
	if source := v.GetSource(); source != "" {
		if name = cleanName(v.GetSourceName()); err == nil && !validSource(source) {
			err = fmt.Errorf("service %s of a source %.80q: %w", v.GetName(), source, manifest.ErrInvalid)
		}
	}
	return ServiceInfo{
		Name: v.GetName(), Sequence: v.GetSequence(), Created: time.Unix(0, v.GetCreated()), Digest: d,
		Totals: manifest.Totals{Entries: v.GetEntries(), Files: v.GetFiles(), Bytes: v.GetBytes(), Dirs: v.GetDirs()},
		Source: v.GetSource(), SourceName: name,
	}, err
}

// Await waits until the newest snapshot of a service is not the one of the digest have,
// and returns it; or that one, when the source has had nothing to say for half the
// client's deadline: that it answers says that it lives.
func (c *Client) Await(ctx context.Context, service string, have manifest.Digest) (ServiceInfo, error) {
	what := "newest snapshot of " + service
	var resp *srvfspb.Service
	err := c.unary(ctx, what, func(ctx context.Context) (err error) {
		resp, err = c.rpc.Await(ctx, &srvfspb.AwaitRequest{Service: service, Digest: have[:], Milliseconds: uint32(c.opts.deadline().Milliseconds() / 2), Source: c.of})
		return err
	})
	if err != nil {
		return ServiceInfo{}, err
	}
	info, err := decodeInfo(resp)
	if err == nil && info.Name != service {
		err = fmt.Errorf("it sent one of %s: %w", info.Name, manifest.ErrInvalid)
	}
	if err != nil {
		return ServiceInfo{}, c.wrap(what, err)
	}
	return info, nil
}

// Missed tells the source which paths a service here looked for in vain: at most
// [manifest.MaxMisses], and some 100 KB. It returns the source's verdict on each.
func (c *Client) Missed(ctx context.Context, service string, paths []string) ([]manifest.Verdict, error) {
	req := &srvfspb.MissedRequest{Service: service, Paths: make([][]byte, len(paths))}
	for i, p := range paths {
		req.Paths[i] = []byte(p)
	}
	var resp *srvfspb.MissedResponse
	err := c.unary(ctx, "report misses", func(ctx context.Context) (err error) {
		resp, err = c.rpc.Missed(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	verdicts := make([]manifest.Verdict, len(resp.GetVerdicts()))
	for i, b := range resp.GetVerdicts() {
		if verdicts[i] = manifest.Verdict(b); !verdicts[i].Valid() {
			return nil, c.wrap("report misses", fmt.Errorf("%v: %w", verdicts[i], manifest.ErrInvalid))
		}
	}
	if len(verdicts) != len(paths) {
		return nil, c.wrap("report misses", fmt.Errorf("%d verdicts on %d paths: %w", len(verdicts), len(paths), manifest.ErrInvalid))
	}
	return verdicts, nil
}

// Fetch implements [manifest.Origin]. It waits for the first bytes, so that
// content which the source does not have shows here and not in the reader. At
// most one goroutine may read at a time.
func (c *Client) Fetch(ctx context.Context, d manifest.Digest, off, n int64) (io.ReadCloser, error) {
	what := fmt.Sprintf("fetch %v", d)
	if off < 0 || n > 0 && off > math.MaxInt64-n {
		return nil, c.wrap(what, fmt.Errorf("range of %d bytes from %d: %w", n, off, manifest.ErrInvalid))
	}
	r := &contentReader{watch: c.watch(ctx, what), exact: n >= 0, left: n}
	if n < 0 {
		n, r.left = -1, manifest.MaxMeta
	}
	err := r.watch.await(func() (err error) {
		r.stream, err = c.rpc.Fetch(r.watch.ctx, &srvfspb.FetchRequest{Range: &srvfspb.Range{Digest: d[:], Off: off, Len: n}})
		return err
	})
	if err == nil {
		err = r.next()
	} else {
		err = r.watch.fail(err)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		r.watch.close()
		return nil, err
	}
	return r, nil
}

// FetchBatch implements [manifest.Batcher]. A batch beyond [manifest.MaxBatch]
// or a range beyond [manifest.MaxRange] is refused with ErrInvalid.
func (c *Client) FetchBatch(ctx context.Context, want []manifest.Range, yield func(i int, data []byte, err error) error) error {
	if len(want) == 0 {
		return nil
	}
	what := fmt.Sprintf("batch of %d ranges", len(want))
	if len(want) > manifest.MaxBatch {
		return c.wrap(what, fmt.Errorf("at most %d: %w", manifest.MaxBatch, manifest.ErrInvalid))
	}
	req := &srvfspb.FetchBatchRequest{Ranges: make([]*srvfspb.Range, len(want))}
	ranges := make([]srvfspb.Range, len(want)) // one allocation for all
	for i := range want {
		r := &want[i]
		if r.Off < 0 || r.Len > manifest.MaxRange || r.Len > 0 && r.Off > math.MaxInt64-r.Len {
			return c.wrap(what, fmt.Errorf("range %d: %d bytes from %d: %w", i, r.Len, r.Off, manifest.ErrInvalid))
		}
		ranges[i].Digest, ranges[i].Off, ranges[i].Len = r.Digest[:], r.Off, max(r.Len, -1)
		req.Ranges[i] = &ranges[i]
	}
	w := c.watch(ctx, what)
	defer w.close()
	var stream srvfspb.Srvfs_FetchBatchClient
	err := w.await(func() (err error) { stream, err = c.rpc.FetchBatch(w.ctx, req); return err })
	a := assembler{want: want, yield: func(i int, data []byte, err error) error {
		if err != nil {
			err = c.wrap("fetch "+want[i].Digest.String(), err)
		}
		if err := yield(i, data, err); err != nil {
			return &yieldError{err}
		}
		return nil
	}}
	for err == nil {
		var m message
		if err = w.await(func() error { return stream.RecvMsg(&m) }); err != nil {
			break
		}
		err := a.add(m.body())
		m.free()
		if err != nil {
			if e := (*yieldError)(nil); errors.As(err, &e) {
				return e.error
			}
			return c.wrap(what, err)
		}
	}
	if !errors.Is(err, io.EOF) {
		return w.fail(err)
	}
	if err := a.end(); err != nil {
		return c.wrap(what, err)
	}
	return nil
}

// A yieldError tells the caller's own errors from those of the exchange.
type yieldError struct{ error }

// wrap says of which source and what an error is.
func (c *Client) wrap(what string, err error) error { return fmt.Errorf("%v: %s: %w", c, what, err) }
