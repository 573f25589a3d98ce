package store

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"srvfs/manifest"
)

// Whatever ranges are read, whatever sources fail, however often the store is
// reopened and whatever is damaged meanwhile: a read returns the right bytes or
// an error, and none when a source is there.
func TestRandomRanges(t *testing.T) {
	b := random(11*chunk+12345, 80)
	rapid.Check(t, func(t *rapid.T) {
		o := newOrigin()
		c := o.file("/f", b)
		tmp, err := os.MkdirTemp("", "srvfs-store-ranges-")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(tmp) }()
		var s *Store
		var f *File
		open := func() {
			if s, err = Open(Options{Dir: filepath.Join(tmp, "store")}); err != nil {
				t.Fatal(err)
			}
			if f, err = s.Reader(Source{Name: "origin", Origin: o}).Open(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		shut := func() {
			_ = f.Close()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		open()
		defer func() { shut() }()
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "kind") {
			case 0:
				shut()
				open()
			case 1:
				shut()
				for _, name := range []string{"partial/" + partialID(c).Hex(), "partial/" + partialID(c).Hex() + ".map", "blobs/" + c.Digest.Hex()} {
					damageFile(filepath.Join(tmp, "store", name), rapid.Int64Range(0, c.Size).Draw(t, "damage"))
				}
				open()
			case 2:
				o.fail = failAfter(rapid.IntRange(0, 1).Draw(t, "pass"))
				_, _ = f.ReadAt(t.Context(), make([]byte, chunk), rapid.Int64Range(0, c.Size-1).Draw(t, "off"))
				o.mu.Lock()
				o.fail = nil
				o.mu.Unlock()
				shut() // a source that failed rests for a second
				open()
			default:
				off := rapid.Int64Range(0, c.Size).Draw(t, "off")
				p := make([]byte, rapid.IntRange(0, 3*chunk).Draw(t, "len"))
				n, err := f.ReadAt(t.Context(), p, off)
				if err != nil && !errors.Is(err, io.EOF) {
					t.Fatalf("%d bytes at %d: %v", len(p), off, err)
				}
				if want := min(int64(len(p)), c.Size-off); int64(n) != want || !bytes.Equal(p[:n], b[off:off+want]) {
					t.Fatalf("%d bytes at %d: got %d", len(p), off, n)
				}
			}
		}
	})
}

// damageFile flips a bit, if the file is there.
func damageFile(p string, at int64) {
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return
	}
	at %= st.Size()
	var one [1]byte
	_, _ = f.ReadAt(one[:], at)
	one[0] ^= 1 << rand.IntN(8)
	_, _ = f.WriteAt(one[:], at)
}

func FuzzChunkMap(f *testing.F) {
	m := newChunkMap(10 * chunk)
	m.set(3, true)
	f.Add([]byte(m), int64(10*chunk))
	f.Add([]byte{}, int64(0))
	f.Add(bytes.Repeat([]byte{0xff}, 30), int64(1<<62))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		m, err := decodeChunkMap(b, size)
		if err != nil {
			if !errors.Is(err, manifest.ErrInvalid) {
				t.Fatalf("not ErrInvalid: %v", err)
			}
			return
		}
		again := newChunkMap(size)
		for i := range manifest.Chunks(size) {
			if m.has(i) {
				again.set(i, true)
			}
		}
		if !bytes.Equal(m, again) {
			t.Fatalf("a second encoding of one map: %x and %x", m, again)
		}
	})
}

func FuzzPins(f *testing.F) {
	d := manifest.Sum([]byte("a"))
	f.Add(append(encodePin(d, Linked), encodePin(d, Unpinned)...))
	f.Add(append(encodePin(d, Copied), "torn"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		kinds, n := decodePins(b)
		if n > len(b) || len(b)-n >= pinRecord || len(kinds) > n/pinRecord {
			t.Fatalf("%d pins in %d of %d bytes", len(kinds), n, len(b))
		}
		for d, k := range kinds {
			if k == Unpinned || k > Copied || !bytes.Contains(b, encodePin(d, k)) {
				t.Fatalf("%v is %v", d, k)
			}
		}
	})
}
