package dpkg

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"srvfs/capture/pkgdb"
	"srvfs/capture/rootfs"
)

// world makes a root with merged /usr and the given files of /var/lib/dpkg.
func world(t testing.TB, files map[string]string) *rootfs.Root {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"usr/bin", "usr/lib", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range []string{"bin", "lib"} {
		if err := os.Symlink("/usr/"+l, filepath.Join(dir, l)); err != nil { // absolute: it must stay inside
			t.Fatal(err)
		}
	}
	for name, text := range files {
		p := filepath.Join(dir, folder, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := rootfs.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

const status = `Package: dpkg
Status: install ok installed
Architecture: amd64
Version: 1.21
Essential: yes
Description: tool
 with a long
 .
 description

Package: web
Status: install ok triggers-pending
Architecture: amd64
Version: 1:2.0-3
Pre-Depends: dpkg (>= 1.15)
Depends: libx (>= 2.0~) | liby, mta, python3:any, gone | goner (<< 3)
Conffiles:
 /etc/web.conf 0123456789abcdef0123456789abcdef
 /etc/old name 0123456789abcdef0123456789abcde0 obsolete
 /etc/new newconffile
 /etc/away newconffile remove-on-upgrade

Package: libx
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Version: 2.0

Package: libx
Status: install ok installed
Architecture: i386
Multi-Arch: same
Version: 2.0

Package: old32
Status: install ok installed
Architecture: i386
Version: 1
Depends: libx, dpkg

Package: liby
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: postfix
Status: hold ok installed
Architecture: amd64
Version: 3
Provides: mta, default-mta (= 5)

Package: python3
Status: install ok half-configured
Architecture: amd64
Multi-Arch: allowed
Version: 3.11
`

func TestPackages(t *testing.T) {
	db, err := Open(world(t, map[string]string{"status": status}))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"dpkg", "libx:amd64", "libx:i386", "old32:i386", "postfix", "python3", "web"}
	if got := db.Packages(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for name, id := range map[string]string{"libx": "libx:amd64", "libx:i386": "libx:i386", "web:amd64": "web", "old32": "old32:i386", "liby": "", "none": ""} {
		p, ok := db.Package(name)
		if ok != (id != "") || ok && p.ID != id {
			t.Errorf("Package(%s): %+v %v, want %q", name, p, ok, id)
		}
	}
	if p, _ := db.Package("dpkg"); !p.Essential || p.Summary != "tool" {
		t.Errorf("%+v", p)
	}
	members, missing := pkgdb.Closure(db, []string{"web", "nosuch"})
	var ids []string
	for _, m := range members {
		ids = append(ids, m.ID+"<"+m.By)
	}
	if want := []string{"dpkg<web", "libx:amd64<web", "postfix<web", "python3<web", "web<"}; !slices.Equal(ids, want) {
		t.Errorf("closure %q, want %q", ids, want)
	}
	var texts []string
	for _, m := range missing {
		texts = append(texts, m.String())
	}
	if want := []string{"nosuch", "gone | goner (<< 3), needed by web"}; !slices.Equal(texts, want) {
		t.Errorf("missing %q, want %q", texts, want)
	}
	members, missing = pkgdb.Closure(db, []string{"old32"}) // its libraries are of its own architecture
	if len(members) != 2 || members[0].ID != "libx:i386" || len(missing) != 1 {
		t.Errorf("closure %v, missing %v", members, missing)
	}
	for _, c := range []struct {
		d    pkgdb.Dependency
		want []string
	}{
		{pkgdb.Dependency{Name: "mta"}, []string{"postfix"}},
		{pkgdb.Dependency{Name: "mta", Op: ">=", Version: "1"}, nil}, // provided without a version
		{pkgdb.Dependency{Name: "default-mta", Op: ">=", Version: "5"}, []string{"postfix"}},
		{pkgdb.Dependency{Name: "default-mta", Op: ">>", Version: "5"}, nil},
		{pkgdb.Dependency{Name: "libx", Arch: "any"}, []string{"libx:amd64", "libx:i386"}},
		{pkgdb.Dependency{Name: "web", Op: "<<", Version: "1:2.0-3~"}, nil},
	} {
		if got := db.Providers(c.d); !slices.Equal(got, c.want) {
			t.Errorf("Providers(%v): %q, want %q", c.d, got, c.want)
		}
	}
}

func TestFiles(t *testing.T) {
	root := world(t, map[string]string{
		"status":              status,
		"diversions":          "/bin/sh\n/bin/sh.distrib\nweb\n/usr/bin/all\n/usr/bin/all.local\n:\n",
		"info/dpkg.list":      "/.\n/bin\n/bin/sh\n/usr/lib/gone/x\n/lib\n/lib/gone/x\n",
		"info/web.list":       "/.\n/bin/sh\n/usr/bin/all\n/usr/lib\n",
		"info/web.md5sums":    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa  bin/sh\nbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb *usr/bin/all\n",
		"info/libx:i386.list": "/usr/lib/i386/libx.so\n",
		"info/libx.list":      "/usr/lib/amd64/libx.so\n", // as before dpkg 1.16
	})
	db, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string][]string{
		"dpkg":       {"/", "/bin", "/usr/bin/sh.distrib", "/usr/lib/gone/x", "/lib"},
		"web":        {"/", "/usr/bin/sh", "/usr/bin/all.local", "/usr/lib"},
		"libx:i386":  {"/usr/lib/i386/libx.so"},
		"libx:amd64": {"/usr/lib/amd64/libx.so"},
		"postfix":    nil,
	} {
		if got, err := db.Files(id); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q %v, want %q", id, got, err, want)
		}
	}
	for p, want := range map[string][]string{
		"/": {"dpkg", "web"}, "/bin/sh": {"web"}, "/usr/bin/sh": {"web"}, "/bin/sh.distrib": {"dpkg"},
		"/bin/all": nil, "/bin/all.local": {"web"}, "/lib/gone/x": {"dpkg"}, "/etc": nil,
	} {
		if got, err := db.Owner(p); err != nil || !slices.Equal(got, want) {
			t.Errorf("owner of %s: %q %v, want %q", p, got, err, want)
		}
	}
	for p, want := range map[string]string{"/bin/sh": strings.Repeat("a", 32), "/usr/bin/all.local": strings.Repeat("b", 32), "/etc/web.conf": "0123456789abcdef0123456789abcdef", "/etc/new": "", "/x": ""} {
		if d, ok := db.Digest("web", p); ok != (want != "") || d.Hex != want {
			t.Errorf("digest of %s: %v %v, want %q", p, d, ok, want)
		}
	}
	if c, err := db.Conffiles("web"); err != nil || !slices.Equal(c, []string{"/etc/web.conf", "/etc/old name", "/etc/new"}) {
		t.Errorf("conffiles %q %v", c, err)
	}
	if _, err := db.Files("nosuch"); !errors.Is(err, pkgdb.ErrUnknown) {
		t.Error(err)
	}
	if _, ok := db.Digest("nosuch", "/"); ok {
		t.Error("a digest of no package")
	}
}

func TestInterruptedAndDistroless(t *testing.T) {
	db, err := Open(world(t, map[string]string{
		"status":        status,
		"updates/0001":  "Package: web\nStatus: install ok unpacked\nArchitecture: amd64\nVersion: 9\n",
		"updates/0002":  "Package: postfix\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 9\n",
		"updates/0003":  "Package: fresh\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n",
		"updates/tmp.i": "garbage",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := db.Package("web"); !ok || p.Version != "9" {
		t.Errorf("%+v %v", p, ok)
	}
	if _, ok := db.Package("postfix"); ok {
		t.Error("postfix was removed")
	}
	if _, ok := db.Package("fresh"); !ok {
		t.Error("fresh was installed")
	}

	db, err = Open(world(t, map[string]string{
		"status.d/tzdata":         "Package: tzdata\nVersion: 2024a\nArchitecture: all\n",
		"status.d/tzdata.md5sums": strings.Repeat("c", 32) + "  usr/share/zoneinfo/UTC\n",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if o, err := db.Owner("/usr/share/zoneinfo/UTC"); err != nil || !slices.Equal(o, []string{"tzdata"}) {
		t.Errorf("%q %v", o, err)
	}
}

func TestDamaged(t *testing.T) {
	for _, c := range []struct {
		file, text, want string
		err              error
	}{
		{"other", "", "/var/lib/dpkg/status: ", pkgdb.ErrNone},
		{"status", "Package: a\nrubbish\n", "status:2: ", pkgdb.ErrCorrupt},
		{"status", " continued\n", "status:1: ", pkgdb.ErrCorrupt},
		{"status", "Version: 1\n\n", "status:2: ", pkgdb.ErrCorrupt},
		{"status", "\n\nPackage: ../../x\n", "status:3: ", pkgdb.ErrCorrupt},
		{"status", "Package: a\nArchitecture: ../x\n", "status:2: ", pkgdb.ErrCorrupt},
		{"status", "Package: a\nStatus: installed\n", "status:2: ", pkgdb.ErrCorrupt},
		{"status", "Package: a\nDepends: b (>= 1\n", "status:2: ", pkgdb.ErrCorrupt},
		{"status", "Package: a\nDepends: b | \n", "status:2: ", pkgdb.ErrCorrupt},
		{"status", "Package: a\nConffiles:\n nothing\n", "status:3: ", pkgdb.ErrCorrupt},
		{"diversions", "/a\n/b\n", "diversions:2: ", pkgdb.ErrCorrupt},
		{"diversions", "a\n/b\nc\n", "diversions:1: ", pkgdb.ErrCorrupt},
		{"info/dpkg.list", "/.\nusr\n", "dpkg.list:2: ", pkgdb.ErrCorrupt},
		{"info/dpkg.list", "/.\n\x00", "dpkg.list:2: ", pkgdb.ErrCorrupt},
	} {
		files := map[string]string{c.file: c.text}
		if c.file != "status" && !errors.Is(c.err, pkgdb.ErrNone) {
			files["status"] = status
		}
		db, err := pkgdb.Open(world(t, files), Open)
		if err == nil {
			_, err = db.Owner("/usr")
		}
		if !errors.Is(err, c.err) || errors.Is(c.err, pkgdb.ErrCorrupt) && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v, want %q", c.file, c.text, err, c.want)
		}
	}
	if db, err := Open(world(t, map[string]string{"status": ""})); err != nil || len(db.Packages()) != 0 {
		t.Errorf("an empty database: %v", err)
	}
}

func TestCompare(t *testing.T) {
	ordered := []string{"0~", "0", "0.1~~", "0.1~rc1-1", "0.1~rc1-1+b1", "0.1", "0.1-1", "0.1-1+b1", "0.1a", "0.1.1", "0.9", "0.10", "1", "1.0a", "1.0+", "1:0.1", "2:0"}
	for i, a := range ordered {
		for j, b := range ordered {
			if c := Compare(a, b); c != cmp.Compare(i, j) {
				t.Errorf("Compare(%q, %q) is %d", a, b, c)
			}
		}
	}
	_, db := hostDB(t)
	vs := map[string]bool{}
	for _, id := range db.Packages() {
		p, _ := db.Package(id)
		vs[p.Version] = true
	}
	list := make([]string, 0, len(vs))
	for v := range vs {
		list = append(list, v)
	}
	slices.Sort(list)
	for i := range min(100, len(list)-1) {
		a, b := list[i*len(list)/101], list[i*len(list)/101+1]
		op := map[bool]string{true: "lt", false: "gt"}[Compare(a, b) < 0]
		if Compare(a, b) == 0 {
			op = "eq"
		}
		run(t, "dpkg", "--compare-versions", a, op, b)
	}
}

func FuzzStatus(f *testing.F) {
	f.Add(status)
	f.Add("Package: a\nProvides: b (= 1), c\nDepends: a:any (>> 1) | b\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseStatus("status", text)
		if err != nil {
			if !errors.Is(err, pkgdb.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		db := &database{native: nativeArch(all)}
		db.add(all)
		members, _ := pkgdb.Closure(db, db.Packages())
		if len(members) != len(db.pkgs) {
			t.Fatalf("%d of %d packages in their own closure", len(members), len(db.pkgs))
		}
	})
}

func FuzzList(f *testing.F) {
	f.Add("/.\n/usr/bin\n")
	f.Fuzz(func(t *testing.T, text string) {
		paths, err := parseList("list", text)
		if err != nil && !errors.Is(err, pkgdb.ErrCorrupt) {
			t.Fatal(err)
		}
		for _, p := range paths {
			if p[0] != '/' {
				t.Fatal(p)
			}
		}
	})
}

func FuzzDiversions(f *testing.F) {
	f.Add("/bin/sh\n/bin/sh.distrib\ndash\n")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseDiversions("diversions", text)
		if err != nil && !errors.Is(err, pkgdb.ErrCorrupt) {
			t.Fatal(err)
		}
		for from, d := range m {
			if from[0] != '/' || d.to[0] != '/' {
				t.Fatal(from, d)
			}
		}
	})
}

func FuzzMD5Sums(f *testing.F) {
	f.Add("0123456789abcdef0123456789abcdef  usr/bin/dash\n")
	f.Add("\\0123456789abcdef0123456789abcdef *a\\nb\n")
	f.Fuzz(func(t *testing.T, text string) {
		err := parseMD5Sums("md5sums", text, func(md5, path string) {
			if !isMD5(md5) || path[0] != '/' {
				t.Fatal(md5, path)
			}
		})
		if err != nil && !errors.Is(err, pkgdb.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

func FuzzCompare(f *testing.F) {
	f.Add("1:2.0-3", "1.0~rc1")
	f.Fuzz(func(t *testing.T, a, b string) {
		if Compare(a, b) != -Compare(b, a) || Compare(a, a) != 0 {
			t.Fatalf("%q %q", a, b)
		}
	})
}
