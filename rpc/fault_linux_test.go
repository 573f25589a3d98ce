package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A relay stands between standby and source and can fall silent, without an end
// to any connection: a source whose cable was pulled.
type relay struct {
	addr string
	l    net.Listener

	mu     sync.Mutex
	frozen chan struct{} // closed: bytes flow
	open   bool
}

func newRelay(t testing.TB, to string) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: l.Addr().String(), l: l}
	r.thaw()
	var wg sync.WaitGroup
	done, end := context.WithCancel(context.Background())
	pipe := func(dst, src net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			r.mu.Lock()
			ch := r.frozen
			r.mu.Unlock()
			select {
			case <-ch:
			case <-done.Done():
				return
			}
			if n > 0 {
				if _, err := dst.Write(buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				_ = dst.Close()
				return
			}
		}
	}
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			context.AfterFunc(done, func() { _ = in.Close(); _ = out.Close() })
			wg.Go(func() { pipe(in, out) })
			wg.Go(func() { pipe(out, in) })
		}
	})
	t.Cleanup(func() { end(); _ = l.Close(); wg.Wait() })
	return r
}

func (r *relay) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen, r.open = make(chan struct{}), false
}

func (r *relay) thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.frozen == nil {
		r.frozen = make(chan struct{})
	}
	if !r.open {
		close(r.frozen)
		r.open = true
	}
}

