package capture

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"srvfs/manifest"
)

func TestLibrary(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/etc/one", "one", 0o644)
	lib := must(OpenLibrary(filepath.Join(t.TempDir(), "state")))(t)
	if all := must(lib.List())(t); len(all) != 0 {
		t.Errorf("a new library has %v", all)
	}
	_, err := lib.Snapshot(manifest.Ref{Service: "web"})
	wantErr(t, err, manifest.ErrNotFound, "web", "srvd capture")
	for i := range manifest.Kept + 2 {
		write(t, root+"/etc/count", strconv.Itoa(i), 0o644)
		publish(t, lib, "web", root)
	}
	publish(t, lib, "mail", root)
	all := must(lib.List())(t)
	if len(all) != 2 || all[0].Service != "mail" || all[1].Sequence != manifest.Kept+2 {
		t.Errorf("list %v", all)
	}
	_, err = lib.Snapshot(manifest.Ref{Service: "dns"})
	wantErr(t, err, manifest.ErrNotFound, "mail, web")
	snap := must(lib.Snapshot(manifest.Ref{Service: "web"}))(t)
	if d := must(snap.Digest())(t); d != all[1].Digest {
		t.Errorf("digest %v, listed as %v", d, all[1].Digest)
	}
	if got := must(lib.Root("web"))(t); got != root {
		t.Errorf("root %s", got)
	}
	var paths []string
	for e, err := range lib.Entries(manifest.Ref{Service: "web"}) {
		check(t, err)
		paths = append(paths, e.Path)
		if e.Path == "/etc/one" && (e.Digest != manifest.Sum([]byte("one")) || e.Size != 3 || e.Class() != ClassUser) {
			t.Errorf("entry %+v", e)
		}
	}
	if want := []string{"/etc", "/etc/count", "/etc/one"}; !slices.Equal(paths, want) {
		t.Errorf("entries %q, want %q", paths, want)
	}
	if why := must(lib.Why(manifest.Ref{Service: "web"}, "/etc/one/"))(t); len(why) != 1 || why[0] != (Reason{ClassUser, "everything"}) {
		t.Errorf("why %v", why)
	}
	_, err = lib.Why(manifest.Ref{Service: "web"}, "/etc/two/three")
	wantErr(t, err, manifest.ErrNotFound, "below /etc", "--include")
	_, err = lib.Why(manifest.Ref{Service: "none"}, "/etc")
	wantErr(t, err, manifest.ErrNotFound)
	kept := must(os.ReadDir(lib.Dir() + "/snapshots/web"))(t)
	if len(kept) != manifest.Kept {
		t.Errorf("%d snapshots are kept", len(kept))
	}
	check(t, lib.Remove("web"))
	wantErr(t, lib.Remove("web"), manifest.ErrNotFound)
	if left := must(os.ReadDir(lib.Dir() + "/snapshots"))(t); len(left) != 1 || left[0].Name() != "mail" {
		t.Errorf("left: %v", left)
	}
}

// What a crash can leave behind: a folder that is not complete, a folder that
// is complete and not named by "current", and a "current" on its way.
func TestLibraryAfterACrash(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/f", "f", 0o644)
	lib := must(OpenLibrary(t.TempDir()))(t)
	publish(t, lib, "web", root)
	web := lib.Dir() + "/snapshots/web"
	write(t, web+"/"+tempPrefix+"123/meta", "half", 0o600)
	write(t, web+"/2/snapshot", "of a capture that died before it was named", 0o600)
	write(t, lib.Dir()+"/snapshots/dead/1/snapshot", "x", 0o600)
	write(t, lib.Dir()+"/current.new", "srvd curr", 0o600)
	again := must(OpenLibrary(lib.Dir()))(t)
	if snap := must(again.Snapshot(manifest.Ref{Service: "web"}))(t); snap.Sequence != 1 {
		t.Errorf("sequence %d", snap.Sequence)
	}
	snap, _ := publish(t, again, "web", root)
	if snap.Sequence != 2 {
		t.Errorf("sequence %d", snap.Sequence)
	}
	if got := must(again.Snapshot(manifest.Ref{Service: "web"}))(t); got.Sequence != 2 {
		t.Errorf("sequence %d", got.Sequence)
	}
	var names []string
	check(t, filepath.WalkDir(lib.Dir(), func(p string, _ os.DirEntry, err error) error {
		names = append(names, strings.TrimPrefix(p, lib.Dir()))
		return err
	}))
	want := []string{
		"", "/current", "/lock", "/snapshots", "/snapshots/web",
		"/snapshots/web/1", "/snapshots/web/1/index", "/snapshots/web/1/meta", "/snapshots/web/1/scope", "/snapshots/web/1/snapshot",
		"/snapshots/web/2", "/snapshots/web/2/index", "/snapshots/web/2/meta", "/snapshots/web/2/scope", "/snapshots/web/2/snapshot",
	}
	if !slices.Equal(names, want) {
		t.Errorf("left %q", names)
	}
}

