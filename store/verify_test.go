package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"srvfs/manifest"
)

// A verified is a world whose snapshot is detached: files of the host, small ones and
// large ones from an origin.
type verified struct {
	*testing.T
	origin *memoryOrigin
	store  *Store
	snap   *manifest.Snapshot
	host   string
	files  map[string][]byte
}

func newVerified(t *testing.T) *verified {
	t.Helper()
	v := &verified{T: t, origin: newOrigin(), host: t.TempDir()}
	v.files = map[string][]byte{
		"/usr/lib/linked": random(300_000, 1), "/etc/copied": random(5000, 2), "/srv/small": random(4000, 3),
		"/srv/deep/large": random(5*chunk+7, 4), "/srv/deep/empty": nil,
	}
	v.snap = v.origin.tree(v.files)
	for _, p := range []string{"/usr/lib/linked", "/etc/copied"} {
		writeFile(t, v.host+p, v.files[p])
	}
	settleClock()
	v.store = openStore(t, Options{Dir: filepath.Join(t.TempDir(), "store"), HostRoot: v.host})
	if err := v.reader().Prefetch(ctxOf(t), v.snap, nil); err != nil {
		t.Fatal(err)
	}
	if tally := v.tally(); !tally.Detached || tally.Local.Files != 2 {
		t.Fatalf("after a prefetch: %+v", tally)
	}
	return v
}

func (v *verified) reader() *Reader { return v.store.Reader(Source{Name: "origin", Origin: v.origin}) }

func (v *verified) tally() Tally {
	v.Helper()
	t, err := v.store.Reader().Tally(ctxOf(v), v.snap)
	if err != nil {
		v.Fatal(err)
	}
	return t
}

func (v *verified) blob(p string) string { return v.store.blobPath(manifest.Sum(v.files[p])) }

func (v *verified) must(err error) {
	v.Helper()
	if err != nil {
		v.Fatal(err)
	}
}

// page returns the file of the directory page that holds a name and is not the root's.
func (v *verified) page(name string) string {
	v.Helper()
	list, err := os.ReadDir(filepath.Join(v.store.Dir(), "meta"))
	v.must(err)
	for _, e := range list {
		p := filepath.Join(v.store.Dir(), "meta", e.Name())
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte(name)) {
			return p
		}
	}
	v.Fatalf("no page holds %q", name)
	return ""
}

func (v *verified) chunkList() string {
	return v.store.metaPath(v.origin.file("/srv/deep/large", v.files["/srv/deep/large"]).Chunks)
}

// spoil changes a byte of a file in place.
func (v *verified) spoil(p string) {
	v.Helper()
	v.must(os.Chmod(p, 0o600))
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	v.must(err)
	_, err = f.WriteAt([]byte{0x55, 0xaa, 0x55}, 100)
	v.must(errors.Join(err, f.Close()))
}

