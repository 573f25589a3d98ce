package rpmdb

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/adler32"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"srvfs/capture/pkgdb"
	"srvfs/capture/pkgdb/pkgdbtest"
	"srvfs/capture/rootfs"
)

// These tests compare with rpm itself: on databases that it makes here, and on
// those of real systems, which a Go module has as its test data.
const realDatabases = "github.com/knqyf263/go-rpmdb@v0.1.1"

func run(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		t.Fatalf("%q: %v", argv, err)
	}
	return string(out)
}

// withDatabase returns a root that has this database and nothing else.
func withDatabase(t testing.TB, name string, content ...[]byte) *rootfs.Root {
	t.Helper()
	dir := t.TempDir()
	folder := filepath.Join(dir, "var/lib/rpm")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, b := range content {
		if err := os.WriteFile(filepath.Join(folder, name+[]string{"", "-wal"}[i]), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return rootAt(t, dir)
}

func rootAt(t testing.TB, dir string) *rootfs.Root {
	t.Helper()
	root, err := rootfs.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// realOnes returns the databases of real systems by the system's name.
func realOnes(t testing.TB) map[string]string {
	t.Helper()
	var module struct{ Dir, Error string }
	if err := json.Unmarshal([]byte(run(t, "go", "mod", "download", "-json", realDatabases)), &module); err != nil || module.Error != "" {
		t.Fatal(err, module.Error)
	}
	all := map[string]string{}
	for _, name := range []string{"rpmdb.sqlite", "Packages.db", "Packages"} {
		found, err := filepath.Glob(filepath.Join(module.Dir, "pkg/testdata/*", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			all[filepath.Base(filepath.Dir(f))] = f
		}
	}
	if len(all) < 8 {
		t.Fatalf("the test data of %s has %d databases only: %v", realDatabases, len(all), all)
	}
	return all
}

// asRPM returns a line for each package, and one for each of its files.
func asRPM(t testing.TB, dbpath string) (packages, files []string) {
	t.Helper()
	out := run(t, "rpm", "-qa", "--dbpath", dbpath, "--qf",
		`P %{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE} %{ARCH}\n[F %{=NAME}-%{=VERSION} %{FILENAMES} %{FILEDIGESTS} %{FILESIZES} %{FILEMTIMES} %{FILEFLAGS}\n]`)
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "P gpg-pubkey "):
		case strings.HasPrefix(line, "P "):
			packages = append(packages, strings.TrimPrefix(line, "P "))
		case strings.HasPrefix(line, "F "):
			files = append(files, strings.TrimPrefix(line, "F "))
		}
	}
	slices.Sort(packages)
	slices.Sort(files)
	return packages, files
}

// asOurs returns the same of an opened database.
func asOurs(db *database) (packages, files []string) {
	for _, p := range db.pkgs {
		arch := p.Arch
		if arch == "" {
			arch = "(none)"
		}
		packages = append(packages, fmt.Sprintf("%s %s %s", p.Name, p.Version, arch))
		version, _, _ := strings.Cut(withoutEpoch(p.Version), "-")
		for i, name := range p.names {
			var digest string
			var size, mtime, flags uint64
			if len(p.digests) > 0 {
				digest = p.digests[i]
			}
			if len(p.sizes) > 0 {
				size, mtime, flags = p.sizes[i], p.mtimes[i], p.flags[i]
			}
			files = append(files, fmt.Sprintf("%s-%s %s%s %s %d %d %d", p.Name, version, p.dirs[p.dirOf[i]], name, digest, size, mtime, flags))
		}
	}
	slices.Sort(packages)
	slices.Sort(files)
	return packages, files
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("%s %d of %d and %d: %q, rpm says %q", what, i, len(got), len(want), got[i], want[i])
			return
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d %s, rpm says %d", len(got), what, len(want))
	}
}

