package archive

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"srvfs/manifest"
)

// damaged fails the test for an error of another kind than a decoder's.
func damaged(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, manifest.ErrCorrupt) && !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func someIndex(t testing.TB) (index []byte, head int64) {
	t.Helper()
	blobs := []blobRef{{manifest.Sum([]byte("layer")), 1 << 40, false}, {manifest.Sum([]byte("pack")), 5000, true}}
	places := map[manifest.Digest]place{}
	for i := range 3000 {
		d := manifest.Sum([]byte{byte(i), byte(i >> 8)})
		places[d] = place{blob: 0, size: int64(i + 1), off: int64(i) * 100, frames: []int64{int64(i % 100)}}
		if i%3 == 0 {
			places[d] = place{blob: 1, size: 10, off: int64(i), frames: []int64{1000}, raw: 4000, inner: int64(i)}
		}
	}
	places[manifest.Sum([]byte("large"))] = place{size: 3*frameSize + 1, off: 7, frames: []int64{1, 2, 3, 4}}
	index, head, err := encodeIndex(blobs, places)
	must(t, err)
	return index, head
}

// What was put into an index is found in it.
func TestIndex(t *testing.T) {
	b, head := someIndex(t)
	blobs, groups, err := decodeHead(b[:head], int64(len(b)))
	if err != nil || len(blobs) != 2 || len(groups) < 3 {
		t.Fatal(len(groups), err)
	}
	n := 0
	for _, g := range groups {
		raw, err := decompress(b[g.off:g.off+g.length], g.raw)
		must(t, err, verify(b[g.off:g.off+g.length], g.digest, "group"))
		all, err := decodeGroup(raw, blobs)
		must(t, err)
		if all[0].digest != g.first {
			t.Error("a group begins with another digest than its head says")
		}
		if p, ok := find(all, manifest.Sum([]byte("large"))); ok && !reflect.DeepEqual(p, place{size: 3*frameSize + 1, off: 7, frames: []int64{1, 2, 3, 4}}) {
			t.Errorf("%+v", p)
		}
		n += len(all)
	}
	if n != 3001 {
		t.Errorf("%d places of 3001", n)
	}
}

func FuzzIndex(f *testing.F) {
	b, head := someIndex(f)
	f.Add(b[:head], int64(len(b)))
	f.Add([]byte(indexMagic+"\x00\x00"), int64(16))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		blobs, groups, err := decodeHead(b, size)
		damaged(t, err)
		for i, g := range groups {
			if err == nil && (g.off < 0 || g.length < 0 || g.off+g.length > size || i > 0 && bytes.Compare(groups[i-1].first[:], g.first[:]) >= 0) {
				t.Errorf("group %d of %d in %d bytes: %+v", i, len(groups), size, g)
			}
		}
		_ = blobs
	})
}

func FuzzGroup(f *testing.F) {
	b, head := someIndex(f)
	blobs, groups, err := decodeHead(b[:head], int64(len(b)))
	must(f, err)
	for _, g := range groups {
		raw, err := decompress(b[g.off:g.off+g.length], g.raw)
		must(f, err)
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := decodeGroup(b, blobs)
		damaged(t, err)
		if err != nil {
			return
		}
		for _, l := range all {
			s := spot{l.place, blobs[l.blob]}
			s.frames(0, min(l.size, 1<<20), func(f frame, from, to int64) {
				if from < 0 || to > f.raw || from > to || f.off < 0 || f.length < 0 || f.off+f.length > s.in.size {
					t.Errorf("%+v: frame %+v from %d to %d", l, f, from, to)
				}
			})
		}
	})
}

func FuzzFrame(f *testing.F) {
	b, err := compress(nil, bytes.Repeat([]byte("frame "), 1000))
	must(f, err)
	f.Add(b, int64(6000))
	f.Add(skippable(b), int64(6000))
	f.Fuzz(func(t *testing.T, b []byte, raw int64) {
		out, err := decompress(b, raw)
		damaged(t, err)
		if err == nil && int64(len(out)) != raw {
			t.Errorf("%d bytes, want %d", len(out), raw)
		}
	})
}

// memory is a file in memory.
type memory []byte

func (m memory) size() int64  { return int64(len(m)) }
func (m memory) close() error { return nil }
func (m memory) read(_ context.Context, off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off+n > m.size() {
		return nil, manifest.ErrCorrupt
	}
	return m[off : off+n], nil
}

// A whole archive, of whatever bytes: tar file, index.json, manifests, configuration.
func FuzzArchive(f *testing.F) {
	dir, dest := f.TempDir(), filepath.Join(f.TempDir(), "a.tar")
	write(f, filepath.Join(dir, "file"), "content")
	exportDir(f, dest, dir, 1, Options{})
	b, err := os.ReadFile(dest)
	must(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := openTar(t.Context(), memory(b), "fuzz")
		damaged(t, err)
		if err != nil {
			return
		}
		a, err := openOn(t.Context(), "fuzz", file)
		if errors.Is(err, manifest.ErrNotFound) {
			t.Errorf("%v", err)
		}
		damaged(t, err)
		if err == nil {
			_, err = a.Snapshot(t.Context(), manifest.Ref{})
			damaged(t, err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":3},"layers":[],"subject":{"size":-1}}`), "100 sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "bytes 0-9/20")
	f.Fuzz(func(t *testing.T, b []byte, note, header string) {
		m, err := parseManifest(b)
		damaged(t, err)
		if err == nil && (m.Config.Size < 0 || m.Config.Digest.IsZero()) {
			t.Errorf("%+v", m)
		}
		n, _, err := parseHeadNote(note)
		damaged(t, err)
		if err == nil && (n <= 0 || n > maxHead) {
			t.Errorf("a head of %d bytes", n)
		}
		total, err := contentRange(header, 0, 10)
		damaged(t, err)
		if err == nil && total < 10 {
			t.Errorf("10 bytes of %d", total)
		}
	})
}
