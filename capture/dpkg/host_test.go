package dpkg

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"srvfs/capture/pkgdb"
	"srvfs/capture/pkgdb/pkgdbtest"
	"srvfs/capture/rootfs"
)

// These tests compare with dpkg itself, on the host's own database.

func hostDB(t testing.TB) (*rootfs.Root, pkgdb.DB) {
	t.Helper()
	root, err := rootfs.New("/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	db, err := pkgdb.Open(root, Open)
	if err != nil {
		t.Fatal(err)
	}
	return root, db
}

func run(t testing.TB, argv ...string) []string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		t.Fatalf("%q: %v", argv, err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

func TestPackagesAsDpkgQuery(t *testing.T) {
	_, db := hostDB(t)
	var got []string
	for _, id := range db.Packages() {
		p, ok := db.Package(id)
		if !ok {
			t.Fatalf("%s is listed and not there", id)
		}
		got = append(got, fmt.Sprintf("%s\t%s\t%s\t%s\t%v", p.ID, p.Name, p.Version, p.Arch, p.Essential))
	}
	want := run(t, "dpkg-query", "-W", "-f", `${db:Status-Status}\t${binary:Package}\t${Package}\t${Version}\t${Architecture}\t${Essential}\n`)
	for i, w := range want {
		w = strings.TrimPrefix(w, "installed\t")
		w, ok := strings.CutSuffix(w, "\tyes")
		want[i] = fmt.Sprintf("%s\t%v", strings.TrimSuffix(strings.TrimSuffix(w, "no"), "\t"), ok)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				t.Fatalf("%d packages, dpkg-query has %d; first difference %q, %q", len(got), len(want), got[i], want[i])
			}
		}
		t.Fatalf("%d packages, dpkg-query has %d", len(got), len(want))
	}
}

func TestFilesAsDpkg(t *testing.T) {
	root, db := hostDB(t)
	ids := append(sample(db.Packages(), 60), "dash", "libc6", "base-files")
	lists := strings.Split(strings.Join(run(t, append([]string{"dpkg", "-L"}, ids...)...), "\n"), "\n\n")
	if len(lists) != len(ids) {
		t.Fatalf("dpkg lists %d packages, not %d", len(lists), len(ids))
	}
	for i, id := range ids {
		want := map[string]bool{}
		for l := range strings.SplitSeq(lists[i], "\n") {
			// dpkg says where a file was packed, and in a line of its own that it was diverted
			if to, ok := strings.CutPrefix(l, "diverted by "); ok {
				_, to, _ = strings.Cut(to, " to: ")
				want[canonical(root, to)] = true
			} else if strings.HasPrefix(l, "/") {
				want[canonical(root, path.Clean(l))] = true
			}
		}
		files, err := db.Files(id)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, f := range files {
			if got[f] {
				t.Errorf("%s has %s twice", id, f)
			}
			if got[f] = true; !want[f] {
				t.Errorf("%s has %s, dpkg -L does not say so", id, f)
			}
		}
		for f := range want {
			if !got[f] && !isDiverted(db, f) {
				t.Errorf("%s lacks %s", id, f)
			}
		}
	}
}

func canonical(root *rootfs.Root, p string) string {
	p, _, _ = root.ResolveParent(p)
	return p
}

func isDiverted(db pkgdb.DB, p string) bool {
	for from := range db.(*database).diverted {
		if canonical(db.(*database).root, from) == p {
			return true
		}
	}
	return false
}

