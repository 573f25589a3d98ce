package archive

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"srvfs/manifest"
	"srvfs/manifest/origintest"
)

// Folder and file are origins like any other.
func TestArchiveConforms(t *testing.T) {
	dir := contentsDir(t)
	for _, name := range []string{"layout", "file.tar"} {
		t.Run(name, func(t *testing.T) {
			dest := filepath.Join(t.TempDir(), name)
			exportDir(t, dest, dir, 1, Options{})
			origintest.Run(t, origintest.World{Origin: open(t, dest, OpenOptions{}), Has: origintest.Contents()})
		})
	}
}

// Each export adds, and each snapshot can be had as it was.
func TestExportsAdd(t *testing.T) {
	for _, name := range []string{"layout", "file.tar"} {
		t.Run(name, func(t *testing.T) {
			dest, dir := filepath.Join(t.TempDir(), name), everything(t)
			first := exportDir(t, dest, dir, 1, Options{})
			one, _ := scan(t, dir, 1)
			if first.Layers != 1 || first.Unchanged || first.Added == 0 {
				t.Errorf("first export: %+v", first)
			}
			if again := exportDir(t, dest, dir, 2, Options{}); !again.Unchanged || again.Sequence != 1 {
				t.Errorf("export of the same: %+v", again)
			}
			layers := layerSums(t, dest)
			edit(t, dir)
			second := exportDir(t, dest, dir, 3, Options{})
			two, _ := scan(t, dir, 3)
			if second.Layers != 2 || second.Members == 0 {
				t.Errorf("second export: %+v", second)
			}
			for d := range layers {
				if _, ok := layerSums(t, dest)[d]; !ok {
					t.Errorf("layer %v is there no more", d)
				}
			}
			a := open(t, dest, OpenOptions{})
			if got := a.Snapshots(); len(got) != 2 || got[0].Sequence != 3 || got[1].Sequence != 1 {
				t.Errorf("snapshots: %+v", got)
			}
			if checkout(t, a, manifest.Ref{}) != two.Root.Digest || checkout(t, a, manifest.Ref{Service: "web", Sequence: 1}) != one.Root.Digest {
				t.Error("the trees are not what they were")
			}
			if _, err := a.Snapshot(t.Context(), manifest.Ref{Sequence: 2}); !errors.Is(err, manifest.ErrNotFound) {
				t.Errorf("snapshot 2: %v", err)
			}
			compact := exportDir(t, dest, dir, 4, Options{Compact: true})
			if compact.Layers != 1 || compact.Unchanged {
				t.Errorf("compact: %+v", compact)
			}
			a = open(t, dest, OpenOptions{})
			if len(a.Snapshots()) != 1 || checkout(t, a, manifest.Ref{}) != two.Root.Digest {
				t.Errorf("compact: %+v", a.Snapshots())
			}
		})
	}
}

// layerSums returns the layers of an archive by digest, as far as their bytes are so.
func layerSums(t *testing.T, dest string) map[manifest.Digest]bool {
	t.Helper()
	a := open(t, dest, OpenOptions{})
	image, err := a.newest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sums := map[manifest.Digest]bool{}
	for _, l := range image.manifest.Layers {
		b, err := a.shelf.read(t.Context(), l.Digest, 0, l.Size)
		if err != nil || verify(b, l.Digest, "layer") != nil {
			t.Errorf("layer %v: %v", l.Digest, err)
		}
		sums[l.Digest] = true
	}
	return sums
}

// One snapshot has one archive, byte for byte.
func TestDeterministic(t *testing.T) {
	dir := everything(t)
	var sums [2][32]byte
	for i := range sums {
		dest := filepath.Join(t.TempDir(), "a.tar")
		exportDir(t, dest, dir, 1, Options{})
		b, err := os.ReadFile(dest)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = sha256.Sum256(b)
	}
	if sums[0] != sums[1] {
		t.Error("two exports of one snapshot differ")
	}
}