func TestLibraryOnADamagedDisk(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/f", "f", 0o644)
	lib := must(OpenLibrary(t.TempDir()))(t)
	publish(t, lib, "web", root)
	for _, name := range []string{"snapshot", "index"} {
		file := lib.Dir() + "/snapshots/web/1/" + name
		good := must(os.ReadFile(file))(t)
		bad := slices.Clone(good)
		bad[len(bad)/2] ^= 0x10
		check(t, os.WriteFile(file, bad, 0o600))
		_, err := lib.Snapshot(manifest.Ref{Service: "web"})
		if name == "index" {
			_, err = lib.Why(manifest.Ref{Service: "web"}, "/f")
		}
		wantErr(t, err, manifest.ErrCorrupt, "capture the service again")
		check(t, os.WriteFile(file, good, 0o600))
	}
	for _, bad := range []string{"", "x", currentMagic + "\nweb 1", currentMagic + "\n../x 1 " + manifest.EmptyDigest.String(), currentMagic + "\nweb x " + manifest.EmptyDigest.String(), currentMagic + "\nweb 1 sha256:0"} {
		check(t, os.WriteFile(lib.Dir()+"/current", []byte(bad), 0o600))
		_, err := lib.List()
		wantErr(t, err, manifest.ErrInvalid)
	}
}

func TestPublishersDoNotCollide(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/f", "f", 0o644)
	dir := t.TempDir()
	const each = 5
	errs := make(chan error)
	for _, name := range []string{"a", "b", "c"} {
		tr := gather(t, root, nil)
		index := must(tr.index(root))(t)
		go func() {
			lib, err := OpenLibrary(dir)
			for range each {
				snap := &manifest.Snapshot{Service: name, Sequence: 1, Root: tr.root, Totals: tr.totals}
				if err == nil {
					_, err = lib.publish(snap, edition{meta: tr.meta, index: index})
				}
			}
			errs <- err
		}()
	}
	check(t, errors.Join(<-errs, <-errs, <-errs))
	lib := must(OpenLibrary(dir))(t)
	for _, p := range must(lib.List())(t) {
		if p.Sequence != each {
			t.Errorf("%+v", p)
		}
		must(lib.Snapshot(manifest.Ref{Service: p.Service}))(t)
	}
}

func TestReasons(t *testing.T) {
	var rs []Reason
	for _, r := range []Reason{{ClassPackage, "p"}, {ClassTraced, "t"}, {ClassPackage, "p"}, {ClassUser, "u"}, {ClassLibrary, "l"}, {ClassTraced, "t2"}} {
		rs = addReason(rs, r)
	}
	want := []Reason{{ClassUser, "u"}, {ClassTraced, "t"}, {ClassTraced, "t2"}, {ClassLibrary, "l"}, {ClassPackage, "p"}}
	if !slices.Equal(rs, want) {
		t.Errorf("%v, want %v", rs, want)
	}
	for i := range 100 {
		rs = addReason(rs, Reason{ClassTraced, strconv.Itoa(i)})
	}
	if rs = addReason(rs, Reason{ClassRule, "r"}); len(rs) > 2*maxReasons || !slices.Contains(rs, Reason{ClassRule, "r"}) {
		t.Errorf("%d reasons: %v", len(rs), rs)
	}
	for c := ClassUser; c <= ClassPackage; c++ {
		var back Class
		if err := back.UnmarshalText([]byte(c.String())); err != nil || back != c {
			t.Errorf("%v comes back as %v, %v", c, back, err)
		}
	}
}

func sampleIndex(t testing.TB) []byte {
	t.Helper()
	var w indexWriter
	reasons := []Reason{{ClassTraced, "opened"}, {ClassPackage, "nginx 1.22"}}
	for _, e := range []Entry{
		{Path: "/etc", Type: manifest.Dir, Reasons: reasons[1:]},
		{Path: "/etc/passwd", Type: manifest.File, Reasons: reasons, Size: 839, Digest: manifest.Sum([]byte("x")), Identity: Identity{Dev: 1, Ino: 2, Size: 839, Mtime: -3, Ctime: 4}},
		{Path: "/etc/ssl.key", Type: manifest.File, Reasons: reasons[:1], Secret: true, Digest: manifest.EmptyDigest},
		{Path: "/lib", Type: manifest.Symlink, Reasons: reasons[:1]},
	} {
		check(t, w.add(&e))
	}
	return w.finish("/srv/root", 0)
}

