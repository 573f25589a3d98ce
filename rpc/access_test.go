package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"srvfs/manifest"
	"srvfs/manifest/origintest"
	"srvfs/rpc/srvfspb"
)

func TestConformance(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	c := w.pair(ClientOptions{})
	origintest.Run(t, origintest.World{Origin: c, Has: someContents(), Stale: []manifest.Digest{manifest.Sum([]byte("old"))}})
}

// The fixture keeps the contract too, so that what the wire is tested against
// is right.
func TestFixtureConformance(t *testing.T) {
	o := newLibrary(t).Origin(func(string) bool { return true })
	all := origintest.World{Origin: ctxOrigin{o.(*libraryOrigin)}, Has: someContents(), Stale: []manifest.Digest{manifest.Sum([]byte("old"))}}
	origintest.Run(t, all)
}

// ctxOrigin adds what a server's transport does for the fixture.
type ctxOrigin struct{ *libraryOrigin }

func (o ctxOrigin) Fetch(ctx context.Context, d manifest.Digest, off, n int64) (io.ReadCloser, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return o.libraryOrigin.Fetch(ctx, d, off, n)
}

func (o ctxOrigin) FetchBatch(ctx context.Context, want []manifest.Range, yield func(int, []byte, error) error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return o.libraryOrigin.FetchBatch(ctx, want, yield)
}

