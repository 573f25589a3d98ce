package store

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"srvfs/manifest"
)

func TestSnapshots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := openStore(t, Options{Dir: dir})
	o := newOrigin()
	snap := o.tree(map[string][]byte{"/f": []byte("x")})
	for _, seq := range []uint64{9, 10, 2} {
		snap.Sequence = seq
		if err := s.SaveSnapshot("web1:7411", snap); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SaveSnapshot("[::1]:7411", snap); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Options{Dir: dir})
	got, err := s.LoadSnapshot("web1:7411", "web")
	if err != nil || got.Sequence != 10 {
		t.Errorf("newest: %+v, %v", got, err)
	}
	if got, err = s.LoadSnapshotAt("web1:7411", "web", 9); err != nil || got.Sequence != 9 {
		t.Errorf("at 9: %+v, %v", got, err)
	}
	refs, err := s.Snapshots()
	if err != nil || len(refs) != 4 || refs[0].Source != "[::1]:7411" || refs[3].Sequence != 10 {
		t.Errorf("%+v, %v", refs, err)
	}
	// The newest is damaged: the one before it serves.
	matches, _ := filepath.Glob(filepath.Join(dir, "snapshots", "web1*", "web", "10-*"))
	if len(matches) != 1 {
		t.Fatalf("%v", matches)
	}
	if err := os.Truncate(matches[0], 40); err != nil {
		t.Fatal(err)
	}
	if got, err = s.LoadSnapshot("web1:7411", "web"); err != nil || got.Sequence != 9 {
		t.Errorf("after damage: %+v, %v", got, err)
	}
	if err := s.RemoveSnapshots("web1:7411", "web"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LoadSnapshot("web1:7411", "web"); !errors.Is(err, manifest.ErrNotFound) {
		t.Errorf("removed: %v", err)
	}
	for _, bad := range [][2]string{{"", "web"}, {"..", "web"}, {".", "web"}, {"a", "../x"}, {"a", ""}, {strings.Repeat("x", 300), "web"}} {
		if _, err := s.LoadSnapshot(bad[0], bad[1]); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := s.LoadSnapshot("../../etc", "web"); !errors.Is(err, manifest.ErrInvalid) && !errors.Is(err, manifest.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// A store serves what it has to others, and only that.
func TestStoreIsAnOrigin(t *testing.T) {
	o := newOrigin()
	snap, files := bigTree(o, 100)
	first := openStore(t, Options{})
	if err := first.Reader(Source{Name: "origin", Origin: o}).Prefetch(ctxOf(t), snap, nil); err != nil {
		t.Fatal(err)
	}
	second := openStore(t, Options{})
	r := second.Reader(Source{Name: "first", Origin: first})
	if err := r.Prefetch(ctxOf(t), snap, nil); err != nil {
		t.Fatal(err)
	}
	for p, b := range files {
		mustRead(t, second.Reader(), newOrigin().file(p, b), b)
	}
	c := newOrigin().file("/var/big0", files["/var/big0"])
	body, err := first.Fetch(ctxOf(t), c.Digest, 1000, 50)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(body)
	if err != nil || string(got) != string(files["/var/big0"][1000:1050]) {
		t.Errorf("range: %d bytes, %v", len(got), err)
	}
	_ = body.Close()
	if _, err := first.Fetch(ctxOf(t), manifest.Sum([]byte("no such")), 0, 5); !errors.Is(err, manifest.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	for _, g := range [][2]int64{{-1, 5}, {0, c.Size + 1}, {c.Size, 1}, {1 << 62, 1 << 62}} {
		if _, err := first.Fetch(ctxOf(t), c.Digest, g[0], g[1]); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("range %v: %v", g, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	if body, err = first.Fetch(ctx, c.Digest, 0, c.Size); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(body); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	_ = body.Close()
}