func TestIndexRoundTrip(t *testing.T) {
	x := must(decodeIndex(sampleIndex(t)))(t)
	if x.root != "/srv/root" || x.count != 4 {
		t.Errorf("%+v", x)
	}
	var w indexWriter
	for e, err := range x.entries() {
		check(t, err)
		check(t, w.add(&e))
	}
	if string(w.finish(x.root, x.base)) != string(sampleIndex(t)) {
		t.Error("comes back different")
	}
	if err := w.add(&Entry{Path: "/a", Reasons: []Reason{{ClassUser, ""}}}); err == nil {
		t.Error("accepts a path out of order")
	}
	if err := w.add(&Entry{Path: "/z"}); err == nil {
		t.Error("accepts a path without a reason")
	}
}

// What earlier versions wrote is read, and nothing in it taken for sure.
func TestIndexOfEarlierFormats(t *testing.T) {
	b := appendString([]byte(indexMagic1), "/srv/root")
	b = appendString(append(b, 1, byte(ClassUser)), "asked for")
	b = append(b, 2)
	b = append(appendString(append(b, 0), "/etc"), byte(manifest.Dir), 0, 1, 0)
	b = append(appendString(append(b, 4), "/f"), byte(manifest.File), flagSecret, 1, 0, 3)
	d := manifest.Sum([]byte("abc"))
	b = append(append(b, d[:]...), 1, 2, 6, 8)
	sum := sha256.Sum256(b)
	x := must(decodeIndex(append(b, sum[:]...)))(t)
	why := []Reason{{ClassUser, "asked for"}}
	want := []Entry{
		{Path: "/etc", Type: manifest.Dir, Reasons: why, racy: true},
		{Path: "/etc/f", Type: manifest.File, Reasons: why, Size: 3, Digest: d, Identity: Identity{Dev: 1, Ino: 2, Size: 3, Mtime: 3, Ctime: 4}, Secret: true, racy: true},
	}
	var got []Entry
	for e, err := range x.entries() {
		check(t, err)
		got = append(got, e)
	}
	if x.root != "/srv/root" || x.base != 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v: %+v", x, got)
	}
	delta := binary.AppendUvarint(appendString([]byte(deltaMagic2), "/srv/root"), 7)
	delta = append(delta, 0, 1)
	delta = append(appendString(append(delta, 0), "/etc"), 0, flagGone, 0)
	sum = sha256.Sum256(delta)
	x = must(decodeIndex(append(delta, sum[:]...)))(t)
	for e, err := range x.entries() {
		if check(t, err); !e.gone || e.Path != "/etc" || x.base != 7 {
			t.Errorf("%+v on %d", e, x.base)
		}
	}
}

// FuzzIndex feeds the decoder what a checksum would have kept from it.
func FuzzIndex(f *testing.F) {
	sample := sampleIndex(f)
	f.Add(sample[:len(sample)-32])
	f.Add([]byte(indexMagic))
	var w indexWriter
	check(f, w.add(&Entry{Path: "/etc/passwd", gone: true}))
	delta := w.finish("/", 7)
	f.Add(delta[:len(delta)-32])
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := readIndexHead(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			wantErr(t, err, manifest.ErrInvalid)
			return
		}
		last := ""
		for e, err := range x.entries() {
			if err != nil {
				wantErr(t, err, manifest.ErrInvalid)
				return
			}
			if !manifest.ValidPath(e.Path) || e.Path <= last || (len(e.Reasons) == 0) != e.gone || e.Size < 0 || e.gone && x.base == 0 {
				t.Fatalf("accepts %+v after %q", e, last)
			}
			last = e.Path
		}
		if _, err := newLiveFiles(x, ""); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzCurrent(f *testing.F) {
	f.Add([]byte(currentMagic + "\nweb 3 " + manifest.EmptyDigest.String() + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseCurrent(b)
		if err != nil {
			return
		}
		for _, p := range all {
			if !manifest.ValidService(p.Service) {
				t.Fatalf("accepts %q", p.Service)
			}
		}
	})
}

func FuzzMetaTable(f *testing.F) {
	m := metaSet{}
	check(f, m.put(manifest.Sum([]byte("a")), []byte("a")))
	check(f, m.put(manifest.Sum([]byte("bc")), []byte("bc")))
	name := filepath.Join(f.TempDir(), "meta")
	check(f, writeFile(name, m.writeTo))
	f.Add(must(os.ReadFile(name))(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := readMetaTable(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		m := metaFile{records: records}
		for _, r := range records {
			if w, ok := m.find(r.digest); !ok || w.off+int64(w.size) > int64(len(b)) {
				t.Fatalf("record %+v in %d bytes", r, len(b))
			}
		}
	})
}