// What is not an archive of ours is refused with a reason, and left alone.
func TestForeign(t *testing.T) {
	dir := t.TempDir()
	p := func(name string) string { return filepath.Join(dir, name) }
	write(t, p("full/file"), "somebody's")
	write(t, p("image/index.json"), `{"schemaVersion":2,"manifests":[]}`)
	write(t, p("text.tar"), strings.Repeat("no tar file\n", 1000))
	write(t, p("short.tar"), "x")
	for ref, want := range map[string]struct {
		kind error
		text string
	}{
		"missing.tar": {manifest.ErrNotFound, ""},
		"missing":     {manifest.ErrNotFound, ""},
		"full":        {manifest.ErrInvalid, "no index.json"},
		"image":       {manifest.ErrInvalid, "no OCI image is in it"},
		"text.tar":    {manifest.ErrInvalid, "not a tar file"},
		"short.tar":   {manifest.ErrInvalid, "no archive"},
	} {
		if _, err := Open(t.Context(), p(ref), OpenOptions{}); !errors.Is(err, want.kind) || !strings.Contains(err.Error(), want.text) {
			t.Errorf("open %s: %v", ref, err)
		}
	}
	tree := contentsDir(t)
	s, src := scan(t, tree, 1)
	for _, dest := range []string{p("full"), p("image"), p("text.tar"), "dir:" + p("x"), "ftp://host/x.tar", "http://host/x.tar", ""} {
		if _, err := Write(t.Context(), dest, s, src, Options{}); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("export to %q: %v", dest, err)
		}
	}
	if list, err := os.ReadDir(p("full")); err != nil || len(list) != 1 {
		t.Errorf("the folder of somebody else: %v, %v", list, err)
	}
	exportDir(t, p("web"), tree, 1, Options{})
	s.Service = "mail"
	if _, err := Write(t.Context(), p("web"), s, src, Options{}); !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), "web") {
		t.Errorf("export of another service: %v", err)
	}
}

// A large range comes whole, and damage shows as such.
func TestDamage(t *testing.T) {
	dest, dir := filepath.Join(t.TempDir(), "layout"), contentsDir(t)
	exportDir(t, dest, dir, 1, Options{})
	blobs, err := filepath.Glob(filepath.Join(dest, "blobs/sha256/*"))
	if err != nil || len(blobs) < 6 {
		t.Fatal(blobs, err)
	}
	for _, name := range append(blobs, filepath.Join(dest, "index.json")) {
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range [][]byte{nil, whole[:len(whole)/2], flip(whole, 0), flip(whole, len(whole)/2), flip(whole, len(whole)-1)} {
			must(t, os.WriteFile(name, bad, 0o644))
			a, err := Open(t.Context(), dest, OpenOptions{})
			if err == nil {
				var s *manifest.Snapshot
				if s, err = a.Snapshot(t.Context(), manifest.Ref{}); err == nil {
					err = verifyAll(t.Context(), a, s)
				}
				must(t, a.Close())
			}
			// An image's own configuration, and the end of a layer, are for others.
			if err != nil && !errors.Is(err, manifest.ErrCorrupt) && !errors.Is(err, manifest.ErrInvalid) {
				t.Errorf("%s damaged: %v", name, err)
			}
		}
		must(t, os.WriteFile(name, whole, 0o644))
	}
	a := open(t, dest, OpenOptions{})
	checkout(t, a, manifest.Ref{})
}

func flip(b []byte, i int) []byte {
	c := bytes.Clone(b)
	c[i] ^= 0x55
	return c
}

// An export whose source fails leaves the archive as it was.
func TestSourceFails(t *testing.T) {
	dest, dir := filepath.Join(t.TempDir(), "layout"), everything(t)
	exportDir(t, dest, dir, 1, Options{})
	before, err := os.ReadFile(filepath.Join(dest, "index.json"))
	must(t, err)
	edit(t, dir)
	s, src := scan(t, dir, 2)
	// Written to since.
	f, err := os.OpenFile(filepath.Join(dir, "etc/web/conf"), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("X"), 0)
	must(t, err, f.Close())
	if _, err := Write(t.Context(), dest, s, src, Options{}); !errors.Is(err, manifest.ErrCorrupt) || !strings.Contains(err.Error(), "/etc/web/conf") {
		t.Errorf("export of a file that has changed: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(dest, "index.json"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the archive has changed: %v", err)
	}
	checkout(t, open(t, dest, OpenOptions{}), manifest.Ref{})
}

var _ io.Closer = (*Archive)(nil)