func TestRealDatabasesAsRPM(t *testing.T) {
	for system, name := range realOnes(t) {
		t.Run(system, func(t *testing.T) {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			root := withDatabase(t, filepath.Base(name), b)
			opened, err := Open(root)
			if err != nil {
				t.Fatal(err)
			}
			db := opened.(*database)
			dbpath := root.Host("/var/lib/rpm")
			if filepath.Base(name) == "Packages.db" { // which Debian's rpm can't read
				dbpath = asSQLite(t, headersOf(t, b))
			}
			wantPackages, wantFiles := asRPM(t, dbpath)
			if len(wantPackages) == 0 {
				t.Fatal("rpm finds no packages in it")
			}
			packages, files := asOurs(db)
			same(t, "packages", packages, wantPackages)
			same(t, "files", files, wantFiles)
			pkgdbtest.Conforms(t, func() (pkgdb.DB, error) { return Open(root) })
		})
	}
}

// headersOf returns the headers in a database's bytes.
func headersOf(t testing.TB, b []byte) (headers [][]byte) {
	t.Helper()
	if err := (&file{b: b}).each(func(h []byte) error { headers = append(headers, slices.Clone(h)); return nil }); err != nil {
		t.Fatal(err)
	}
	return headers
}

// asSQLite makes a database of rpm's own with these headers, and returns its folder.
func asSQLite(t testing.TB, headers [][]byte) string {
	t.Helper()
	dir := t.TempDir()
	run(t, "rpm", "--dbpath", dir, "--define", "_db_backend sqlite", "--initdb")
	var names []string
	for i, h := range headers {
		name := fmt.Sprintf("%s/header-%06d", dir, i)
		if err := os.WriteFile(name, h, 0o600); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	const script = `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1] + "/rpmdb.sqlite")
for name in sys.argv[2:]:
    db.execute("INSERT INTO Packages(blob) VALUES (?)", (open(name, "rb").read(),))
db.commit()
`
	run(t, append([]string{"python3", "-c", script, dir}, names...)...)
	return dir
}

// asNDB makes an ndb database with these headers, as RPM's lib/backend/ndb does.
func asNDB(headers [][]byte) []byte {
	const slots = 4096
	b := make([]byte, slots)
	copy(b, ndbMagic)
	le := binary.LittleEndian
	le.PutUint32(b[12:], slots/4096)
	for i := range (slots - 32) / 16 {
		slot := b[32+16*i : 48+16*i]
		copy(slot, "Slot")
		if i >= len(headers) {
			continue
		}
		h := headers[i]
		blocks := (ndbBlobHead + len(h) + ndbBlobTail + ndbBlock - 1) / ndbBlock
		le.PutUint32(slot[4:], uint32(i+1))
		le.PutUint32(slot[8:], uint32(len(b)/ndbBlock))
		le.PutUint32(slot[12:], uint32(blocks))
		blob := make([]byte, blocks*ndbBlock)
		copy(blob, "BlbS")
		le.PutUint32(blob[4:], uint32(i+1))
		le.PutUint32(blob[12:], uint32(len(h)))
		copy(blob[ndbBlobHead:], h)
		tail := blob[len(blob)-ndbBlobTail:]
		le.PutUint32(tail, adler32.Checksum(blob[:len(blob)-ndbBlobTail]))
		le.PutUint32(tail[4:], uint32(len(h)))
		copy(tail[8:], "BlbE")
		b = append(b, blob...)
	}
	return b
}

// spec is a package with what is unusual in it.
const spec = `
Name: %[1]s
Version: %[2]s
Release: 3%%{?dist}
Epoch: %[3]s
Summary: a package for a test
License: none
BuildArch: noarch
Provides: %[1]s-thing = 7
%[4]s
%%description
Nothing.
%%install
mkdir -p %%{buildroot}/etc/%[1]s %%{buildroot}/usr/lib/%[1]s %%{buildroot}/lib/%[1]s
echo config > %%{buildroot}/etc/%[1]s/a.conf
echo data > "%%{buildroot}/usr/lib/%[1]s/with a space"
echo data > %%{buildroot}/lib/%[1]s/other
ln -s other %%{buildroot}/lib/%[1]s/link
%%files
%%dir /etc/%[1]s
%%config(noreplace) /etc/%[1]s/a.conf
/usr/lib/%[1]s
/lib/%[1]s
%%ghost /var/log/%[1]s.log
`

// install makes a root with merged /usr in which rpm has installed packages, and
// the database of one kind.
func install(t testing.TB, kind string) *rootfs.Root {
	t.Helper()
	dir := t.TempDir()
	build := filepath.Join(dir, "build")
	root := filepath.Join(dir, "root")
	for _, d := range []string{build, root + "/usr/lib", root + "/var/lib/rpm"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/lib", root+"/lib"); err != nil {
		t.Fatal(err)
	}
	var made []string
	for _, p := range [][4]string{
		{"base", "1.0", "0", "Provides: /bin/interpreter"},
		{"tool", "2.0~rc1", "1", "Requires: base >= 1.0\nRequires: /etc/base/a.conf\nRequires: (base or absent)\nRequires: (absent if other)"},
		{"other-arch", "0.1", "2", "Requires: tool-thing < 8\nRequires: /usr/lib/base/other"},
	} {
		name := filepath.Join(build, p[0]+".spec")
		text := fmt.Sprintf(spec, p[0], p[1], p[2], p[3])
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, "rpmbuild", "-bb", "--quiet", "--define", "_topdir "+build, "--define", "__spec_install_post %{nil}", name)
	}
	made, err := filepath.Glob(build + "/RPMS/noarch/*.rpm")
	if err != nil || len(made) != 3 {
		t.Fatal(made, err)
	}
	rpm := []string{"rpm", "--root", root, "--define", "_db_backend sqlite", "--dbpath", "/var/lib/rpm"}
	run(t, append(rpm, "--initdb")...)
	run(t, append(append(rpm, "-i", "--nodeps", "--noscripts"), made...)...)
	if kind == "ndb" { // which Debian's rpm can't write
		name := root + "/var/lib/rpm/rpmdb.sqlite"
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(root+"/var/lib/rpm/Packages.db", asNDB(headersOf(t, b)), 0o644), os.Remove(name)); err != nil {
			t.Fatal(err)
		}
	}
	return rootAt(t, root)
}

