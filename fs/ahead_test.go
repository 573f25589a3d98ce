package fs_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"srvfs/fs"
	"srvfs/fs/fstest"
)

// distant mounts a tree of small files in directories of directories, at a
// distance of rtt.
func distant(t *testing.T, layout fs.Layout, rtt time.Duration) (w *world, wire *fstest.Wire, root string) {
	w = newWorld(t, func(dir string) {
		for i := range aheadDirs {
			for k := range aheadEach {
				write(t, fmt.Sprintf("%s/d%02d/e%d/f%02d", dir, i/8, i%8, k), fmt.Sprint("content ", i, k))
			}
		}
	})
	wire = &fstest.Wire{Source: w.source, RoundTrip: rtt}
	w.mount(fs.Options{Layout: layout, Content: wire})
	root = w.mnt
	if layout == fs.Layers {
		root = w.overlay()
	}
	return w, wire, root
}

const aheadDirs, aheadEach = 64, 30 // and as many files in each

var bothLayouts = []fs.Layout{fs.Plain, fs.Layers}

// A program that reads a tree from one end to the other waits for a few round
// trips, not for one at each directory and file.
func TestReadingOnIsAhead(t *testing.T) {
	const rtt = 10 * time.Millisecond
	for _, layout := range bothLayouts {
		t.Run(layout.String(), func(t *testing.T) {
			w, wire, root := distant(t, layout, rtt)
			start := time.Now()
			out, err := shell(t, "tar cf - -C %s . | tar tf - | wc -l", root)
			took := time.Since(start)
			if want := fmt.Sprint(1 + 8 + aheadDirs*(1+aheadEach)); err != nil || strings.TrimSpace(out) != want {
				t.Fatalf("%s names, %v; want %s", out, err, want)
			}
			const files, dirs = aheadDirs * aheadEach, aheadDirs + 9
			t.Logf("%v for %d files in %d directories: %d requests waited for, %d ahead for %d files and %d pages; %+v",
				took, files, dirs, wire.Asked.Load(), wire.Ahead.Load(), wire.AheadFiles.Load(), wire.AheadPages.Load(), w.view.Stats())
			if n := wire.Asked.Load(); n > 30 {
				t.Errorf("waited for %d requests", n)
			}
			if took > files*rtt/2 {
				t.Errorf("took %v: half a round trip for each file", took)
			}
		})
	}
}

func TestWalkIsAhead(t *testing.T) {
	const rtt = 10 * time.Millisecond
	for _, layout := range bothLayouts {
		t.Run(layout.String(), func(t *testing.T) {
			_, wire, root := distant(t, layout, rtt)
			if out, err := shell(t, "find %s -type f -printf '%%s\\n' | wc -l", root); err != nil || strings.TrimSpace(out) != fmt.Sprint(aheadDirs*aheadEach) {
				t.Fatal(out, err)
			}
			t.Logf("%d requests waited for, %d ahead for %d pages", wire.Asked.Load(), wire.Ahead.Load(), wire.AheadPages.Load())
			if n := wire.Asked.Load(); n > 8 {
				t.Errorf("waited for %d requests for %d directories", n, aheadDirs+9)
			}
			if n := wire.AheadFiles.Load(); n > 0 {
				t.Errorf("asked for %d files of which none was opened", n)
			}
		})
	}
}

// Who looks at one path, or reads here and there, has asked for nothing else.
func TestNothingIsAheadOfOneLookup(t *testing.T) {
	for _, layout := range bothLayouts {
		t.Run(layout.String(), func(t *testing.T) {
			_, wire, root := distant(t, layout, 0)
			for _, f := range []string{"/d03/e4/f17", "/d03/e4/f29", "/d06/e1/f00"} {
				if _, err := os.ReadFile(root + f); err != nil {
					t.Error(err)
				}
			}
			if n := wire.Ahead.Load(); n != 0 {
				t.Errorf("%d requests ahead", n)
			}
			for range 200 {
				i := rand.IntN(aheadDirs)
				if _, err := os.ReadFile(fmt.Sprintf("%s/d%02d/e%d/f%02d", root, i/8, i%8, rand.IntN(aheadEach))); err != nil {
					t.Error(err)
				}
			}
			t.Logf("%d files ahead of 200 at random", wire.AheadFiles.Load())
			if n := wire.AheadFiles.Load(); n > 100 {
				t.Errorf("%d files asked for ahead of 200 read at random", n)
			}
		})
	}
}

// A guess that was wrong stays small: the window grows by use only.
func TestWindowGrowsWithUse(t *testing.T) {
	_, wire, root := distant(t, fs.Plain, 0)
	all, err := filepath.Glob(root + "/d01/e?/f*") // it lists
	must(t, err)
	for i, f := range all {
		_, err := os.ReadFile(f)
		must(t, err)
		if n := wire.AheadFiles.Load(); n > int64(16*(i+1)) {
			t.Fatalf("%d files were asked for when %d had been read", n, i+1)
		}
	}
	if n := wire.Asked.Load(); n > 20 {
		t.Errorf("waited for %d requests", n)
	}
}
