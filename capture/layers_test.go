package capture

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"srvfs/manifest"
)

// Whatever changes from one snapshot to the next, each that is kept can be read as it
// was published, and what they take on the disk goes by what has changed.
func TestLayers(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	root := t.TempDir()
	for i := range 400 {
		write(t, fmt.Sprintf("%s/d%d/file%d", root, i%20, i), fmt.Sprint("content ", i), 0o644)
	}
	lib := must(OpenLibrary(t.TempDir()))(t)
	live := lib.Live()
	defer live.Close()
	published := map[uint64]*tree{}
	whole, most, bytes := 0, 0, int64(0)
	for round := range 60 {
		for range rng.IntN(6) {
			name := fmt.Sprintf("%s/d%d/file%d", root, rng.IntN(20), rng.IntN(500))
			switch rng.IntN(4) {
			case 0:
				_ = os.Remove(name)
			case 1:
				check(t, os.RemoveAll(filepath.Dir(name)))
				write(t, name, "alone", 0o600)
			default:
				write(t, name, fmt.Sprint("round ", round, rng.IntN(5)), 0o644)
			}
		}
		snap, tr := publish(t, lib, "web", root)
		published[snap.Sequence] = tr
		all := must(lib.all())(t)
		if len(all) > manifest.Kept {
			t.Fatalf("%d snapshots are kept", len(all))
		}
		bytes = 0
		for _, p := range all {
			x := must(lib.layers(p))(t)
			most = max(most, len(x.layers))
			if p.Sequence == snap.Sequence && len(x.layers) == 1 {
				whole++
			}
			if p.Sequence != snap.Sequence && rng.IntN(5) > 0 {
				continue
			}
			var got, want []Entry
			for e, err := range x.entries() {
				check(t, err)
				e.racy = false // what was sure once is sure for ever
				got = append(got, e)
			}
			for _, n := range published[p.Sequence].nodes {
				if n.path != "/" {
					e := n.listed()
					e.racy = false
					want = append(want, e)
				}
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("snapshot %d reads otherwise than it was published", p.Sequence)
			}
			for range 20 {
				w := want[rng.IntN(len(want))]
				e := must(x.find(w.Path))(t)
				if e != nil {
					e.racy = false
				}
				if e == nil || !reflect.DeepEqual(*e, w) {
					t.Fatalf("%s is found as %+v, want %+v", w.Path, e, w)
				}
				if e := must(x.find(w.Path + "-"))(t); e != nil {
					t.Fatalf("%s- is found as %+v", w.Path, e)
				}
				i := slices.IndexFunc(want, func(e Entry) bool { return strings.HasPrefix(e.Path, w.Path+"/") })
				for e, err := range x.inside(w.Path) {
					check(t, err)
					e.racy = false
					if !reflect.DeepEqual(e, want[i]) {
						t.Fatalf("in %s: %+v, want %+v", w.Path, e, want[i])
					}
					i++
				}
				if i >= 0 && i < len(want) && strings.HasPrefix(want[i].Path, w.Path+"/") {
					t.Fatalf("in %s: %s is missing", w.Path, want[i].Path)
				}
			}
			// Its pages are all there.
			for d, b := range published[p.Sequence].meta {
				if got := must(fetch(live, t, d, 0, -1))(t); string(got) != string(b) {
					t.Fatalf("page %v of snapshot %d", d, p.Sequence)
				}
			}
		}
		for _, n := range tr.nodes {
			if n.entry.Type == manifest.File && n.entry.Size > 0 && rng.IntN(10) == 0 {
				if got := must(fetch(live, t, n.entry.Digest, 0, -1))(t); string(got) != string(must(os.ReadFile(root+n.path))(t)) {
					t.Fatalf("%s: %q", n.path, got)
				}
			}
		}
		check(t, filepath.WalkDir(lib.Dir()+"/snapshots", func(_ string, e os.DirEntry, err error) error {
			if err == nil && e.Name() == "index" {
				info := must(e.Info())(t)
				bytes += info.Size()
			}
			return err
		}))
	}
	full := int64(len(must(published[60].index(root))(t)))
	t.Logf("%d of 60 snapshots were whole, at most %d layers; the indices of those kept take %.1f times one", whole, most, float64(bytes)/float64(full))
	if whole > 30 || most > 10 || bytes > 8*full {
		t.Errorf("%d of 60 snapshots were whole, at most %d layers, %d bytes for %d", whole, most, bytes, full)
	}
}

