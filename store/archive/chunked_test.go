package archive

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"

	"srvfs/manifest"
)

// chunkedLayer exports a folder and returns its one layer, with the descriptor.
func chunkedLayer(t *testing.T, dir string) ([]byte, descriptor) {
	t.Helper()
	dest := filepath.Join(t.TempDir(), "layout")
	exportDir(t, dest, dir, 1, Options{})
	image, err := open(t, dest, OpenOptions{}).newest(t.Context())
	must(t, err)
	d := image.manifest.Layers[0]
	b, err := os.ReadFile(filepath.Join(dest, blobName(d.Digest)))
	must(t, err)
	return b, d
}

// Another reader of zstd:chunked finds all files by the table of contents.
func TestChunked(t *testing.T) {
	dir := everything(t)
	must(t, os.RemoveAll(filepath.Join(dir, "var/odd"))) // which JSON can't say
	b, d := chunkedLayer(t, dir)
	var at, length, raw, kind int64
	if _, err := fmt.Sscanf(d.Annotations[notePosition], "%d:%d:%d:%d", &at, &length, &raw, &kind); err != nil || manifest.Sum(b[at:at+length]).String() != d.Annotations[noteChecksum] {
		t.Errorf("annotations %v: %v", d.Annotations, err)
	}
	if table, err := decompressAny(b[at : at+length]); err != nil || int64(len(table)) != raw {
		t.Errorf("the table has %d bytes, not %d: %v", len(table), raw, err)
	}
	r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), estargz.WithDecompressors(new(zstdchunked.Decompressor)))
	must(t, err)
	s, src := scan(t, dir, 1)
	n := 0
	must(t, changes(t.Context(), nil, src, nil, s, func(c change) error {
		n++
		e, ok := r.Lookup(c.path[1:])
		if c.path == "/" {
			e, ok = r.Lookup("")
		}
		if !ok {
			t.Errorf("%s is not in the table", c.path)
			return nil
		}
		want := time.Unix(c.entry.Mtime.Sec, int64(c.entry.Mtime.Nsec))
		if when, err := time.Parse(time.RFC3339Nano, e.ModTime3339); err != nil || !when.Equal(want) || uint32(e.UID) != c.entry.UID || uint32(e.GID) != c.entry.GID || e.Mode != int64(c.entry.Mode) || len(e.Xattrs) != len(c.entry.Xattrs) {
			t.Errorf("%s: %+v, want %+v, %v", c.path, e, c.entry, err)
		}
		if c.entry.Type != manifest.File {
			return nil
		}
		f, err := r.OpenFile(c.path[1:])
		if err != nil {
			return err
		}
		body, err := io.ReadAll(f)
		if err != nil || manifest.Sum(body) != c.entry.Digest {
			t.Errorf("%s: %d bytes that are not its own, %v", c.path, len(body), err)
		}
		return nil
	}))
	if n < 30 {
		t.Errorf("only %d entries", n)
	}
}

// A layer with a name that JSON can't say has no table, and the same files.
func TestChunkedName(t *testing.T) {
	_, d := chunkedLayer(t, everything(t))
	if len(d.Annotations) != 0 {
		t.Errorf("annotations %v", d.Annotations)
	}
}

func decompressAny(b []byte) ([]byte, error) {
	d, err := decoder()
	if err != nil {
		return nil, err
	}
	return d.DecodeAll(b, nil)
}