func TestInstalledPackages(t *testing.T) {
	for _, kind := range []string{"sqlite", "ndb"} {
		t.Run(kind, func(t *testing.T) {
			root := install(t, kind)
			db, err := Open(root)
			if err != nil {
				t.Fatal(err)
			}
			if got := db.Packages(); !slices.Equal(got, []string{"base", "other-arch", "tool"}) || db.Kind() != "rpm" {
				t.Fatalf("packages %q of kind %s", got, db.Kind())
			}
			p, _ := db.Package("tool")
			if p.Version != "1:2.0~rc1-3" || p.Arch != "noarch" || p.Summary != "a package for a test" {
				t.Errorf("%+v", p)
			}
			for _, name := range []string{"tool", "tool.noarch", "tool-2.0~rc1-3", "tool-2.0~rc1-3.noarch"} {
				if q, ok := db.Package(name); !ok || q != p {
					t.Errorf("%s: %+v", name, q)
				}
			}
			files, err := db.Files("base")
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(files)
			// The package lists /lib/base and /usr/lib/base, which are one folder.
			want := []string{"/etc/base", "/etc/base/a.conf", "/usr/lib/base", "/usr/lib/base/link", "/usr/lib/base/other", "/usr/lib/base/with a space", "/var/log/base.log"}
			if !slices.Equal(files, want) {
				t.Errorf("files %q, want %q", files, want)
			}
			if configs, err := db.Conffiles("base"); err != nil || !slices.Equal(configs, []string{"/etc/base/a.conf"}) {
				t.Errorf("configuration %q, %v", configs, err)
			}
			for _, name := range []string{"/lib/base/other", "/usr/lib/base/other"} {
				if owners, err := db.Owner(name); err != nil || !slices.Equal(owners, []string{"base"}) {
					t.Errorf("%s belongs to %q, %v", name, owners, err)
				}
			}
			d, ok := db.Digest("base", "/etc/base/a.conf")
			sum, _, _ := strings.Cut(run(t, "sha256sum", root.Host("/etc/base/a.conf")), " ")
			if !ok || d.Algorithm != "sha256" || d.Hex != sum || d.Size != 7 || d.Mtime == 0 {
				t.Errorf("digest %+v, %v; sha256sum says %s", d, ok, sum)
			}
			if d, ok := db.Digest("base", "/usr/lib/base/link"); ok {
				t.Errorf("a link has digest %+v", d)
			}
			members, missing := pkgdb.Closure(db, []string{"other-arch"})
			if len(members) != 3 || len(missing) > 0 {
				t.Errorf("closure %v, missing %v", members, missing)
			}
			if got := db.Providers(pkgdb.Dependency{Name: "tool-thing", Op: ">=", Version: "8"}); len(got) > 0 {
				t.Errorf("tool-thing >= 8 is provided by %q, in version 7", got)
			}
			if got := db.Providers(pkgdb.Dependency{Name: "/bin/interpreter"}); !slices.Equal(got, []string{"base"}) {
				t.Errorf("/bin/interpreter is provided by %q", got)
			}
			pkgdbtest.Conforms(t, func() (pkgdb.DB, error) { return Open(root) })
		})
	}
}

