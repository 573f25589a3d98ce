package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"srvfs/manifest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		crashChild(dir)
	}
	os.Exit(m.Run())
}

// A memory is an origin in memory that counts what it is asked for and can
// be told to misbehave.
type memoryOrigin struct {
	mu       sync.Mutex
	content  map[manifest.Digest][]byte
	asked    map[manifest.Range]int // ranges, however they were asked for
	requests int
	fail     func(manifest.Range) error  // may return an error instead of content
	spoil    func([]byte) []byte         // may change what is sent
	gate     func(context.Context) error // waited for before an answer
}

func newOrigin() *memoryOrigin {
	return &memoryOrigin{content: map[manifest.Digest][]byte{}, asked: map[manifest.Range]int{}}
}

func (o *memoryOrigin) put(b []byte) manifest.Digest {
	d := manifest.Sum(b)
	o.content[d] = b
	return d
}

func (o *memoryOrigin) get(ctx context.Context, g manifest.Range) ([]byte, error) {
	o.mu.Lock()
	o.asked[g]++
	b, ok := o.content[g.Digest]
	fail, spoil, gate := o.fail, o.spoil, o.gate
	o.mu.Unlock()
	if gate != nil {
		if err := gate(ctx); err != nil {
			return nil, err
		}
	}
	if fail != nil {
		if err := fail(g); err != nil {
			return nil, err
		}
	}
	if !ok {
		return nil, manifest.ErrNotFound
	}
	if g.Len >= 0 {
		b = b[g.Off : g.Off+g.Len]
	}
	if spoil != nil {
		b = spoil(bytes.Clone(b))
	}
	return b, nil
}

func (o *memoryOrigin) Fetch(ctx context.Context, d manifest.Digest, off, n int64) (io.ReadCloser, error) {
	o.mu.Lock()
	o.requests++
	o.mu.Unlock()
	b, err := o.get(ctx, manifest.Range{Digest: d, Off: off, Len: n})
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (o *memoryOrigin) times(g manifest.Range) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked[g]
}

func (o *memoryOrigin) total() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, k := range o.asked {
		n += k
	}
	return n
}

// A batchOrigin is a memoryOrigin that answers batches.
type batchOrigin struct{ *memoryOrigin }

func (o batchOrigin) FetchBatch(ctx context.Context, want []manifest.Range, yield func(int, []byte, error) error) error {
	o.mu.Lock()
	o.requests++
	o.mu.Unlock()
	for i, g := range want {
		b, err := o.get(ctx, g)
		if errors.Is(err, manifest.ErrUnavailable) || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if err := yield(i, b, err); err != nil {
			return err
		}
	}
	return nil
}

// file puts a file's content, and its chunk list, into the origin.
func (o *memoryOrigin) file(p string, b []byte) manifest.Content {
	h := manifest.NewHasher()
	_, _ = h.Write(b)
	d, size, list := h.Sum()
	o.content[d] = b
	c := manifest.Content{Digest: d, Size: size, Path: p}
	if list != nil {
		c.Chunks = o.put(list.Encode())
	}
	return c
}

// tree puts a tree of regular files into the origin and returns its snapshot.
// The profile is in the order given.
func (o *memoryOrigin) tree(files map[string][]byte, profile ...string) *manifest.Snapshot {
	snap := &manifest.Snapshot{Service: "web", Sequence: 1, Source: "test"}
	snap.Totals.Dirs = 1
	byDir := map[string][]manifest.Entry{}
	for p, b := range files {
		c := o.file(p, b)
		byDir[path.Dir(p)] = append(byDir[path.Dir(p)], manifest.Entry{Name: path.Base(p), Type: manifest.File, Mode: 0o644, Links: 1, Size: c.Size, Digest: c.Digest, Chunks: c.Chunks})
		for d := path.Dir(p); d != "/"; d = path.Dir(d) {
			if _, ok := byDir[d]; !ok {
				byDir[d] = nil
			}
		}
		snap.Totals.Files++
		snap.Totals.Bytes += uint64(c.Size)
		snap.Totals.Entries++
	}
	if _, ok := byDir["/"]; !ok {
		byDir["/"] = nil
	}
	dirs := slices.Collect(maps.Keys(byDir))
	slices.SortFunc(dirs, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") })
	slices.SortStableFunc(dirs, func(a, b string) int { return len(b) - len(a) })
	for _, d := range dirs {
		es := byDir[d]
		slices.SortFunc(es, func(a, b manifest.Entry) int { return strings.Compare(a.Name, b.Name) })
		digest, err := manifest.EncodeDirectory(es, func(_ manifest.Digest, b []byte) error { o.put(bytes.Clone(b)); return nil })
		if err != nil {
			panic(err)
		}
		e := manifest.Entry{Name: path.Base(d), Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: digest}
		if d == "/" {
			e.Name = ""
			snap.Root = e
			break
		}
		snap.Totals.Dirs++
		snap.Totals.Entries++
		byDir[path.Dir(d)] = append(byDir[path.Dir(d)], e)
	}
	for _, p := range profile {
		snap.Profile = append(snap.Profile, manifest.Touch{Path: p, Content: manifest.Sum(files[p]), Len: int64(len(files[p]))})
	}
	return snap
}

// random returns n bytes that are the same for the same seed.
func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = r.Read(b)
	return b
}

// openStore opens a store that closes with the test.
func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "store")
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !t.Failed() {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func ctxOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// readAll reads a content through Open and ReadAt.
func readAll(t testing.TB, r *Reader, c manifest.Content) ([]byte, error) {
	t.Helper()
	f, err := r.Open(ctxOf(t), c)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, c.Size)
	for off := int64(0); off < c.Size; off += 128 << 10 {
		if _, err := f.ReadAt(ctxOf(t), b[off:min(c.Size, off+128<<10)], off); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func mustRead(t testing.TB, r *Reader, c manifest.Content, want []byte) {
	t.Helper()
	got, err := readAll(t, r, c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: read other bytes than were stored", c.Path)
	}
}

// onDisk checks that every blob is what its name says.
func verifyBlobs(t testing.TB, dir string) (n int) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, "blobs", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if got := manifest.Sum(b).Hex(); got != e.Name() {
			t.Errorf("blob %s has digest %s", e.Name(), got)
		}
	}
	return len(entries)
}

func writeFile(t testing.TB, p string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, b, 0o644); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(p, old, old); err != nil {
		t.Fatal(err)
	}
}

// settleClock waits until files written before are no longer racy: their ctime
// can't be set.
func settleClock() { time.Sleep(25 * time.Millisecond) }

// A logbook collects log lines.
type logbook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logbook) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func name(i int) string { return fmt.Sprintf("/srv/d%d/f%d", i%7, i) }
