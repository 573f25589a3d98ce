// Package transfer measures how content gets from a source's live files to a
// standby's disk: capture, rpc and store as they are in production, in one
// process and over TLS on loopback, so that one profile shows both ends.
package transfer

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"srvfs/capture"
	"srvfs/manifest"
	"srvfs/rpc"
	"srvfs/sandbox"
	"srvfs/store"
	"srvfs/test/world"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	world.Private()
	// The source's trees are no part of its /tmp, which no capture takes, and in
	// memory, so that its disk isn't measured.
	if err := unix.Mount("srvfs-transfer", "/srv", "tmpfs", 0, "mode=755"); err != nil {
		fmt.Fprintf(os.Stderr, "mount a tmpfs at /srv: %v\n", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// treeDir returns a new folder that a capture takes.
func treeDir(b testing.TB) string {
	dir, err := os.MkdirTemp("/srv", "tree-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// A site is a source with one service, and a client of it.
type site struct {
	tree   string // the source's root folder
	snap   *manifest.Snapshot
	client *rpc.Client
	bytes  int64
	files  int
}

// provider offers a capture library, as srvd serve does.
type provider struct {
	lib  *capture.Library
	live *capture.Live
}

func (p provider) Services(context.Context) ([]rpc.ServiceInfo, error) { return nil, nil }

func (p provider) Await(context.Context, string, manifest.Digest) (rpc.ServiceInfo, error) {
	return rpc.ServiceInfo{}, manifest.ErrNotFound
}

func (p provider) History(context.Context, string) ([]rpc.ServiceInfo, error) { return nil, nil }

func (p provider) Snapshot(_ context.Context, ref manifest.Ref) ([]byte, error) {
	return p.lib.Encoded(ref)
}

func (p provider) Missed(_ context.Context, _, _ string, paths []string) ([]manifest.Verdict, error) {
	return make([]manifest.Verdict, len(paths)), nil
}

func (p provider) Origin(allowed func(string) bool) manifest.Batcher { return p.live.Restrict(allowed) }

// newSite captures /srv of the root folder tree and serves it on loopback.
func newSite(b testing.TB, tree string, opts rpc.ClientOptions) *site {
	b.Helper()
	state := b.TempDir()
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(tree, "idle"), "./testdata/idle")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	r, err := capture.Capture(b.Context(), capture.Options{
		Name: "web", Root: tree, Exec: []string{"/idle"}, Include: []string{"/srv"}, StateDir: state,
	})
	if err != nil {
		b.Fatal(err)
	}
	lib, err := capture.OpenLibrary(state)
	if err != nil {
		b.Fatal(err)
	}
	live := lib.Live()
	id, err := rpc.LoadIdentity(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	peers, err := rpc.OpenPeers(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- rpc.NewServer(id, peers, provider{lib, live}, rpc.ServerOptions{Grace: -1, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l)
	}()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
		_ = live.Close()
	})
	standby, err := rpc.LoadIdentity(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	sources, err := rpc.OpenSources(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	token, err := peers.NewToken(id.Fingerprint(), rpc.Grant{Addresses: []string{l.Addr().String()}})
	if err != nil {
		b.Fatal(err)
	}
	src, err := sources.Pair(b.Context(), standby, token, rpc.ClientOptions{})
	if err != nil {
		b.Fatal(err)
	}
	c, err := rpc.Dial(src, standby, opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return &site{tree: tree, snap: r.Snapshot, client: c, bytes: int64(r.Snapshot.Totals.Bytes), files: int(r.Snapshot.Totals.Files)}
}

// reader opens an empty store that reads from the source.
func (s *site) reader(b testing.TB, name string) (*store.Store, *store.Reader) {
	b.Helper()
	st, err := store.Open(store.Options{Dir: filepath.Join(stores(b), name)})
	if err != nil {
		b.Fatal(err)
	}
	return st, st.Reader(store.Source{Name: "source", Origin: s.client})
}

var storesDir string

// stores is one folder for all rounds: a disk from which many files have just
// been deleted is slow at making new ones.
func stores(b testing.TB) string {
	if storesDir == "" {
		dir, err := os.MkdirTemp("", "srvfs-transfer-")
		if err != nil {
			b.Fatal(err)
		}
		storesDir = dir
	}
	b.Cleanup(func() {
		_ = os.RemoveAll(storesDir)
		storesDir = ""
	})
	return storesDir
}

// smallTree makes n files of 100 bytes to 13 KiB, half of them text, in
// folders of 30, three levels deep.
func smallTree(b testing.TB, n int) string {
	root := treeDir(b)
	noise := rand.NewChaCha8([32]byte{1})
	rng := rand.New(noise)
	for i := range n {
		dir := filepath.Join(root, "srv", fmt.Sprint(i/30%7), fmt.Sprint(i/210%11), fmt.Sprint(i/30))
		if i%30 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		data := make([]byte, 100<<rng.IntN(8)+rng.IntN(200))
		_, _ = noise.Read(data)
		if i%2 == 0 {
			for j := range data {
				data[j] = "etaoin shrdlu\n\t{}"[data[j]%17]
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%d.js", i)), data, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return root
}

// largeTree makes one file of n bytes that can't be packed.
func largeTree(b testing.TB, n int64) string {
	root := treeDir(b)
	if err := os.Mkdir(filepath.Join(root, "srv"), 0o755); err != nil {
		b.Fatal(err)
	}
	f, err := os.Create(filepath.Join(root, "srv/large"))
	if err != nil {
		b.Fatal(err)
	}
	noise := rand.NewChaCha8([32]byte{2})
	buf := make([]byte, 1<<20)
	for i := int64(0); i < n; i += int64(len(buf)) {
		_, _ = noise.Read(buf)
		binary.LittleEndian.PutUint64(buf, uint64(i))
		if _, err := f.Write(buf[:min(int64(len(buf)), n-i)]); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	return root
}

func cpuTime(b testing.TB) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// content returns the content of a file of the tree, hashed anew.
func (s *site) content(b testing.TB, name string) manifest.Content {
	b.Helper()
	data, err := os.ReadFile(filepath.Join(s.tree, name))
	if err != nil {
		b.Fatal(err)
	}
	h := manifest.NewHasher()
	_, _ = h.Write(data)
	d, size, list := h.Sum()
	c := manifest.Content{Digest: d, Size: size, Path: "/" + name}
	if list != nil {
		c.Chunks = manifest.Sum(list.Encode())
	}
	return c
}
