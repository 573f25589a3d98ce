package store

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"srvfs/manifest"
)

// After whatever has changed from a snapshot that is here, what is different is all that
// was missing.
func TestPrefetchSince(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		o := newOrigin()
		_, files := bigTree(o, 40)
		s, err := Open(Options{Dir: t.TempDir() + fmt.Sprint("/", rapid.Uint64().Draw(rt, "store"))})
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
		before := o.tree(files)
		if err := r.Prefetch(ctxOf(t), before, nil); err != nil {
			rt.Fatal(err)
		}
		for round := range rapid.IntRange(1, 4).Draw(rt, "rounds") {
			seed := uint64(round+1) * 10_000
			for i := range rapid.IntRange(0, 12).Draw(rt, "edits") {
				names := slices.Sorted(maps.Keys(files))
				p := rapid.SampledFrom(names).Draw(rt, "at")
				size := rapid.SampledFrom([]int{0, 1, 300, chunk + 1, 3 * chunk}).Draw(rt, "size")
				switch rapid.SampledFrom([]string{"write", "new", "folder", "remove", "tree", "rename", "file to folder"}).Draw(rt, "edit") {
				case "write":
					files[p] = random(size, seed+uint64(i))
				case "new":
					files[path.Join(path.Dir(p), fmt.Sprintf("new-%d-%d", round, i))] = random(size, seed+uint64(i))
				case "folder":
					for k := range 3 {
						files[path.Join(path.Dir(p), fmt.Sprintf("folder-%d-%d/in/file-%d", round, i, k))] = random(size, seed+uint64(100*i+k))
					}
				case "remove":
					delete(files, p)
				case "tree":
					for _, q := range names {
						if strings.HasPrefix(q, path.Dir(p)+"/") && len(files) > 5 {
							delete(files, q)
						}
					}
				case "rename":
					files[p+".moved"] = files[p]
					delete(files, p)
				case "file to folder":
					files[p+"/was-a-file"] = files[p]
					delete(files, p)
				}
				if len(files) == 0 {
					files["/last"] = []byte("last")
				}
			}
			now := o.tree(files)
			if err := r.PrefetchSince(ctxOf(t), before, now, nil); err != nil {
				rt.Fatal(err)
			}
			if tally, err := r.Tally(ctxOf(t), now); err != nil || !tally.Detached {
				rt.Fatalf("round %d: %+v, %v", round, tally, err)
			}
			before = now
		}
		for g, n := range o.asked {
			if n != 1 {
				rt.Errorf("%v was asked for %d times", g, n)
			}
		}
	})
}

// brought opens a store and brings a snapshot of the files there.
func brought(t *testing.T, o *memoryOrigin, files map[string][]byte) (*Store, *Reader, *manifest.Snapshot) {
	t.Helper()
	s := openStore(t, Options{})
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	snap := o.tree(files)
	if err := r.Prefetch(ctxOf(t), snap, nil); err != nil {
		t.Fatal(err)
	}
	return s, r, snap
}

// What did not change is not looked at: it does not matter to the time, and it is not
// noticed that it is gone.
func TestPrefetchSinceLooksAtChangesAlone(t *testing.T) {
	o := newOrigin()
	_, files := bigTree(o, 2000)
	_, r, before := brought(t, o, files)
	files[name(7)] = []byte("changed")
	now := o.tree(files)
	var last Progress
	if err := r.PrefetchSince(ctxOf(t), before, now, func(p Progress) { last = p }); err != nil {
		t.Fatal(err)
	}
	want := Count{1, int64(len("changed"))}
	if last.Total != want || last.Done != want || last.Fetched != want {
		t.Errorf("progress %+v, want one file", last)
	}
}

// What is gone of the one before, and nobody has, is told from what is gone of the new one.
func TestPrefetchSinceWhatIsGone(t *testing.T) {
	o := newOrigin()
	_, files := bigTree(o, 20)
	s, r, before := brought(t, o, files)
	files[name(7)] = []byte("changed")
	now := o.tree(files)
	content := manifest.Sum(files[name(7)])
	gone := map[manifest.Digest]bool{content: true}
	o.fail = func(g manifest.Range) error {
		if gone[g.Digest] {
			return manifest.ErrStale
		}
		return nil
	}
	if err := r.PrefetchSince(ctxOf(t), before, now, nil); !errors.Is(err, manifest.ErrStale) || errors.Is(err, ErrNotCompared) {
		t.Errorf("a file is gone: %v", err)
	}
	gone = map[manifest.Digest]bool{before.Root.Digest: true}
	if err := os.Remove(s.metaPath(before.Root.Digest)); err != nil {
		t.Fatal(err)
	}
	if err := r.PrefetchSince(ctxOf(t), before, now, nil); !errors.Is(err, ErrNotCompared) {
		t.Errorf("the folder of the one before is gone: %v", err)
	}
	if err := r.Prefetch(ctxOf(t), now, nil); err != nil {
		t.Errorf("all of the new one: %v", err)
	}
}

// A source that makes a small message an endless tree is found out.
func TestPrefetchSinceIsBounded(t *testing.T) {
	o := newOrigin()
	_, r, before := brought(t, o, map[string][]byte{"/a": []byte("a")})
	now := o.tree(map[string][]byte{"/b": []byte("b")})
	digest := now.Root.Digest
	for range 40 { // each level twice in the one above: 2^40 files
		var err error
		digest, err = manifest.EncodeDirectory([]manifest.Entry{
			{Name: "a", Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: digest},
			{Name: "b", Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: digest},
		}, func(_ manifest.Digest, b []byte) error { o.put(slices.Clone(b)); return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	now.Root.Digest = digest
	if err := r.PrefetchSince(ctxOf(t), before, now, nil); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("an endless tree: %v", err)
	}
}