func TestListAndSnapshot(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	c := w.pair(ClientOptions{})
	got, err := c.List(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	want, _ := w.lib.Services(w.ctx())
	if !slices.EqualFunc(got, want, func(a, b ServiceInfo) bool {
		return a.Created.Equal(b.Created) && a.Name == b.Name && a.Digest == b.Digest && a.Totals == b.Totals && a.Sequence == b.Sequence
	}) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, seq := range []uint64{0, 7} {
		s, raw, err := snapshot(w.ctx(), c, "web", seq)
		if err != nil || s.Service != "web" || manifest.Sum(raw) != got[1].Digest {
			t.Errorf("snapshot %d: %v", seq, err)
		}
	}
	_, _, err = snapshot(w.ctx(), c, "web", 8)
	wantErr(t, err, manifest.ErrNotFound, w.addr, "snapshot of web")
	_, _, err = snapshot(w.ctx(), c, "../etc", 0)
	wantErr(t, err, manifest.ErrInvalid)
	_, err = w.raw(w.standby).Pair(w.ctx(), &srvfspb.PairRequest{Secret: []byte("short")})
	wantErr(t, fromStatus(err), manifest.ErrInvalid)
}

func TestUnpairedIsRefusedEverything(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	var d manifest.Digest
	for d = range w.lib.content["web"] {
		break
	}
	c := w.dial(w.src(), w.standby, ClientOptions{})
	_, listErr := c.List(w.ctx())
	_, _, snapErr := snapshot(w.ctx(), c, "web", 0)
	_, fetchErr := c.Fetch(w.ctx(), d, 0, -1)
	batchErr := c.FetchBatch(w.ctx(), []manifest.Range{{Digest: d, Len: 1}}, func(int, []byte, error) error { t.Error("yielded"); return nil })
	_, missErr := c.Missed(w.ctx(), "web", []string{"/x"})
	for _, err := range []error{listErr, snapErr, fetchErr, batchErr, missErr} {
		wantErr(t, err, manifest.ErrDenied, "not paired", "srvd pair", w.standby.Fingerprint().ID(), "here")
	}
}

func TestLimitedToServices(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	c := w.pair(ClientOptions{}, "web")
	infos, err := c.List(w.ctx())
	if err != nil || len(infos) != 1 || infos[0].Name != "web" {
		t.Errorf("list: %+v, %v", infos, err)
	}
	secret := manifest.Sum([]byte("only for mail"))
	_, _, err = snapshot(w.ctx(), c, "mail", 0)
	wantErr(t, err, manifest.ErrDenied, "mail")
	_, _, err = snapshot(w.ctx(), c, "nosuch", 0)
	wantErr(t, err, manifest.ErrDenied) // not even whether it exists
	_, err = readAll(c.Fetch(w.ctx(), secret, 0, -1))
	wantErr(t, err, manifest.ErrNotFound)
	err = c.FetchBatch(w.ctx(), []manifest.Range{{Digest: secret, Len: 1}}, func(_ int, _ []byte, err error) error { return err })
	wantErr(t, err, manifest.ErrNotFound)

	c = w.pair(ClientOptions{}, "mail") // a second token adds
	for _, name := range []string{"web", "mail"} {
		if _, _, err := snapshot(w.ctx(), c, name, 0); err != nil {
			t.Error(err)
		}
	}
	if b, err := readAll(c.Fetch(w.ctx(), secret, 0, -1)); err != nil || string(b) != "only for mail" {
		t.Errorf("%q, %v", b, err)
	}
}

// A report of misses reaches the provider with the standby's name, and its verdicts
// come back; of a service that is not the peer's, nobody is told anything.
func TestMissed(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	c := w.pair(ClientOptions{}, "web")
	got, err := c.Missed(w.ctx(), "web", []string{"/usr/share/there", "/opt/\xff not"})
	if err != nil || !slices.Equal(got, []manifest.Verdict{manifest.VerdictNoted, manifest.VerdictAbsent}) {
		t.Errorf("%v, %v", got, err)
	}
	if len(w.lib.missed) != 1 || !strings.HasPrefix(w.lib.missed[0], "web ") || !strings.Contains(w.lib.missed[0], `"/opt/\xff not"`) {
		t.Errorf("the provider got %q", w.lib.missed)
	}
	_, err = c.Missed(w.ctx(), "mail", []string{"/there"})
	wantErr(t, err, manifest.ErrDenied, "mail")
	for name, paths := range map[string][]string{
		"relative": {"there"}, "leads out": {"/../there"}, "not clean": {"/a//there"}, "nothing": {""},
		"too long": {"/" + strings.Repeat("a", manifest.MaxPath)}, "too many": slices.Repeat([]string{"/there"}, manifest.MaxMisses+1),
	} {
		if _, err := c.Missed(w.ctx(), "web", paths); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(w.lib.missed) != 1 {
		t.Errorf("the provider got %q", w.lib.missed[1:])
	}
}

func TestRevokedInTheMiddle(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	big := make([]byte, 64<<20)
	d := w.lib.add("web", big)
	step := make(chan struct{})
	w.lib.gate = func(ctx context.Context) error {
		select {
		case <-step:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c := w.pair(ClientOptions{})
	body, err := c.Fetch(w.ctx(), d, 0, int64(len(big)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = body.Close() }()
	batch := make(chan error, 1)
	first := make(chan struct{})
	go func() {
		want := slices.Repeat([]manifest.Range{{Digest: d, Len: 1 << 20}}, 8)
		batch <- c.FetchBatch(w.ctx(), want, func(i int, _ []byte, err error) error {
			if i == 0 {
				close(first)
			}
			return err
		})
	}()
	select {
	case <-first:
	case err := <-batch:
		t.Fatal(err)
	}
	// Another process revokes: it shares nothing but the folder.
	other, err := OpenPeers(w.peers.dir)
	if err != nil {
		t.Fatal(err)
	}
	list, err := other.List()
	if err != nil || len(list) != 1 || list[0].Fingerprint != w.standby.Fingerprint() {
		t.Fatalf("%+v, %v", list, err)
	}
	what, err := other.Revoke(list[0].ID()[:6])
	if err != nil || !strings.Contains(what, list[0].ID()) {
		t.Fatalf("%q, %v", what, err)
	}
	close(step)
	n, err := io.Copy(io.Discard, body)
	wantErr(t, err, manifest.ErrDenied, "revoked")
	if n > 2*pieceSize {
		t.Errorf("%d bytes came after the peer was revoked", n-pieceSize)
	}
	wantErr(t, <-batch, manifest.ErrDenied, "revoked")
	_, err = c.List(w.ctx())
	wantErr(t, err, manifest.ErrDenied, "revoked")
	if list, err := other.List(); err != nil || len(list) != 0 {
		t.Errorf("listed after it was revoked: %+v, %v", list, err)
	}
	c = w.pair(ClientOptions{}) // and let in again
	if _, err := c.List(w.ctx()); err != nil {
		t.Error(err)
	}
}

func TestTokenIsUsedOnce(t *testing.T) {
	w := newWorld(t, ServerOptions{PairsPerMinute: 1000})
	token := w.token(Grant{})
	const n = 32
	var won atomic.Int32
	var wg sync.WaitGroup
	var start sync.WaitGroup
	start.Add(1)
	for range n {
		id := newTestIdentity(t)
		sources, err := OpenSources(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			start.Wait()
			switch _, err := sources.Pair(w.ctx(), id, token, ClientOptions{}); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, manifest.ErrDenied) || !strings.Contains(err.Error(), "used already"):
				t.Errorf("a loser reads: %v", err)
			}
		})
	}
	start.Done()
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of %d paired with one token", won.Load(), n)
	}
	if list, err := w.peers.List(); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestTokenRefusals(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	refused := func(token string, sentinel error, words ...string) {
		t.Helper()
		_, err := w.sources.Pair(w.ctx(), w.standby, token, ClientOptions{})
		wantErr(t, err, sentinel, words...)
	}
	expired := w.token(Grant{Expires: time.Hour})
	all, err := readRecords[tokenRecord](w.peers.dir + "/tokens")
	if err != nil {
		t.Fatal(err)
	}
	all[0].Expires = time.Now().Add(-time.Second)
	if err := w.peers.writeToken(&all[0]); err != nil {
		t.Fatal(err)
	}
	refused(expired, manifest.ErrDenied, "expired on", "srvd pair")

	revoked := w.token(Grant{})
	pending, err := w.peers.Pending()
	if err != nil || len(pending) != 1 {
		t.Fatalf("%+v, %v", pending, err)
	}
	if _, err := w.peers.Revoke(pending[0].ID); err != nil {
		t.Fatal(err)
	}
	refused(revoked, manifest.ErrDenied, "revoked on", "srvd pair")

	forged, err := ParseToken(w.token(Grant{}))
	if err != nil {
		t.Fatal(err)
	}
	forged.Secret[0]++
	refused(forged.String(), manifest.ErrDenied, "unknown", "srvd pair")
	refused("hello", manifest.ErrInvalid, "does not begin with")
	refused(expired[:40], manifest.ErrInvalid, "cut short")
	refused("srvfs9-abc", manifest.ErrInvalid, "version")
	if _, err := w.sources.Find(w.ctx(), w.addr); !errors.Is(err, manifest.ErrDenied) {
		t.Errorf("known after refused pairings: %v", err)
	}
}

func TestPairingIsLimited(t *testing.T) {
	w := newWorld(t, ServerOptions{PairsPerMinute: 3})
	raw := w.raw(w.standby)
	for i := range 5 {
		_, err := raw.Pair(w.ctx(), &srvfspb.PairRequest{Secret: make([]byte, secretSize)})
		want := manifest.ErrDenied
		if i >= 3 {
			want = manifest.ErrUnavailable
		}
		wantErr(t, fromStatus(err), want)
	}
}

func TestLimiter(t *testing.T) {
	l := newLimiter(2, time.Minute)
	now := time.Unix(1700000000, 0)
	for i, want := range []bool{true, true, false} {
		if l.allow("10.0.0.1", now) != want || l.allow(fmt.Sprintf("2001:db8::%d", i), now) != want {
			t.Errorf("attempt %d", i)
		}
	}
	if !l.allow("::ffff:10.0.0.2", now) || !l.allow("10.0.0.2", now) || l.allow("10.0.0.2", now) {
		t.Error("a mapped address is the same one")
	}
	if !l.allow("10.0.0.1", now.Add(time.Minute)) {
		t.Error("no attempt after the window")
	}
	if l.allow("no address", now) {
		t.Error("allowed for no address")
	}
	for i := range 2 * maxLimited {
		l.allow(fmt.Sprintf("10.1.%d.%d", i>>8, i&255), now)
	}
	if n := len(l.count); n > maxLimited {
		t.Errorf("remembers %d addresses", n)
	}
	if !l.allow("10.9.9.9", now.Add(2*time.Minute)) {
		t.Error("full of old addresses")
	}
}

// Another host that sits at the source's address learns nothing and is refused.
func TestWrongKeyIsRefused(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	w.pair(ClientOptions{})
	impostor := newWorld(t, ServerOptions{})
	src := w.src()
	src.Addresses = []string{impostor.addr}
	c := w.dial(src, w.standby, ClientOptions{})
	_, err := c.List(w.ctx())
	wantErr(t, err, manifest.ErrDenied, impostor.addr, impostor.source.Fingerprint().ID(), "another host")

	// It does not keep the client from the right address, whichever comes first.
	src.Addresses = []string{impostor.addr, w.addr}
	c = w.dial(src, w.standby, ClientOptions{})
	if _, err := c.List(w.ctx()); err != nil {
		t.Error(err)
	}

	token, err := ParseToken(w.token(Grant{}))
	if err != nil {
		t.Fatal(err)
	}
	token.Addresses = []string{impostor.addr}
	_, err = impostor.sources.Pair(w.ctx(), impostor.standby, token.String(), ClientOptions{})
	wantErr(t, err, manifest.ErrDenied, "another host")
	if pending, err := w.peers.Pending(); err != nil || len(pending) != 1 {
		t.Errorf("the token was spent: %+v, %v", pending, err)
	}
}

func TestOldOrNoTLSIsRefused(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	old := w.standby.clientTLS(w.source.Fingerprint())
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if conn, err := tls.Dial("tcp", w.addr, old); err == nil {
		t.Error("TLS 1.2 was accepted")
		_ = conn.Close()
	}

	anonymous := w.standby.clientTLS(w.source.Fingerprint())
	anonymous.Certificates = nil
	conn, err := tls.Dial("tcp", w.addr, anonymous)
	if err == nil { // TLS 1.3 tells the client with the first read
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	if alert := (*net.OpError)(nil); !errors.As(err, &alert) || alert.Op != "remote error" {
		t.Errorf("without a certificate: %v", err)
	}

	plain, err := grpc.NewClient("passthrough:///"+w.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	if _, err := srvfspb.NewSrvfsClient(plain).List(w.ctx(), &srvfspb.ListRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("plain text: %v", err)
	}

	// And the client speaks to no server that is older.
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: w.source.serverTLS().Certificates, MaxVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
	}()
	src := w.src()
	src.Addresses = []string{l.Addr().String()}
	_, err = w.dial(src, w.standby, ClientOptions{}).List(w.ctx())
	wantErr(t, err, manifest.ErrDenied, "TLS 1.3")
}

func TestHostileRequestsAreRefused(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	w.pair(ClientOptions{})
	raw := w.raw(w.standby)
	d := make([]byte, manifest.DigestSize)
	ranges := map[string]*srvfspb.Range{
		"no digest":       {},
		"short digest":    {Digest: d[1:]},
		"negative offset": {Digest: d, Off: -1, Len: 1},
		"overflow":        {Digest: d, Off: 1<<63 - 1, Len: 1},
		"negative length": {Digest: d, Len: -2},
		"no range":        nil,
	}
	for name, r := range ranges {
		s, err := raw.Fetch(w.ctx(), &srvfspb.FetchRequest{Range: r})
		if err == nil {
			_, err = s.Recv()
		}
		if !errors.Is(fromStatus(err), manifest.ErrInvalid) {
			t.Errorf("fetch, %s: %v", name, err)
		}
		b, err := raw.FetchBatch(w.ctx(), &srvfspb.FetchBatchRequest{Ranges: []*srvfspb.Range{r}})
		if err == nil {
			_, err = b.Recv()
		}
		if !errors.Is(fromStatus(err), manifest.ErrInvalid) {
			t.Errorf("batch, %s: %v", name, err)
		}
	}
	one := &srvfspb.Range{Digest: d, Len: 1}
	for name, req := range map[string]*srvfspb.FetchBatchRequest{
		"too many ranges": {Ranges: slices.Repeat([]*srvfspb.Range{one}, manifest.MaxBatch+1)},
		"long range":      {Ranges: []*srvfspb.Range{{Digest: d, Len: manifest.MaxRange + 1}}},
		"huge message":    {Ranges: slices.Repeat([]*srvfspb.Range{one}, 1<<20)},
	} {
		b, err := raw.FetchBatch(w.ctx(), req)
		if err == nil {
			_, err = b.Recv()
		}
		if !errors.Is(fromStatus(err), manifest.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := raw.Snapshot(w.ctx(), &srvfspb.SnapshotRequest{Service: "../../etc/passwd"})
	if err == nil {
		_, err = s.Recv()
	}
	wantErr(t, fromStatus(err), manifest.ErrInvalid)
}

func TestCallsOfOnePeerAreLimited(t *testing.T) {
	w := newWorld(t, ServerOptions{MaxStreams: 2})
	d := w.lib.add("web", make([]byte, 4*pieceSize))
	w.lib.gate = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	c := w.pair(ClientOptions{})
	var bodies []io.ReadCloser
	for range 2 {
		body, err := c.Fetch(w.ctx(), d, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, body)
	}
	_, err := c.List(w.ctx())
	wantErr(t, err, manifest.ErrUnavailable, "more than 2 calls")
	for _, b := range bodies {
		_ = b.Close()
		<-w.lib.closed
	}
	// The count falls when the handlers have returned, just after their bodies closed.
	for ctx := w.ctx(); ; {
		if _, err := c.List(ctx); err == nil {
			break
		} else if !strings.Contains(err.Error(), "more than 2 calls") {
			t.Fatal(err)
		}
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	w := newWorld(t, ServerOptions{MaxConns: 2})
	src, err := w.sources.Pair(w.ctx(), w.standby, w.token(Grant{}), ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	idle, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idle.Close() }()
	a := w.dial(src, w.standby, ClientOptions{})
	if _, err := a.List(w.ctx()); err != nil {
		t.Fatal(err)
	}
	b := w.dial(src, w.standby, ClientOptions{Deadline: 400 * time.Millisecond})
	_, err = b.List(w.ctx())
	wantErr(t, err, manifest.ErrUnavailable)
	_ = a.Close() // makes room
	c := w.dial(src, w.standby, ClientOptions{})
	if _, err := c.List(w.ctx()); err != nil {
		t.Error(err)
	}
}