// The source's process is killed, as the kernel sees it, while it sends.
func TestSourceKilledInTheMiddle(t *testing.T) {
	if addr := os.Getenv("RPC_TEST_SERVE"); addr != "" {
		serveUntilKilled(addr)
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestSourceKilledInTheMiddle$")
	cmd.Env = append(os.Environ(), "RPC_TEST_SERVE="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	var token, digest string
	if _, err := fmt.Fscan(out, &token, &digest); err != nil {
		t.Fatal(err)
	}
	d, err := manifest.ParseDigest(digest)
	if err != nil {
		t.Fatal(err)
	}
	id := newTestIdentity(t)
	sources, err := OpenSources(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	src, err := sources.Pair(ctx, id, token, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial(src, id, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	body, err := c.Fetch(ctx, d, 0, killedSize)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(body, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	within(t, slack, func() {
		_, err = io.Copy(io.Discard, body)
		wantErr(t, err, manifest.ErrUnavailable, src.Addresses[0], digest)
	})
	// A refused connection is an answer, and so is each further one.
	for range 20 {
		within(t, slack, func() {
			_, err = c.List(ctx)
			wantErr(t, err, manifest.ErrUnavailable, src.Addresses[0])
		})
	}
	wantErr(t, err, manifest.ErrUnavailable, "refused")
}

const killedSize = 256 << 20

// serveUntilKilled is the other process: it prints a token and a digest.
func serveUntilKilled(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	id, err := LoadIdentity(dir)
	fail(err)
	peers, err := OpenPeers(dir)
	fail(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	fail(peers.recordListen(l.Addr()))
	token, err := peers.NewToken(id.Fingerprint(), Grant{})
	fail(err)
	lib := &library{content: map[string]map[manifest.Digest][]byte{"web": {}}, closed: make(chan struct{}, 100)}
	d := lib.add("web", make([]byte, killedSize))
	fmt.Println(token, d)
	fail(NewServer(id, peers, lib, ServerOptions{}).Serve(context.Background(), l))
}

func TestRefusedAtOnceAndBackSoon(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	c := w.pair(ClientOptions{})
	if _, err := c.List(w.ctx()); err != nil {
		t.Fatal(err)
	}
	w.stop()
	for range 50 {
		within(t, slack, func() {
			_, err := c.List(w.ctx())
			wantErr(t, err, manifest.ErrUnavailable, w.addr)
		})
	}
	fresh := w.dial(c.Source(), w.standby, ClientOptions{})
	within(t, slack, func() {
		_, err := fresh.List(w.ctx())
		wantErr(t, err, manifest.ErrUnavailable, w.addr, "connection refused")
	})
	w.serve(w.addr, ServerOptions{})
	within(t, time.Second+slack, func() {
		for ctx := w.ctx(); ; {
			if _, err := c.List(ctx); err == nil {
				return
			} else if !errors.Is(err, manifest.ErrUnavailable) {
				t.Fatal(err)
			}
		}
	})
}

const (
	testDeadline = time.Second
	slack        = 2 * time.Second // for a machine that is busy
)

// all makes every kind of call and gives each error to check.
func (w *world) all(c *Client, d manifest.Digest, check func(call string, err error)) {
	_, err := c.List(w.ctx())
	check("list", err)
	_, _, err = snapshot(w.ctx(), c, "web", 0)
	check("snapshot", err)
	_, err = readAll(c.Fetch(w.ctx(), d, 0, 1))
	check("fetch", err)
	check("batch", c.FetchBatch(w.ctx(), []manifest.Range{{Digest: d, Len: 1}}, func(_ int, _ []byte, err error) error { return err }))
}

func TestSilentListener(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for name, addr := range map[string]string{"accepts and never answers": l.Addr().String(), "full backlog": fullBacklog(t)} {
		t.Run(name, func(t *testing.T) {
			src := w.src()
			src.Addresses = []string{addr}
			c := w.dial(src, w.standby, ClientOptions{Deadline: testDeadline})
			w.all(c, manifest.EmptyDigest, func(call string, err error) {
				within(t, testDeadline+slack, func() { wantErr(t, err, manifest.ErrUnavailable, addr, "no answer") })
			})
			// And when that is known, at once.
			within(t, testDeadline*2/5, func() {
				_, err := c.List(w.ctx())
				wantErr(t, err, manifest.ErrUnavailable, addr, "no answer")
			})
			// The right address beside it is found.
			src.Addresses = []string{addr, w.addr}
			c = w.dial(src, w.standby, ClientOptions{})
			within(t, stagger+slack, func() {
				_, err := c.List(w.ctx())
				wantErr(t, err, manifest.ErrDenied, "not paired") // by the right one
			})
		})
	}
}

// fullBacklog returns the address of a listener on which connections hang.
func fullBacklog(t *testing.T) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
	for range 16 {
		conn, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatal("the backlog never fills")
	return ""
}

// A source that falls silent on a connection that works.
func TestSilentInTheMiddle(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	big := make([]byte, 64<<20)
	d := w.lib.add("web", big)
	frozen := make(chan struct{})
	w.lib.gate = func(ctx context.Context) error {
		select {
		case <-frozen:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	w.pair(ClientOptions{})
	r := newRelay(t, w.addr)
	src := w.src()
	src.Addresses = []string{r.addr}
	c := w.dial(src, w.standby, ClientOptions{Deadline: testDeadline})
	body, err := c.Fetch(w.ctx(), d, 0, int64(len(big)))
	if err != nil {
		t.Fatal(err)
	}
	r.freeze()
	close(frozen) // what the source sends now is lost
	within(t, 2*testDeadline+slack, func() {
		_, err := io.Copy(io.Discard, body)
		wantErr(t, err, manifest.ErrUnavailable, "no answer", r.addr)
	})
	w.all(c, d, func(call string, err error) {
		within(t, testDeadline+slack, func() { wantErr(t, err, manifest.ErrUnavailable, r.addr) })
	})
	r.thaw()
	within(t, 3*time.Second+slack, func() {
		for ctx := w.ctx(); ; {
			if _, err := c.List(ctx); err == nil {
				return
			} else if !errors.Is(err, manifest.ErrUnavailable) {
				t.Fatal(err)
			}
		}
	})
}

// A handler that hangs on a connection that otherwise lives, and a caller that
// takes its time.
func TestDeadlineIsForTheSourceOnly(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	data := make([]byte, 8*pieceSize)
	d := w.lib.add("web", data)
	c := w.pair(ClientOptions{Deadline: testDeadline})
	body, err := c.Fetch(w.ctx(), d, 0, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	idle := time.NewTimer(testDeadline * 3 / 2) // the caller's own business, which is what is tested
	defer idle.Stop()
	<-idle.C
	if b, err := readAll(body, nil); err != nil || len(b) != len(data) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	w.lib.gate = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	within(t, 2*testDeadline+slack, func() {
		_, err := readAll(c.Fetch(w.ctx(), d, 0, int64(len(data))))
		wantErr(t, err, manifest.ErrUnavailable, "no answer")
	})
	for range 2 { // both bodies: the source holds nothing of a call that was given up
		<-w.lib.closed
	}
}

func TestCancelFreesTheSource(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	data := make([]byte, 8*pieceSize)
	d := w.lib.add("web", data)
	w.lib.gate = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	c := w.pair(ClientOptions{})
	for name, end := range map[string]func(cancel func(), body io.Closer){
		"cancel": func(cancel func(), _ io.Closer) { cancel() },
		"close":  func(_ func(), body io.Closer) { _ = body.Close() },
	} {
		ctx, cancel := context.WithCancel(w.ctx())
		body, err := c.Fetch(ctx, d, 0, int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if n := w.lib.bodies.Load(); n != 1 {
			t.Errorf("%s: %d bodies open", name, n)
		}
		waiting := make(chan error, 1)
		go func() { _, err := io.Copy(io.Discard, body); waiting <- err }()
		end(cancel, body)
		<-w.lib.closed
		if n := w.lib.bodies.Load(); n != 0 {
			t.Errorf("%s: %d bodies open at the source", name, n)
		}
		if err := <-waiting; err == nil || name == "cancel" && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: the reader got %v", name, err)
		}
		cancel()
		_ = body.Close()
	}
	ctx, cancel := context.WithTimeout(w.ctx(), testDeadline)
	defer cancel()
	_, err := readAll(c.Fetch(ctx, d, 0, int64(len(data))))
	wantErr(t, err, manifest.ErrUnavailable)
	wantErr(t, err, context.DeadlineExceeded)
	<-w.lib.closed
}

func TestGracefulEnd(t *testing.T) {
	w := newWorld(t, ServerOptions{Grace: time.Minute})
	data := make([]byte, 4*pieceSize)
	d := w.lib.add("web", data)
	reading, goOn := make(chan struct{}, 100), make(chan struct{})
	w.lib.gate = func(context.Context) error { reading <- struct{}{}; <-goOn; return nil }
	c := w.pair(ClientOptions{})
	got := make(chan error, 1)
	go func() {
		b, err := readAll(c.Fetch(w.ctx(), d, 0, int64(len(data))))
		if len(b) != len(data) {
			err = fmt.Errorf("%d bytes, %w", len(b), err)
		}
		got <- err
	}()
	<-reading
	ended := make(chan struct{})
	go func() { w.stop(); close(ended) }()
	for { // until new connections are refused, the call still under way
		conn, err := net.Dial("tcp", w.addr)
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	close(goOn)
	if err := <-got; err != nil {
		t.Errorf("a call under way: %v", err)
	}
	<-ended

	// A call that does not end is ended.
	w = newWorld(t, ServerOptions{Grace: 100 * time.Millisecond})
	d = w.lib.add("web", data)
	w.lib.gate = func(ctx context.Context) error { reading <- struct{}{}; <-ctx.Done(); return ctx.Err() }
	c = w.pair(ClientOptions{})
	go func() { _, err := readAll(c.Fetch(w.ctx(), d, 0, int64(len(data)))); got <- err }()
	<-reading
	within(t, slack, w.stop)
	wantErr(t, <-got, manifest.ErrUnavailable, w.addr)
}

func TestServeSaysWhyItCannot(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := NewServer(w.source, w.peers, w.lib, ServerOptions{}).Serve(w.ctx(), l); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("on a closed listener: %v", err)
	}
}
