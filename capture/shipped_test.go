package capture

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"srvfs/capture/pkgdb"
	"srvfs/capture/rootfs"
	"srvfs/capture/rpmdb"
	"srvfs/manifest"
)

// installed makes a root in which rpm has installed a package with these files.
func installed(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	spec := "Name: p\nVersion: 1\nRelease: 1\nSummary: p\nLicense: none\nBuildArch: noarch\n%description\np\n%install\n"
	list := "%files\n"
	for name, content := range files {
		spec += fmt.Sprintf("mkdir -p %%{buildroot}%s\nprintf %%%%s '%s' > %%{buildroot}%s\n", filepath.Dir(name), content, name)
		list += name + "\n"
	}
	write(t, filepath.Join(dir, "p.spec"), spec+list, 0o644)
	root := filepath.Join(dir, "root")
	check(t, os.Mkdir(root, 0o755))
	for _, argv := range [][]string{
		{"rpmbuild", "-bb", "--quiet", "--define", "_topdir " + dir, "--define", "_rpmdir " + dir, "--define", "__spec_install_post %{nil}", filepath.Join(dir, "p.spec")},
		{"rpm", "--root", root, "--dbpath", "/var/lib/rpm", "-i", "--nodeps", filepath.Join(dir, "noarch/p-1-1.noarch.rpm")},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	return root
}

// late is a database that says that all was installed an hour before.
type late struct{ pkgdb.DB }

func (l late) Installed(id string) time.Time { return l.DB.Installed(id).Add(-time.Hour) }

func TestShippedDigestSavesReading(t *testing.T) {
	root := installed(t, map[string]string{"/etc/p.conf": "as shipped", "/usr/lib/p/data": "data", "/usr/lib/p/other": "other"})
	r := must(rootfs.New(root))(t)
	defer func() { _ = r.Close() }()
	db := must(rpmdb.Open(r))(t)
	s := &shipped{db: db}
	look := func(name string) *node {
		t.Helper()
		items := map[string]*item{}
		for p := name; ; p = filepath.Dir(p) {
			items[p] = &item{}
			if p == "/" {
				break
			}
		}
		nodes := must(scan(t.Context(), openRoot(t, root), items))(t)
		return nodes[len(nodes)-1]
	}
	conf := look("/etc/p.conf")
	if d, ok := s.digest(conf); !ok || d != manifest.Sum([]byte("as shipped")) {
		t.Errorf("an untouched file: %v, %v", d, ok)
	}
	if d, ok := (&shipped{db: late{db}}).digest(conf); ok {
		t.Errorf("a file whose ctime is an hour after the installation: %v", d)
	}

	// The hasher reads what is not as rpm has left it.
	write(t, filepath.Join(root, "usr/lib/p/data"), "DATA", 0o644)
	nodes := []*node{conf, look("/usr/lib/p/data"), look("/usr/lib/p/other")}
	h := newHasher(openRoot(t, root), nil, nil)
	h.shipped = s.digest
	check(t, h.all(t.Context(), nodes))
	if h.bytes != 4 || nodes[1].entry.Digest != manifest.Sum([]byte("DATA")) || nodes[2].entry.Digest != manifest.Sum([]byte("other")) {
		t.Errorf("%d bytes read; digests %v, %v", h.bytes, nodes[1].entry.Digest, nodes[2].entry.Digest)
	}
	for i, want := range []bool{false, true, false} {
		if got, err := s.modified(t.Context(), &reader{hasher: h}, nodes[i]); err != nil || got != want {
			t.Errorf("%s is modified: %v, %v", nodes[i].path, got, err)
		}
	}
	write(t, filepath.Join(root, "etc/p.conf"), "longer than shipped", 0o644)
	if got, err := s.modified(t.Context(), &reader{hasher: h}, look("/etc/p.conf")); err != nil || !got {
		t.Errorf("a file of another size is modified: %v, %v", got, err)
	}
}