// What no kept snapshot has is not served, although a layer that is still needed names it.
func TestLayersForget(t *testing.T) {
	root := t.TempDir()
	for i := range 100 {
		write(t, fmt.Sprintf("%s/file%d", root, i), fmt.Sprint("content ", i), 0o644)
	}
	lib := must(OpenLibrary(t.TempDir()))(t)
	live := lib.Live()
	defer live.Close()
	publish(t, lib, "web", root)
	secret := manifest.Sum([]byte("content 7"))
	must(fetch(live, t, secret, 0, -1))(t)
	aside := t.TempDir() + "/file7"
	check(t, os.Rename(root+"/file7", aside))
	for i := range manifest.Kept {
		write(t, root+"/count", fmt.Sprint(i), 0o644)
		publish(t, lib, "web", root)
	}
	check(t, os.Rename(aside, root+"/file7")) // it is there, and nobody's
	if got, err := fetch(live, t, secret, 0, -1); err == nil {
		t.Errorf("it served %q", got)
	} else {
		wantErr(t, err, manifest.ErrNotFound)
	}
	if names := must(os.ReadDir(lib.Dir() + "/snapshots/web"))(t); len(names) != manifest.Kept+1 {
		t.Errorf("%d folders, want %d and the one that all lie on", len(names), manifest.Kept)
	}
}

// A base that can't be read loses nothing: the next snapshot is whole, and what might
// be needed stays.
func TestLayersOnADamagedDisk(t *testing.T) {
	root := t.TempDir()
	for i := range 50 {
		write(t, fmt.Sprintf("%s/file%d", root, i), fmt.Sprint("content ", i), 0o644)
	}
	lib := must(OpenLibrary(t.TempDir()))(t)
	for i := range 3 {
		write(t, root+"/count", fmt.Sprint(i), 0o644)
		publish(t, lib, "web", root)
	}
	check(t, os.WriteFile(lib.Dir()+"/snapshots/web/1/index", []byte(deltaMagic2), 0o600))
	_, err := lib.Why(manifest.Ref{Service: "web"}, "/file1")
	wantErr(t, err, manifest.ErrInvalid, "capture the service again")
	publish(t, lib, "web", root)
	must(lib.Why(manifest.Ref{Service: "web"}, "/file1"))(t)
	if names := must(os.ReadDir(lib.Dir() + "/snapshots/web"))(t); len(names) != 4 {
		t.Errorf("%d folders", len(names))
	}
}

func TestRetain(t *testing.T) {
	now := time.Date(2026, 3, 20, 15, 0, 0, 0, time.Local)
	var all []Published
	for i := range 40 { // one every six hours, the latest first
		all = append(all, Published{Service: "web", Sequence: uint64(40 - i), Created: now.Add(-time.Duration(i) * 6 * time.Hour).UnixNano()})
	}
	for i := range 600 { // one every ten seconds
		all = append(all, Published{Service: "quick", Sequence: uint64(600 - i), Created: now.Add(-time.Duration(i) * 10 * time.Second).UnixNano()})
	}
	all = append(all, Published{Service: "zone", Sequence: 1})
	var got []string
	for _, p := range retain(all) {
		got = append(got, fmt.Sprint(p.Service, p.Sequence))
	}
	// Ten, which reach back to the 18th; then the last of the 17th to the 14th.
	want := strings.Fields("web40 web39 web38 web37 web36 web35 web34 web33 web32 web31 web29 web25 web21 web17 quick600 quick599 quick598 quick597 quick596 quick595 quick594 quick593 quick592 quick591 quick239 zone1")
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// A clock that was a year ahead for a while, and one that was set back, cost one
	// day each.
	for _, jump := range []int{1, -1} {
		jumped := append([]Published{{Service: "web", Sequence: 41, Created: now.AddDate(jump, 0, 0).UnixNano()}}, all...)
		if n := len(retain(jumped)); n != len(want)-1 {
			t.Errorf("%d are kept after a jump of %d year, %d before", n, jump, len(want))
		}
	}
}