// A database whose newest packages stand in the write-ahead log only, as after a
// crash of rpm.
func TestWriteAheadLog(t *testing.T) {
	root := install(t, "sqlite")
	name := root.Host("/var/lib/rpm/rpmdb.sqlite")
	const script = `
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA wal_autocheckpoint=0")
rows = [b for (b,) in db.execute("SELECT blob FROM Packages")]
for i in range(50):
    for b in rows:
        db.execute("INSERT INTO Packages(blob) VALUES (?)", (b,))
db.execute("PRAGMA cache_size=1") # so that what follows is in the log too
db.execute("BEGIN")
db.execute("DELETE FROM Packages")
os._exit(0) # without the commit, and without a checkpoint
`
	run(t, "python3", "-c", script, name)
	f, err := read(root, "/var/lib/rpm/")
	if err != nil {
		t.Fatal(err)
	}
	if len(f.wal) < 100<<10 {
		t.Fatalf("the log has %d bytes", len(f.wal))
	}
	n := 0
	if err := f.each(func([]byte) error { n++; return nil }); err != nil || n != 3*51 {
		t.Errorf("%d headers, %v; want %d", n, err, 3*51)
	}
	f.wal[len(f.wal)/2] ^= 1 // what follows does not count
	n = 0
	if err := f.each(func([]byte) error { n++; return nil }); err != nil || n <= 3 || n >= 3*51 {
		t.Errorf("with a damaged log: %d headers, %v", n, err)
	}
	if packages := strings.Fields(run(t, "rpm", "-qa", "--dbpath", root.Host("/var/lib/rpm"))); len(packages) != 3*51 {
		t.Errorf("rpm finds %d packages", len(packages))
	}
}

