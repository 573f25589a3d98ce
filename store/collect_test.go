package store

import (
	"errors"
	"os"
	"testing"
	"time"

	"srvfs/manifest"
)

// Collect keeps what a stored snapshot or one that is named needs, and nothing
// else.
func TestCollect(t *testing.T) {
	o := newOrigin()
	dir := t.TempDir()
	s := openStore(t, Options{Dir: dir})
	r := s.Reader(Source{Name: "memory", Origin: o})
	shared, large := random(1000, 1), random(3<<20, 2)
	kept := o.tree(map[string][]byte{"/a": shared, "/b": random(2000, 3)})
	kept.Service = "kept"
	shown := o.tree(map[string][]byte{"/c": random(3000, 4), "/large": large})
	shown.Service = "shown"
	gone := o.tree(map[string][]byte{"/a": shared, "/d": random(4000, 5), "/big": random(3<<20, 6)})
	gone.Service = "gone"
	for _, snap := range []*manifest.Snapshot{kept, shown, gone} {
		if err := r.Prefetch(ctxOf(t), snap, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SaveSnapshot("source", kept); err != nil {
		t.Fatal(err)
	}
	count := func(folder string) int {
		list, err := os.ReadDir(dir + "/" + folder)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	blobs, pages := count("blobs"), count("meta")
	freed, err := s.Collect(ctxOf(t), shown)
	if err != nil {
		t.Fatal(err)
	}
	if freed < 3<<20 || count("blobs") != blobs-2 || count("meta") >= pages {
		t.Errorf("freed %d bytes; blobs %d of %d, pages %d of %d", freed, count("blobs"), blobs, count("meta"), pages)
	}
	for _, snap := range []*manifest.Snapshot{kept, shown} {
		tally, err := s.Reader().Tally(ctxOf(t), snap)
		if err != nil || !tally.Detached {
			t.Errorf("%s after Collect: %+v, %v", snap.Service, tally, err)
		}
	}
	if tally, err := s.Reader().Tally(ctxOf(t), gone); err != nil || tally.Detached {
		t.Errorf("the collected snapshot: %+v, %v", tally, err)
	}
	if _, err := s.LoadSnapshot("source", "gone"); !errors.Is(err, manifest.ErrNotFound) {
		t.Errorf("snapshot that was never stored: %v", err)
	}
}

// Of stored snapshots the last ones are kept, and those that are used.
func TestRetainSnapshots(t *testing.T) {
	o := newOrigin()
	s := openStore(t, Options{})
	now := time.Date(2026, 3, 20, 15, 0, 0, 0, time.Local)
	for _, service := range []string{"web", "mail"} {
		for i := range 2 * manifest.Kept {
			snap := o.tree(map[string][]byte{"/a": random(10, uint64(i))})
			snap.Service, snap.Sequence, snap.Created = service, uint64(i+1), now.Add(time.Duration(i-40)*24*time.Hour).UnixNano()
			if err := s.SaveSnapshot("source", snap); err != nil {
				t.Fatal(err)
			}
		}
	}
	used := func(r SnapshotRef) bool { return r.Service == "web" && r.Sequence == 3 }
	for range 2 {
		if err := s.RetainSnapshots(used); err != nil {
			t.Fatal(err)
		}
		count := map[string]int{}
		refs, err := s.Snapshots()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range refs {
			count[r.Service]++
			if r.Sequence <= manifest.Kept && !used(r) {
				t.Errorf("%s %d is kept", r.Service, r.Sequence)
			}
		}
		if count["web"] != manifest.Kept+1 || count["mail"] != manifest.Kept {
			t.Errorf("kept %v", count)
		}
	}
}
