package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"srvfs/manifest"
	"srvfs/manifest/origintest"
	"srvfs/rpc/srvfspb"
)

// A library is a Provider in memory.
type library struct {
	mu       sync.Mutex
	sequence uint64
	snapshot map[string][]byte
	content  map[string]map[manifest.Digest][]byte // by service
	stale    map[manifest.Digest]string            // path
	missed   []string

	published chan struct{} // closed, and replaced, when a snapshot was

	// gate, if not nil, is asked before each read of a body after the first.
	gate    func(ctx context.Context) error
	bodies  atomic.Int64 // open ones
	batches atomic.Int64 // requests
	closed  chan struct{}
}

func newLibrary(t testing.TB) *library {
	l := &library{
		published: make(chan struct{}),
		sequence:  7,
		snapshot:  map[string][]byte{},
		content:   map[string]map[manifest.Digest][]byte{"web": maps.Clone(someContents()), "mail": {}},
		stale:     map[manifest.Digest]string{manifest.Sum([]byte("old")): "/etc/motd"},
		closed:    make(chan struct{}, 1000),
	}
	secret := []byte("only for mail")
	l.content["mail"][manifest.Sum(secret)] = secret
	for _, name := range []string{"web", "mail"} {
		l.snapshot[name] = encodedSnapshot(t, name, 7)
	}
	return l
}

// encodedSnapshot returns a snapshot of some hundred KiB, so that it takes
// several pieces.
func encodedSnapshot(t testing.TB, name string, sequence uint64) []byte {
	s := manifest.Snapshot{
		Service: name, Sequence: sequence, Created: 1, Source: "here",
		Root:   manifest.Entry{Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: manifest.Sum([]byte{0, 0})},
		Totals: manifest.Totals{Dirs: 1}, Profile: someTouches(),
	}
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var someTouches = sync.OnceValue(func() (all []manifest.Touch) {
	for i := range 10_000 {
		all = append(all, manifest.Touch{Path: fmt.Sprintf("/usr/share/%d", i), Content: manifest.Sum(fmt.Append(nil, i)), Len: 1})
	}
	return all
})

var someContents = sync.OnceValue(origintest.Contents)

func (l *library) Services(context.Context) ([]ServiceInfo, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []ServiceInfo
	for _, name := range slices.Sorted(maps.Keys(l.snapshot)) {
		out = append(out, ServiceInfo{Name: name, Sequence: l.sequence, Created: time.Unix(1, 2), Digest: manifest.Sum(l.snapshot[name]), Totals: manifest.Totals{Entries: 4, Files: 3, Bytes: 2, Dirs: 1}})
	}
	return out, nil
}

func (l *library) Await(ctx context.Context, service string, have manifest.Digest) (ServiceInfo, error) {
	for {
		all, err := l.History(ctx, service)
		if err != nil || all[0].Digest != have {
			return append(all, ServiceInfo{})[0], err
		}
		l.mu.Lock()
		published := l.published
		l.mu.Unlock()
		select {
		case <-published:
		case <-ctx.Done():
			return all[0], nil
		}
	}
}

// publish replaces a snapshot.
func (l *library) publish(service string, b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.snapshot[service] = b
	close(l.published)
	l.published = make(chan struct{})
}

func (l *library) History(ctx context.Context, service string) ([]ServiceInfo, error) {
	all, err := l.Services(ctx)
	all = slices.DeleteFunc(all, func(v ServiceInfo) bool { return v.Name != service })
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("service %s: %w", service, manifest.ErrNotFound)
	}
	return all, err
}

func (l *library) Snapshot(_ context.Context, ref manifest.Ref) ([]byte, error) {
	service, sequence := ref.Service, ref.Sequence
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.snapshot[service]
	if !ok || sequence != 0 && sequence != l.sequence {
		return nil, fmt.Errorf("service %s has no snapshot %d: %w", service, sequence, manifest.ErrNotFound)
	}
	return b, nil
}

// Missed notes the paths that end with "there".
func (l *library) Missed(_ context.Context, service, standby string, paths []string) ([]manifest.Verdict, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.missed = append(l.missed, fmt.Sprintf("%s %s %q", service, standby, paths))
	out := make([]manifest.Verdict, len(paths))
	for i, p := range paths {
		if strings.HasSuffix(p, "there") {
			out[i] = manifest.VerdictNoted
		}
	}
	return out, nil
}

func (l *library) Origin(allowed func(string) bool) manifest.Batcher {
	return &libraryOrigin{l, allowed}
}

func (l *library) add(service string, b []byte) manifest.Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := manifest.Sum(b)
	l.content[service][d] = b
	return d
}

type libraryOrigin struct {
	*library
	allowed func(string) bool
}

func (o *libraryOrigin) get(r manifest.Range) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if path, ok := o.stale[r.Digest]; ok {
		return nil, fmt.Errorf("%s: %w", path, manifest.ErrStale)
	}
	for service, all := range o.content {
		b, ok := all[r.Digest]
		if !ok || !o.allowed(service) {
			continue
		}
		end := r.Off + r.Len
		if r.Len < 0 {
			end = int64(len(b))
		}
		if r.Off < 0 || r.Off > end || end > int64(len(b)) {
			return nil, fmt.Errorf("%d bytes from %d of %d: %w", r.Len, r.Off, len(b), manifest.ErrInvalid)
		}
		return b[r.Off:end], nil
	}
	return nil, fmt.Errorf("content %v: %w", r.Digest, manifest.ErrNotFound)
}