func TestNoDatabaseBusyDamaged(t *testing.T) {
	if _, err := Open(rootAt(t, t.TempDir())); !errors.Is(err, pkgdb.ErrNone) {
		t.Errorf("an empty root: %v", err)
	}
	root := install(t, "sqlite")
	lock, err := os.OpenFile(root.Host("/var/lib/rpm/.rpm.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(root); !errors.Is(err, pkgdb.ErrBusy) || !strings.Contains(err.Error(), "try again") {
		t.Errorf("a locked database: %v", err)
	}
	for _, kind := range []string{"rpmdb.sqlite", "Packages.db", "Packages"} {
		_, err := Open(withDatabase(t, kind, bytes.Repeat([]byte("no database"), 1000)))
		if !errors.Is(err, pkgdb.ErrCorrupt) || !strings.Contains(err.Error(), kind) {
			t.Errorf("%s of another kind: %v", kind, err)
		}
	}
}

// Whatever is cut off or changed: an error, or what is left, and no panic.
func TestDamage(t *testing.T) {
	seeds := map[string][]byte{}
	for _, kind := range []string{"sqlite", "ndb"} {
		root := install(t, kind)
		f, err := read(root, "/var/lib/rpm/")
		if err != nil {
			t.Fatal(err)
		}
		seeds[kind] = f.b
	}
	all := realOnes(t)
	for system, name := range all {
		if filepath.Base(name) == "Packages" && strings.HasPrefix(system, "centos") {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			seeds[system] = b
		}
	}
	count := func(b []byte) (n int, err error) {
		return n, (&file{b: b}).each(func(h []byte) error { n++; _, err := parseHeader(h); return err })
	}
	for kind, b := range seeds {
		whole, err := count(b)
		if err != nil || whole == 0 {
			t.Errorf("%s: %d packages, %v", kind, whole, err)
			continue
		}
		for i := 1; i <= 40; i++ {
			cut := b[:len(b)*i/41]
			if n, err := count(cut); err == nil && n >= whole && kind != "sqlite" {
				t.Errorf("%s: cut off at %d of %d it still has %d packages", kind, len(cut), len(b), n)
			}
			changed := slices.Clone(b)
			for k := i; k < len(changed); k += 97 + 13*i {
				changed[k] ^= byte(i)
			}
			copy(changed, b[:16]) // still of its kind
			_, _ = count(changed)
		}
	}
}

func TestCompareAsRPM(t *testing.T) {
	parts := []string{"1", "1.0", "1.0.0", "01", "1a", "1b", "a", "a1", "1~rc1", "1~", "1^", "1^git1", "1^git1~x", "1.", "1..2", "1_2", "10", "9", "2.0.1a", "2.0.1", "~", "^", "1.0010", "1.9", "xyz10", "xyz.1", "5.5p1", "5.5p10", "1.0+git"}
	var script strings.Builder
	for _, a := range parts {
		for _, b := range parts {
			fmt.Fprintf(&script, "print(rpm.vercmp(%q, %q)..'\\n')", a, b)
		}
	}
	lines := strings.Fields(run(t, "rpm", "--eval", "%{lua:"+script.String()+"}"))
	if len(lines) != len(parts)*len(parts) {
		t.Fatalf("rpm has compared %d of %d", len(lines), len(parts)*len(parts))
	}
	for i, a := range parts {
		for k, b := range parts {
			if got := fmt.Sprint(sign(compareSegments(a, b))); got != lines[i*len(parts)+k] {
				t.Errorf("%q, %q: %s, rpm says %s", a, b, got, lines[i*len(parts)+k])
			}
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"1:1.0-1", "2.0-1", 1}, {"0:1-1", "1-1", 0}, {"1.0-1", "1.0", 0}, {"1.0-1", "1.0-2", -1}, {"1.0-10", "1.0-9", 1},
	} {
		if got := sign(Compare(c.a, c.b)); got != c.want {
			t.Errorf("%s, %s: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestRichDependencies(t *testing.T) {
	there := map[string]bool{"a": true, "b": true, "lib()(64bit)": true}
	installed := func(d pkgdb.Dependency) bool { return there[d.Name] }
	for in, want := range map[string]string{
		"(a and b)":                        "a, b",
		"(a or x)":                         "a | x",
		"(x or y or a)":                    "x | y | a",
		"(x if a)":                         "x",
		"(x if y)":                         "",
		"(x if y else b)":                  "b",
		"(x unless a else b)":              "b",
		"(x unless y)":                     "x",
		"(lib()(64bit) >= 1:2.0-3 with a)": "lib()(64bit) (>= 1:2.0-3), a",
		"(a without x)":                    "a",
		"((x and y) or (a and b))":         "a, b",
		"((a or b) if (a and b))":          "a | b",
		"((x and y) or z)":                 "z",
	} {
		r, err := parseRich(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		var groups []string
		for _, g := range r.groups(installed) {
			var names []string
			for _, d := range g {
				names = append(names, d.String())
			}
			groups = append(groups, strings.Join(names, " | "))
		}
		if got := strings.Join(groups, ", "); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	for _, in := range []string{"(", "()", "(a", "(a and)", "(a xor b)", "(a and b) c", "(a else b)", "(a >= )", strings.Repeat("(", 100) + "a", "(" + strings.Repeat("a and ", 1<<16) + "a)"} {
		if r, err := parseRich(in); err == nil {
			t.Errorf("%.40s: %+v", in, r)
		}
	}
}

func FuzzRich(f *testing.F) {
	f.Add("(a and (b or c) if d >= 1 else e)")
	f.Fuzz(func(t *testing.T, s string) {
		if !strings.HasPrefix(s, "(") {
			return
		}
		if r, err := parseRich(s); err == nil {
			_ = r.groups(func(d pkgdb.Dependency) bool { return len(d.Name)%2 == 0 })
		}
	})
}

// tagged encodes a header with these tags: strings, lists of strings, or numbers.
func tagged(tags map[uint32]any) []byte {
	be := binary.BigEndian
	var entries, data []byte
	for _, tag := range slices.Sorted(maps.Keys(tags)) {
		var kind, count uint32
		at := uint32(len(data))
		switch v := tags[tag].(type) {
		case string:
			kind, count = typeString, 1
			data = append(append(data, v...), 0)
		case []string:
			kind, count = typeStringArray, uint32(len(v))
			for _, s := range v {
				data = append(append(data, s...), 0)
			}
		case []uint32:
			for ; len(data)%4 != 0; at++ {
				data = append(data, 0)
			}
			kind, count = typeInt32, uint32(len(v))
			for _, n := range v {
				data = be.AppendUint32(data, n)
			}
		}
		for _, n := range []uint32{tag, kind, at, count} {
			entries = be.AppendUint32(entries, n)
		}
	}
	b := be.AppendUint32(nil, uint32(len(tags)))
	return append(append(be.AppendUint32(b, uint32(len(data))), entries...), data...)
}

// small is a package with something in each tag.
func small() []byte {
	return tagged(map[uint32]any{
		tagName: "p", tagVersion: "1", tagRelease: "2", tagEpoch: []uint32{3}, tagArch: "noarch", tagSummary: "s",
		tagBaseNames: []string{"a", "b"}, tagDirNames: []string{"/etc/", "/usr/lib/"}, tagDirIndexes: []uint32{0, 1},
		tagFileFlags: []uint32{1, 0}, tagFileSizes: []uint32{7, 8}, tagFileMtimes: []uint32{1, 2}, tagFileDigests: []string{"00ff", ""}, tagFileDigestAlgos: []uint32{8},
		tagProvideName: []string{"p"}, tagProvideFlags: []uint32{senseEqual}, tagProvideVersion: []string{"3:1-2"},
		tagRequireName: []string{"q", "(r if p)", "/bin/sh"}, tagRequireFlags: []uint32{senseGreater | senseEqual, 0, 0}, tagRequireVersion: []string{"1", "", ""},
	})
}

// asBDB makes a hash table of Berkeley DB with these headers, each in a chain.
func asBDB(headers [][]byte, order binary.ByteOrder) []byte {
	const size = 512
	page := func(b []byte, n int) []byte { return b[size*n : size*(n+1)] }
	b := make([]byte, 2*size)
	order.PutUint32(page(b, 0)[12:], bdbHashMagic)
	order.PutUint32(page(b, 0)[20:], size)
	page(b, 1)[25] = bdbPageHash
	order.PutUint16(page(b, 1)[20:], uint16(2*len(headers)))
	end := size
	for i, h := range headers {
		key := []byte{bdbItemHere, 0, 0, 0, byte(i + 1)}
		value := make([]byte, 12)
		value[0] = bdbItemOverflow
		order.PutUint32(value[4:], uint32(len(b)/size))
		order.PutUint32(value[8:], uint32(len(h)))
		for k, item := range [][]byte{key, value} {
			end -= len(item)
			copy(page(b, 1)[end:], item)
			order.PutUint16(page(b, 1)[bdbHead+2*(2*i+k):], uint16(end))
		}
		for len(h) > 0 {
			part := h[:min(len(h), size-bdbHead)]
			h = h[len(part):]
			p := make([]byte, size)
			p[25] = bdbPageOverflow
			order.PutUint16(p[22:], uint16(len(part)))
			if len(h) > 0 {
				order.PutUint32(p[16:], uint32(len(b)/size+1))
			}
			copy(p[bdbHead:], part)
			b = append(b, p...)
		}
	}
	return b
}

func TestSmallDatabases(t *testing.T) {
	headers := [][]byte{small(), tagged(map[uint32]any{tagName: "q", tagVersion: "1"})}
	for kind, b := range map[string][]byte{"ndb": asNDB(headers), "bdb": asBDB(headers, binary.LittleEndian), "bdb, big-endian": asBDB(headers, binary.BigEndian)} {
		got := headersOf(t, b)
		if !slices.EqualFunc(got, headers, bytes.Equal) {
			t.Errorf("%s: %d headers, want %d", kind, len(got), len(headers))
		}
	}
	db := &database{root: rootAt(t, t.TempDir())}
	for _, h := range headers {
		if err := db.add(h); err != nil {
			t.Fatal(err)
		}
	}
	db.arrange()
	p, _ := db.Package("p")
	want := "[[q (>= 1)] [r] [/bin/sh]]"
	if got := fmt.Sprint(p.Depends); got != want || p.Version != "3:1-2" {
		t.Errorf("version %s, depends on %s; want 3:1-2, %s", p.Version, got, want)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(small())
	f.Fuzz(func(t *testing.T, b []byte) {
		db := &database{root: rootAt(t, t.TempDir())}
		if db.add(b) != nil {
			return
		}
		db.arrange()
		for _, id := range db.Packages() {
			if list, err := db.Files(id); err == nil && len(list) > 0 {
				_, _ = db.Conffiles(id)
				db.Digest(id, list[0])
			}
		}
	})
}

// FuzzFile feeds all three formats.
func FuzzFile(f *testing.F) {
	headers := [][]byte{small(), small()}
	f.Add(asNDB(headers), []byte(nil))
	f.Add(asBDB(headers, binary.LittleEndian), []byte(nil))
	const script = `
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1] + "/rpmdb.sqlite", isolation_level=None)
db.execute("PRAGMA page_size=512")
db.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)")
header = open(sys.argv[1] + "/header", "rb").read()
db.execute("INSERT INTO Packages(blob) VALUES (?)", (header,))
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA wal_autocheckpoint=0")
db.execute("INSERT INTO Packages(blob) VALUES (?)", (header,))
os._exit(0)
`
	dir := f.TempDir()
	if err := os.WriteFile(dir+"/header", small(), 0o600); err != nil {
		f.Fatal(err)
	}
	run(f, "python3", "-c", script, dir)
	b, err := os.ReadFile(dir + "/rpmdb.sqlite")
	if err != nil {
		f.Fatal(err)
	}
	wal, err := os.ReadFile(dir + "/rpmdb.sqlite-wal")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, wal)
	f.Fuzz(func(t *testing.T, b, wal []byte) {
		n := 0
		_ = (&file{b: b, wal: wal}).each(func(h []byte) error {
			if n += len(h); n > len(b)+len(wal) {
				t.Fatalf("%d bytes of headers in %d", n, len(b)+len(wal))
			}
			return nil
		})
	})
}

func BenchmarkOpen(b *testing.B) {
	all := realOnes(b)
	for system, name := range all {
		content, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		root := withDatabase(b, filepath.Base(name), content)
		b.Run(system, func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				db, err := Open(root)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := db.Owner("/bin/sh"); err != nil {
					b.Fatal(err)
				}
				n = len(db.Packages())
			}
			b.ReportMetric(float64(n), "packages")
		})
	}
}
