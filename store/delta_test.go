package store

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"testing"

	"srvfs/manifest"
)

// versions is a file that changes between two snapshots, in a store that has the
// first.
type versions struct {
	*memoryOrigin
	s        *Store
	r        *Reader
	old      manifest.Content
	snap     *manifest.Snapshot // the second
	now      manifest.Content
	data     []byte
	prepared int // bytes asked for before
}

func newVersions(t testing.TB, before, after []byte) *versions {
	v := &versions{memoryOrigin: newOrigin(), data: after}
	v.s = openStore(t, Options{})
	v.r = v.s.Reader(Source{Name: "origin", Origin: batchOrigin{v.memoryOrigin}})
	const path = "/var/lib/db/data"
	first := v.tree(map[string][]byte{path: before, "/etc/conf": []byte("conf")})
	v.old = v.file(path, before)
	if err := v.s.SaveSnapshot("source", first); err != nil {
		t.Fatal(err)
	}
	if err := v.r.Prefetch(ctxOf(t), first, nil); err != nil {
		t.Fatal(err)
	}
	v.snap = v.tree(map[string][]byte{path: after, "/etc/conf": []byte("conf")})
	v.snap.Sequence = 2
	v.now = v.file(path, after)
	if err := v.s.SaveSnapshot("source", v.snap); err != nil {
		t.Fatal(err)
	}
	v.prepared = v.bytes()
	return v
}

// bytes returns how many bytes of files were asked for.
func (v *versions) bytes() (n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for g, times := range v.asked {
		n += int(max(g.Len, 0)) * times
	}
	return n
}

func (v *versions) wants(t testing.TB, chunks int) {
	t.Helper()
	if got := v.bytes() - v.prepared; got != chunks*chunk {
		t.Errorf("%d bytes were fetched instead of %d chunks", got, chunks)
	}
}

// Of a large file that changed in one place, one chunk crosses the wire.
func TestDeltaFetchesWhatChanged(t *testing.T) {
	before := random(64<<20-17, 700)
	after := bytes.Clone(before)
	copy(after[33<<20:], random(4096, 701))
	v := newVersions(t, before, after)
	if err := v.r.Prefetch(ctxOf(t), v.snap, nil); err != nil {
		t.Fatal(err)
	}
	v.wants(t, 1)
	mustRead(t, v.s.Reader(), v.now, after)
	if st := v.s.Stats(); st.ReusedChunks != uint64(manifest.Chunks(v.now.Size))-1 || st.ReusedBytes != uint64(v.now.Size-chunk) {
		t.Errorf("%+v", st)
	}
	if tally, err := v.r.Tally(ctxOf(t), v.snap); err != nil || !tally.Detached {
		t.Errorf("%+v, %v", tally, err)
	}
}

// Reads on demand take what they need from the older version too, and only that.
func TestDeltaOnDemand(t *testing.T) {
	before := random(40*chunk, 702)
	after := bytes.Clone(before)
	after[5*chunk] ^= 1
	v := newVersions(t, before, after)
	f, err := v.r.Open(ctxOf(t), v.now)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, 1000)
	read := func(off int) {
		t.Helper()
		if _, err := f.ReadAt(ctxOf(t), buf, int64(off)); err != nil || !bytes.Equal(buf, after[off:off+len(buf)]) {
			t.Fatalf("read at %d: %v", off, err)
		}
	}
	read(20 * chunk)
	v.wants(t, 0)
	read(5*chunk - 500)
	v.wants(t, 1)
	// What is under way needs neither the older file's name nor its snapshot.
	if err := v.s.RemoveSnapshots("source", "web"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.s.Collect(ctxOf(t), v.snap); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(v.s.blobPath(v.old.Digest)); err == nil {
		t.Fatal("the older version is still there")
	}
	if err := v.r.Ensure(ctxOf(t), v.now); err != nil {
		t.Fatal(err)
	}
	v.wants(t, 1)
	mustRead(t, v.s.Reader(), v.now, after)
}

