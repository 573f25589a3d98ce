package statcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"srvfs/manifest"
)

// writerPath makes the re-executed test binary write to that cache.
const writerPath = "SRVFS_STATCACHE_TEST_PATH"

func TestMain(m *testing.M) {
	if p := os.Getenv(writerPath); p != "" {
		c, err := Open(p)
		for i := 0; err == nil && i < 2000; i++ {
			err = c.PutTrusted(keyOf(i, os.Getpid()), valueOf(i))
			if i%500 == 250 {
				err = errors.Join(err, c.Compact())
			}
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func keyOf(i, dev int) Key {
	return Key{Dev: uint64(dev), Ino: uint64(i), Size: int64(i * 3), Mtime: int64(i), Ctime: int64(-i)}
}

func valueOf(i int) Value {
	return Value{Digest: manifest.Sum(fmt.Append(nil, i)), Chunks: manifest.Sum(fmt.Append(nil, -i))}
}

func open(t testing.TB, p string) *Cache {
	t.Helper()
	c, err := Open(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func fill(t testing.TB, c *Cache, n int) {
	t.Helper()
	for i := range n {
		if err := c.PutTrusted(keyOf(i, 1), valueOf(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPutGetReload(t *testing.T) {
	p := filepath.Join(t.TempDir(), "c")
	c := open(t, p)
	fill(t, c, 5000)
	for _, c := range []*Cache{c, open(t, p)} {
		if c.Len() != 5000 {
			t.Errorf("%d files", c.Len())
		}
		for i := range 5000 {
			if v, ok := c.Get(keyOf(i, 1)); !ok || v != valueOf(i) {
				t.Fatalf("%d: %v %v", i, v, ok)
			}
		}
		for name, change := range map[string]func(*Key){
			"dev": func(k *Key) { k.Dev++ }, "ino": func(k *Key) { k.Ino += 1e6 }, "size": func(k *Key) { k.Size++ },
			"mtime": func(k *Key) { k.Mtime++ }, "ctime": func(k *Key) { k.Ctime++ },
		} {
			k := keyOf(7, 1)
			change(&k)
			if _, ok := c.Get(k); ok {
				t.Errorf("another %s is the same file", name)
			}
		}
	}
}

func TestNewestCountsAndCompaction(t *testing.T) {
	p := filepath.Join(t.TempDir(), "c")
	c := open(t, p)
	for round := range 40 {
		for i := range 100 {
			k := keyOf(i, 1)
			k.Mtime += int64(round)
			if err := c.PutTrusted(k, valueOf(i+round)); err != nil {
				t.Fatal(err)
			}
		}
	}
	st, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	if n := st.Size() / recordSize; n > 1+100+1024+1 {
		t.Errorf("%d records for 100 files", n)
	}
	c = open(t, p)
	k := keyOf(3, 1)
	if _, ok := c.Get(k); ok || c.Len() != 100 {
		t.Errorf("an old state is still known, or %d files", c.Len())
	}
	if k.Mtime += 39; true {
		if v, ok := c.Get(k); !ok || v != valueOf(42) {
			t.Errorf("the newest state: %v %v", v, ok)
		}
	}
}

func TestDamage(t *testing.T) {
	p := filepath.Join(t.TempDir(), "c")
	fill(t, open(t, p), 100)
	whole, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]struct {
		damage func([]byte) []byte
		want   int
	}{
		"torn tail":      {func(b []byte) []byte { return b[:len(b)-5] }, 99},
		"a bit":          {func(b []byte) []byte { b[recordSize*10+60] ^= 4; return b }, 99},
		"empty":          {func(b []byte) []byte { return nil }, 0},
		"foreign":        {func(b []byte) []byte { return []byte("SQLite format 3") }, 0},
		"half a header":  {func(b []byte) []byte { return b[:recordSize/2] }, 0},
		"a hole of nuls": {func(b []byte) []byte { clear(b[recordSize*4 : recordSize*6]); return b }, 98},
	} {
		if err := os.WriteFile(p, k.damage(bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		c := open(t, p)
		if c.Len() != k.want {
			t.Errorf("%s: %d files, want %d", name, c.Len(), k.want)
		}
		// What is appended after damage is found again.
		if err := c.PutTrusted(keyOf(1000, 1), valueOf(1000)); err != nil {
			t.Fatal(err)
		}
		if c = open(t, p); c.Len() != k.want+1 {
			t.Errorf("%s: after a further put %d files, want %d", name, c.Len(), k.want+1)
		}
	}
}

// Processes and goroutines write and compact at the same time: nothing is lost.
func TestManyWriters(t *testing.T) {
	p := filepath.Join(t.TempDir(), "c")
	var wg sync.WaitGroup
	var pids []int
	for range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writerPath+"="+p)
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, cmd.Process.Pid)
		wg.Go(func() {
			if err := cmd.Wait(); err != nil {
				t.Errorf("writer: %v: %s", err, &out)
			}
		})
	}
	c := open(t, p)
	fill(t, c, 2000)
	wg.Wait()
	c = open(t, p)
	if c.Len() != 8000 {
		t.Errorf("%d files, want 8000", c.Len())
	}
	for _, dev := range append(pids, 1) {
		for i := range 2000 {
			if v, ok := c.Get(keyOf(i, dev)); !ok || v != valueOf(i) {
				t.Fatalf("writer %d: file %d is lost", dev, i)
			}
		}
	}
	if left, _ := filepath.Glob(p + ".new-*"); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestSum(t *testing.T) {
	dir := t.TempDir()
	c := open(t, filepath.Join(dir, "c"))
	data := make([]byte, 3*manifest.ChunkSize+5)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	p := filepath.Join(dir, "f")
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	h := manifest.NewHasher()
	_, _ = h.Write(data)
	d, _, list := h.Sum()
	want := Value{Digest: d, Chunks: manifest.Sum(list.Encode())}
	sum := func() Value {
		t.Helper()
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		v, k, err := c.Sum(context.Background(), f)
		if err != nil {
			t.Fatal(err)
		}
		if k.Size != int64(len(data)) {
			t.Errorf("size %d", k.Size)
		}
		return v
	}
	if v := sum(); v != want {
		t.Errorf("%v, want %v", v, want)
	}
	time.Sleep(2 * Window) // no event tells that the file's ctime is old enough
	if sum(); c.Len() != 1 {
		t.Error("an entry that is not racy was not recorded")
	}
	if v := sum(); v != want {
		t.Errorf("from the cache: %v", v)
	}
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if v, _, err := open(t, filepath.Join(dir, "c2")).Digest(context.Background(), f); err != nil || v != (Value{Digest: d}) {
		t.Errorf("digest alone: %v, %v", v, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := open(t, filepath.Join(dir, "c3")).Sum(ctx, f); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestRacy(t *testing.T) {
	now := time.Now()
	at := func(m, c time.Duration) Key {
		return Key{Mtime: now.Add(m).UnixNano(), Ctime: now.Add(c).UnixNano()}
	}
	c := open(t, filepath.Join(t.TempDir(), "c"))
	for _, k := range []struct {
		key  Key
		want bool
	}{
		{at(-time.Hour, -time.Hour), false},
		{at(-time.Hour, -time.Millisecond), true},
		{at(-time.Millisecond, -time.Hour), true},
		{at(time.Hour, -time.Hour), false}, // anyone can set mtime
		{at(-time.Hour, time.Hour), true},  // the clock was set back
		{at(-Window-time.Millisecond, -Window-time.Millisecond), false},
	} {
		if got := k.key.Racy(now); got != k.want {
			t.Errorf("mtime %v, ctime %v: %v", time.Unix(0, k.key.Mtime).Sub(now), time.Unix(0, k.key.Ctime).Sub(now), got)
		}
		if put, err := c.Put(k.key, valueOf(1), now); err != nil || put == k.want {
			t.Errorf("put of a racy entry (%v): %v, %v", k.want, put, err)
		}
		if _, ok := c.Get(k.key); ok == k.want {
			t.Errorf("a racy entry (%v) is known: %v", k.want, ok)
		}
	}
}

func FuzzLoad(f *testing.F) {
	a, b := encodeRecord(keyOf(1, 1), valueOf(1)), encodeRecord(keyOf(2, 1), valueOf(2))
	f.Add(append(a[:], b[:]...))
	f.Add(append(append(a[:], a[:]...), "torn"...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		var want table
		want.resize(0)
		stale := 0
		for i := 0; i+recordSize <= len(in); i += recordSize {
			if r := in[i : i+recordSize]; !intact(r) || want.set(r) {
				stale++
			}
		}
		var got table
		if s := got.load(bytes.Clone(in)); s != stale || got.n != want.n || got.n+s != len(in)/recordSize {
			t.Fatalf("%d files and %d stale, want %d and %d", got.n, s, want.n, stale)
		}
		for i := range want.n {
			k, v := decodeRecord(want.records[i*recordSize:])
			if g, ok := got.get(k); !ok || g != v {
				t.Fatalf("%v is lost", k)
			}
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	p := filepath.Join(b.TempDir(), "c")
	fill(b, open(b, p), 100_000)
	st, err := os.Stat(p)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("cache", func(b *testing.B) {
		b.SetBytes(st.Size())
		for b.Loop() {
			c, err := Open(p)
			if err != nil {
				b.Fatal(err)
			}
			_ = c.Close()
		}
	})
	b.Run("plain", func(b *testing.B) { // reading the file is the least that must be done
		b.SetBytes(st.Size())
		for b.Loop() {
			if _, err := os.ReadFile(p); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	c := open(b, filepath.Join(b.TempDir(), "c"))
	fill(b, c, 100_000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, ok := c.Get(keyOf(i*7919%100_000, 1)); !ok {
			b.Fatal("lost")
		}
	}
}

func BenchmarkPut(b *testing.B) {
	c := open(b, filepath.Join(b.TempDir(), "c"))
	for i := 0; b.Loop(); i++ {
		if err := c.PutTrusted(keyOf(i, 1), Value{}); err != nil {
			b.Fatal(err)
		}
	}
}

// A cache that is idle writes down what it is told, and knows what anybody wrote for as
// long as it is used.
func TestIdle(t *testing.T) {
	p := filepath.Join(t.TempDir(), "cache")
	fill(t, open(t, p), 100)
	c, err := OpenIdle(p)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for i := 50; i < 150; i++ { // the first half of these again
		if err := c.PutTrusted(keyOf(i, 1), valueOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := c.Get(keyOf(3, 1)); ok || c.Len() != 0 {
		t.Errorf("an idle cache has %d entries", c.Len())
	}
	for range 2 {
		one, err := c.Use()
		if err != nil {
			t.Fatal(err)
		}
		two, err := c.Use()
		if err != nil {
			t.Fatal(err)
		}
		one()
		if v, ok := c.Get(keyOf(120, 1)); !ok || v != valueOf(120) || c.Len() != 150 {
			t.Errorf("%v, %v of %d", v, ok, c.Len())
		}
		two()
		if c.Len() != 0 {
			t.Errorf("%d entries stay", c.Len())
		}
	}
	if err := c.Compact(); err != nil {
		t.Fatal(err)
	}
	if n := open(t, p).Len(); n != 150 {
		t.Errorf("%d entries are in the file", n)
	}
}