// What is taken from a detached snapshot, or changed in it, shows at the next look.
func TestDetachedShowsWhatIsMissing(t *testing.T) {
	for name, do := range map[string]func(*verified){
		"a truncated blob":                  func(v *verified) { v.must(os.Truncate(v.blob("/srv/small"), 10)) },
		"a removed blob":                    func(v *verified) { v.must(os.Remove(v.blob("/srv/small"))) },
		"the removed blob of an empty file": func(v *verified) { v.must(os.Remove(v.blob("/srv/deep/empty"))) },
		"a blob that is something else": func(v *verified) {
			v.must(errors.Join(os.Remove(v.blob("/srv/small")), os.Symlink("/etc/passwd", v.blob("/srv/small"))))
		},
		"a host file changed in place":    func(v *verified) { v.spoil(v.host + "/usr/lib/linked") },
		"a pin whose name was taken away": func(v *verified) { v.must(os.Remove(v.blob("/etc/copied"))) },
		"a missing page":                  func(v *verified) { v.must(os.Remove(v.page("small"))) },
		"a damaged page":                  func(v *verified) { v.must(os.WriteFile(v.page("large"), []byte("x"), 0o600)) },
		"a missing chunk list":            func(v *verified) { v.must(os.Remove(v.chunkList())) },
		"a damaged chunk list":            func(v *verified) { v.spoil(v.chunkList()) },
		"a missing chunk": func(v *verified) {
			// As after a read that brought all but one.
			v.must(os.Remove(v.blob("/srv/deep/large")))
			c := v.origin.file("/srv/deep/large", v.files["/srv/deep/large"])
			f, err := v.reader().Open(ctxOf(v), c)
			v.must(err)
			_, err = f.ReadAt(ctxOf(v), make([]byte, 100), 2*chunk)
			v.must(errors.Join(err, f.Close()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVerified(t)
			do(v)
			tally := v.tally()
			if tally.Detached || tally.Missing == (Count{}) && tally.MissingMeta == 0 {
				t.Errorf("it is still detached: %+v", tally)
			}
			v.must(v.reader().Prefetch(ctxOf(t), v.snap, nil))
			if tally := v.tally(); !tally.Detached {
				t.Errorf("after another prefetch: %+v", tally)
			}
		})
	}
}

// Another stat alone is not damage: the file is read again, and counts.
func TestDetachedAfterTouch(t *testing.T) {
	v := newVerified(t)
	before := v.store.Stats().Rehashed
	v.must(os.Chmod(v.blob("/srv/small"), 0o400))
	if tally := v.tally(); !tally.Detached || v.store.Stats().Rehashed != before+1 {
		t.Errorf("%+v, %d read again", tally, v.store.Stats().Rehashed-before)
	}
}

func TestHasSnapshot(t *testing.T) {
	v := newVerified(t)
	if v.store.HasSnapshot("source", v.snap) {
		t.Error("a snapshot that was never stored")
	}
	v.must(v.store.SaveSnapshot("source", v.snap))
	if !v.store.HasSnapshot("source", v.snap) || v.store.HasSnapshot("other", v.snap) || v.store.HasSnapshot("", v.snap) {
		t.Error("a stored snapshot is not found, or found elsewhere")
	}
	files, err := filepath.Glob(filepath.Join(v.store.Dir(), "snapshots", "source", "web", "*"))
	v.must(err)
	v.spoil(files[0])
	if v.store.HasSnapshot("source", v.snap) {
		t.Error("a damaged snapshot is as good as a whole one")
	}
}

// rot damages a blob as a disk does: its stat says nothing.
func (v *verified) rot(p string) {
	v.Helper()
	v.spoil(v.blob(p))
	d := manifest.Sum(v.files[p])
	k, _ := v.store.blobKey(d)
	v.store.settle(d, k)
	v.must(v.store.Flush())
}

// Verify finds what no stat tells, and brings it anew.
func TestVerifyMends(t *testing.T) {
	v := newVerified(t)
	var stages []string
	report := func(p Progress) {
		if !slices.Contains(stages, p.Stage) {
			stages = append(stages, p.Stage)
		}
	}
	found, err := v.reader().Verify(ctxOf(t), v.snap, report)
	if err != nil || found.Files != 5 || found.Pages < 5 || len(found.Damaged) != 0 {
		t.Errorf("what is whole: %+v, %v", found, err)
	}
	if len(stages) == 0 || stages[0] != "verify" {
		t.Errorf("stages %v", stages)
	}
	v.rot("/srv/small")
	v.rot("/srv/deep/large")
	v.rot("/etc/copied") // the copy: the host's own file is whole, and is pinned again
	if tally := v.tally(); !tally.Detached {
		t.Fatalf("the damage shows in the stat, so the test shows nothing: %+v", tally)
	}
	found, err = v.reader().Verify(ctxOf(t), v.snap, nil)
	v.must(err)
	var names []string
	for _, d := range found.Damaged {
		names = append(names, d.String())
	}
	slices.Sort(names)
	if want := "/etc/copied /srv/deep/large /srv/small"; strings.Join(names, " ") != want || len(found.Lost) != 0 {
		t.Errorf("damaged: %v, lost %v; want %s", names, found.Lost, want)
	}
	if n := verifyBlobs(t, v.store.Dir()); n != 5 {
		t.Errorf("%d blobs", n)
	}
	if tally := v.tally(); !tally.Detached {
		t.Errorf("afterwards: %+v", tally)
	}
}

// Pages and chunk lists are verified too.
func TestVerifyMendsMetadata(t *testing.T) {
	v := newVerified(t)
	v.spoil(v.chunkList())
	v.must(os.WriteFile(v.page("linked"), []byte("x"), 0o600))
	found, err := v.reader().Verify(ctxOf(t), v.snap, nil)
	v.must(err)
	if got := found.Damaged.String(); !strings.Contains(got, "/usr/lib (directory)") || !strings.Contains(got, "/srv/deep/large (chunk list)") || len(found.Damaged) != 2 || len(found.Lost) != 0 {
		t.Errorf("%+v", found)
	}
	if found.Files != 5 {
		t.Errorf("%d files were read, also those of the directory that was damaged: 5", found.Files)
	}
	if tally := v.tally(); !tally.Detached {
		t.Errorf("afterwards: %+v", tally)
	}
}

// What nobody has any more is named, and the rest is there.
func TestVerifyTellsWhatIsLost(t *testing.T) {
	v := newVerified(t)
	v.rot("/srv/small")
	v.rot("/srv/deep/large")
	delete(v.origin.content, manifest.Sum(v.files["/srv/small"]))
	found, err := v.reader().Verify(ctxOf(t), v.snap, nil)
	if err != nil || found.Lost.String() != "/srv/small" || found.Reason == "" || len(found.Damaged) != 2 {
		t.Errorf("%+v, %v", found, err)
	}
	// Without any origin at all.
	v.rot("/srv/deep/large")
	found, err = v.store.Reader().Verify(ctxOf(t), v.snap, nil)
	if err != nil || found.Lost.String() != "/srv/deep/large" {
		t.Errorf("%+v, %v", found, err)
	}
	if _, err := os.Lstat(v.blob("/srv/deep/large")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a damaged file is still there: %v", err)
	}
	// What is missing and was not damaged is as it is for a prefetch.
	if _, err := v.store.Reader().Verify(ctxOf(t), v.snap, nil); !errors.Is(err, manifest.ErrUnavailable) {
		t.Errorf("missing files: %v", err)
	}
}