// Chunks are found wherever they are in the older version; one that is only
// partly here helps as far as it goes.
func TestDeltaMovedAndPartial(t *testing.T) {
	before := random(12*chunk, 703)
	v := newVersions(t, before, slices.Concat(random(chunk, 704), before))
	if err := v.r.Ensure(ctxOf(t), v.now); err != nil {
		t.Fatal(err)
	}
	v.wants(t, 1)
	mustRead(t, v.s.Reader(), v.now, v.data)

	// The third version shares chunks with a second that was read in one place.
	o := v.memoryOrigin
	second := slices.Concat(random(6*chunk, 705), random(6*chunk, 706))
	third := slices.Concat(second[:11*chunk], random(chunk, 707))
	c2 := o.file("/var/lib/db/data", second)
	s2 := o.tree(map[string][]byte{"/var/lib/db/data": second})
	s2.Sequence = 3
	s3 := o.tree(map[string][]byte{"/var/lib/db/data": third})
	s3.Sequence = 4
	for _, s := range []*manifest.Snapshot{s2, s3} {
		if err := v.s.SaveSnapshot("source", s); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.r.Meta(ctxOf(t), []manifest.Digest{s2.Root.Digest}); err != nil {
		t.Fatal(err)
	}
	if err := walk(ctxOf(t), s2, v.r.Meta, visitor{file: func(string, *manifest.Entry) error { return nil }}); err != nil {
		t.Fatal(err)
	}
	f, err := v.r.Open(ctxOf(t), c2)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2*chunk)
	if _, err := f.ReadAt(ctxOf(t), buf, 3*chunk); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	v.prepared = v.bytes()
	c3 := o.file("/var/lib/db/data", third)
	if err := v.r.Ensure(ctxOf(t), c3); err != nil {
		t.Fatal(err)
	}
	v.wants(t, 10)
	mustRead(t, v.s.Reader(), c3, third)
}

// An older version that is damaged, or gone, costs a fetch and nothing else.
func TestDeltaDamaged(t *testing.T) {
	before := random(20*chunk, 708)
	after := bytes.Clone(before)
	after[0] ^= 1
	for name, spoil := range map[string]struct {
		do     func(path string) error
		chunks int
	}{
		"bytes":     {func(p string) error { return damage(p, 7*chunk+5, 19*chunk) }, 3},
		"cut short": {func(p string) error { return os.Truncate(p, 10*chunk+1) }, 11},
		"gone":      {os.Remove, 20},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVersions(t, before, after)
			if err := spoil.do(v.s.blobPath(v.old.Digest)); err != nil {
				t.Fatal(err)
			}
			if err := v.r.Prefetch(ctxOf(t), v.snap, nil); err != nil {
				t.Fatal(err)
			}
			v.wants(t, spoil.chunks)
			mustRead(t, v.s.Reader(), v.now, after)
		})
	}
}

// damage changes a byte at each offset.
func damage(path string, offsets ...int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for _, off := range offsets {
		var b [1]byte
		if _, err := f.ReadAt(b[:], off); err != nil {
			return err
		}
		b[0] ^= 0xff
		if _, err := f.WriteAt(b[:], off); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkDelta brings a 64 MiB file of which every 16th chunk has changed; copy
// reads, hashes and writes the old one, which is the least that must be done.
func BenchmarkDelta(b *testing.B) {
	before := random(64<<20, 709)
	after := bytes.Clone(before)
	for i := 0; i < len(after); i += 16 * chunk {
		after[i] ^= 1
	}
	b.Run("store", func(b *testing.B) {
		b.SetBytes(int64(len(after)))
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			v := newVersions(b, before, after)
			b.StartTimer()
			if err := v.r.Ensure(b.Context(), v.now); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("copy", func(b *testing.B) {
		dir := b.TempDir()
		if err := os.WriteFile(dir+"/old", before, 0o600); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(before)))
		for i := 0; b.Loop(); i++ {
			data, err := os.ReadFile(dir + "/old")
			if err == nil {
				manifest.Sum(data)
				err = os.WriteFile(fmt.Sprint(dir, "/", i), data, 0o600)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}