func (o *libraryOrigin) Fetch(ctx context.Context, d manifest.Digest, off, n int64) (io.ReadCloser, error) {
	b, err := o.get(manifest.Range{Digest: d, Off: off, Len: n})
	if err != nil {
		return nil, err
	}
	o.bodies.Add(1)
	return &libraryBody{ctx: ctx, lib: o.library, rest: bytes.NewReader(b)}, nil
}

func (o *libraryOrigin) FetchBatch(ctx context.Context, want []manifest.Range, yield func(int, []byte, error) error) error {
	o.batches.Add(1)
	for i, r := range want {
		if i > 0 && o.gate != nil {
			if err := o.gate(ctx); err != nil {
				return err
			}
		}
		b, err := o.get(r)
		if err := yield(i, b, err); err != nil {
			return err
		}
	}
	return nil
}

type libraryBody struct {
	ctx   context.Context
	lib   *library
	rest  *bytes.Reader
	began bool
}

func (b *libraryBody) Read(p []byte) (int, error) {
	if b.began && b.lib.gate != nil {
		if err := b.lib.gate(b.ctx); err != nil {
			return 0, err
		}
	}
	b.began = true
	return b.rest.Read(p)
}

func (b *libraryBody) Close() error {
	b.lib.bodies.Add(-1)
	b.lib.closed <- struct{}{}
	return nil
}

// A world is a source that serves on loopback, and a standby.
type world struct {
	t       testing.TB
	lib     *library
	source  *Identity
	peers   *Peers
	addr    string
	stop    func()   // ends the server and waits for it
	packing bool     // before it serves
	offer   Provider // that it serves; nil: lib
	standby *Identity
	sources *Sources
}

func newWorld(t testing.TB, opts ServerOptions) *world {
	w := &world{t: t, lib: newLibrary(t)}
	dir := t.TempDir()
	var err error
	if w.source, err = LoadIdentity(dir); err != nil {
		t.Fatal(err)
	}
	if w.peers, err = OpenPeers(dir); err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if w.standby, err = LoadIdentity(dir); err != nil {
		t.Fatal(err)
	}
	if w.sources, err = OpenSources(dir); err != nil {
		t.Fatal(err)
	}
	w.serve("127.0.0.1:0", opts)
	return w
}

func (w *world) serve(addr string, opts ServerOptions) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Grace == 0 {
		opts.Grace = -1
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var offer Provider = w.lib
	if w.offer != nil {
		offer = w.offer
	}
	server := NewServer(w.source, w.peers, offer, opts)
	if w.packing {
		if err := server.Pack(ctx); err != nil {
			w.t.Fatal(err)
		}
	}
	go func() {
		defer close(ended)
		if err := server.Serve(ctx, l); err != nil {
			w.t.Errorf("serve: %v", err)
		}
	}()
	w.stop = func() { cancel(); <-ended }
	w.t.Cleanup(w.stop)
}

func (w *world) token(g Grant) string {
	w.t.Helper()
	if g.Addresses == nil {
		g.Addresses = []string{w.addr}
	}
	s, err := w.peers.NewToken(w.source.Fingerprint(), g)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// pair pairs the standby and returns a client.
func (w *world) pair(opts ClientOptions, services ...string) *Client {
	w.t.Helper()
	src, err := w.sources.Pair(w.ctx(), w.standby, w.token(Grant{Services: services}), opts)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.dial(src, w.standby, opts)
}

func (w *world) dial(src *Source, id *Identity, opts ClientOptions) *Client {
	w.t.Helper()
	c, err := Dial(src, id, opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// src is the source as a standby would know it that was not paired.
func (w *world) src() *Source {
	return &Source{Name: "here", Addresses: []string{w.addr}, Fingerprint: w.source.Fingerprint()}
}

func (w *world) ctx() context.Context { return testContext(w.t) }

// testContext ends some time before the test would be killed.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newTestIdentity(t testing.TB) *Identity {
	id, err := LoadIdentity(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// raw returns the generated client, with which a test can send what Client
// never would.
func (w *world) raw(id *Identity, opts ...grpc.DialOption) srvfspb.SrvfsClient {
	conn, err := grpc.NewClient("passthrough:///raw", append(opts,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			d := tls.Dialer{Config: id.clientTLS(w.source.Fingerprint())}
			return d.DialContext(ctx, "tcp", w.addr)
		}))...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return srvfspb.NewSrvfsClient(conn)
}

// snapshot returns a service's snapshot, and its encoded form.
func snapshot(ctx context.Context, c *Client, service string, sequence uint64) (*manifest.Snapshot, []byte, error) {
	o, err := c.Open(ctx, manifest.Ref{Service: service, Sequence: sequence})
	if err != nil {
		return nil, nil, err
	}
	if err := o.Receive(ctx); err != nil {
		return nil, nil, err
	}
	b, err := o.Snapshot.Encode()
	return o.Snapshot, b, err
}

func readAll(r io.ReadCloser, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// wantErr checks that an error wraps the sentinel and says each of the words.
func wantErr(t testing.TB, err, sentinel error, words ...string) {
	t.Helper()
	if !errors.Is(err, sentinel) {
		t.Fatalf("got %v, want an error that wraps %q", err, sentinel)
	}
	for _, word := range words {
		if !bytes.Contains([]byte(err.Error()), []byte(word)) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

// within fails the test if f takes longer.
func within(t testing.TB, limit time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > limit {
		t.Errorf("took %v, want at most %v", took, limit)
	}
}