func TestOwnerAsDpkgS(t *testing.T) {
	root, db := hostDB(t)
	var all []string
	for _, id := range db.Packages() {
		p, _ := db.Package(id)
		raw, err := parseRawList(db.(*database), p.ID)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, raw...)
	}
	paths := append(sample(all, 300), "/bin/sh", "/lib", "/usr", "/etc/passwd", "/etc/motd", "/usr/lib/x86_64-linux-gnu")
	cmd := exec.Command("dpkg", append([]string{"-S"}, paths...)...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin"}
	out, _ := cmd.Output() // status 1: some are owned by nobody
	want := map[string][]string{}
	for line := range bytes.Lines(out) {
		owners, p, ok := strings.Cut(strings.TrimSpace(string(line)), ": ")
		if !ok || strings.HasPrefix(owners, "diversion by") || strings.HasPrefix(owners, "local diversion") {
			continue
		}
		want[p] = append(want[p], strings.Split(owners, ", ")...)
	}
	if len(want) < 250 {
		t.Fatalf("dpkg -S knows only %d paths", len(want))
	}
	for _, p := range paths {
		got, err := db.Owner(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(want[p]) > 0 && len(got) == 0 && !isDiverted(db, canonical(root, p)) {
			t.Errorf("%s is of nobody, dpkg -S says %q", p, want[p])
		}
		for _, w := range want[p] {
			// dpkg compares text: it knows the owners of the path as it was packed,
			// ours include those who packed it by its other name
			if !slices.Contains(got, w) && !isDiverted(db, canonical(root, p)) {
				t.Errorf("%s is of %q, dpkg -S says %q", p, got, want[p])
			}
		}
		for _, g := range got {
			files, err := db.Files(g)
			if err != nil || !slices.Contains(files, canonical(root, p)) {
				t.Errorf("%s is of %s, which does not have it (%v)", p, g, err)
			}
		}
	}
	if o, err := db.Owner("/usr/bin/dash"); err != nil || !slices.Equal(o, []string{"dash"}) {
		t.Errorf("/usr/bin/dash is of %q, %v", o, err)
	}
	if o, err := db.Owner("/nobody/has/this"); err != nil || o != nil {
		t.Errorf("%q %v", o, err)
	}
}

func parseRawList(db *database, id string) ([]string, error) {
	name, text, err := db.readInfo(db.find(id), ".list")
	if err != nil {
		return nil, err
	}
	return parseList(name, text)
}

func TestDigestsAndConffilesAsDpkg(t *testing.T) {
	root, db := hostDB(t)
	for _, id := range sample(db.Packages(), 60) {
		conf, err := db.Conffiles(id)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, l := range run(t, "dpkg-query", "-W", "-f", `${Conffiles}\n`, id) {
			f := strings.Fields(l)
			if len(f) < 2 || slices.Contains(f, "remove-on-upgrade") {
				continue
			}
			p := canonical(root, f[0])
			want = append(want, p)
			if d, ok := db.Digest(id, p); isMD5(f[1]) && (!ok || d.Hex != f[1] || d.Algorithm != "md5") {
				t.Errorf("%s %s: %v %v, dpkg says %s", id, p, d, ok, f[1])
			}
		}
		slices.Sort(want)
		slices.Sort(conf)
		if !slices.Equal(conf, want) {
			t.Errorf("%s: conffiles %q, dpkg says %q", id, conf, want)
		}
	}
	out := run(t, "md5sum", "/usr/bin/dash")
	if d, ok := db.Digest("dash", "/bin/dash"); !ok || d.Hex != out[0][:32] {
		t.Errorf("/bin/dash: %v %v, md5sum says %s", d, ok, out[0])
	}
}

// TestClosureIsClosed: on a consistent system every package's dependencies are
// satisfied, and a closure contains those of its members.
func TestClosureIsClosed(t *testing.T) {
	_, db := hostDB(t)
	members, missing := pkgdb.Closure(db, db.Packages())
	if len(members) != len(db.Packages()) {
		t.Errorf("%d members of %d packages", len(members), len(db.Packages()))
	}
	if len(missing) > 0 {
		t.Errorf("missing: %v", missing)
	}
	for _, id := range sample(db.Packages(), 30) {
		members, _ := pkgdb.Closure(db, []string{id})
		in := map[string]bool{}
		for _, m := range members {
			in[m.ID] = true
		}
		for _, m := range members {
			if m.By == "" && m.ID != id || m.By != "" && !in[m.By] {
				t.Errorf("closure of %s: %+v", id, m)
			}
			p, _ := db.Package(m.ID)
			for _, g := range p.Depends {
				ok := false
				for _, d := range g {
					ok = ok || slices.ContainsFunc(db.Providers(d), func(id string) bool { return in[id] })
				}
				if !ok {
					t.Errorf("closure of %s has %s and not its %v", id, m.ID, g)
				}
			}
		}
	}
}

func sample(all []string, n int) []string {
	rng := rand.New(rand.NewPCG(7, uint64(len(all))))
	picked := make([]string, 0, n)
	for _, i := range rng.Perm(len(all))[:min(n, len(all))] {
		picked = append(picked, all[i])
	}
	return picked
}

func BenchmarkIndex(b *testing.B) {
	n := 0
	for b.Loop() {
		root, err := rootfs.New("/")
		if err != nil {
			b.Fatal(err)
		}
		db, err := Open(root)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := db.Owner("/bin/sh"); err != nil {
			b.Fatal(err)
		}
		n = len(db.Packages())
		_ = root.Close()
	}
	b.ReportMetric(float64(n), "packages")
}

func BenchmarkOwner(b *testing.B) {
	_, db := hostDB(b)
	for b.Loop() {
		if _, err := db.Owner("/lib/x86_64-linux-gnu/libc.so.6"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestConforms(t *testing.T) {
	pkgdbtest.Conforms(t, func() (pkgdb.DB, error) {
		root, err := rootfs.New("/")
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = root.Close() })
		return pkgdb.Open(root, Open)
	})
}
