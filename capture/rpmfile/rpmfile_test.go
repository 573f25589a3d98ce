package rpmfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"srvfs/manifest"
)

const spec = `Name: sample
Version: 1.2
Release: 3
Summary: a sample
License: none
BuildArch: noarch
%description
A sample.
%install
mkdir -p %{buildroot}/etc/sample %{buildroot}/usr/bin
echo setting > %{buildroot}/etc/sample/sample.conf
echo '#!/bin/sh' > %{buildroot}/usr/bin/sample
ln -s sample %{buildroot}/usr/bin/alias
%files
%dir /etc/sample
%config /etc/sample/sample.conf
/usr/bin/sample
/usr/bin/alias
`

// build makes a real package file with rpmbuild.
func build(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	name := filepath.Join(dir, "sample.spec")
	if err := os.WriteFile(name, []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("rpmbuild", "-bb", "--define", "_topdir "+dir, "--define", "_rpmdir "+dir, name).CombinedOutput()
	if err != nil {
		t.Fatalf("rpmbuild (of Debian's package rpm): %v\n%s", err, out)
	}
	return filepath.Join(dir, "noarch", "sample-1.2-3.noarch.rpm")
}

func TestOpen(t *testing.T) {
	p, err := Open(build(t))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(p.Files)
	if want := []string{"/etc/sample", "/etc/sample/sample.conf", "/usr/bin/alias", "/usr/bin/sample"}; !slices.Equal(p.Files, want) {
		t.Errorf("files %q, want %q", p.Files, want)
	}
	if !slices.Equal(p.Configs, []string{"/etc/sample/sample.conf"}) || p.Name != "sample-1.2-3.noarch" {
		t.Errorf("%q with configuration %q", p.Name, p.Configs)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none.rpm")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	whole, err := os.ReadFile(build(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{nil, []byte("text"), whole[:96], whole[:200], whole[:1000]} {
		if _, err := Read(bytes.NewReader(b)); !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
}

func FuzzRead(f *testing.F) {
	whole, err := os.ReadFile(build(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:500])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Read(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, manifest.ErrInvalid) {
				t.Fatalf("not ErrInvalid: %v", err)
			}
			return
		}
		for _, name := range p.Files {
			if !manifest.ValidPath(name) {
				t.Fatalf("path %q", name)
			}
		}
	})
}
