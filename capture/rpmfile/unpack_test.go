package rpmfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"srvfs/manifest"
)

// built makes package files of specs, each with its payload packed another way.
func built(t *testing.T, specs ...string) []string {
	t.Helper()
	dir := t.TempDir()
	for i, spec := range specs {
		name := fmt.Sprintf("%s/%d.spec", dir, i)
		if err := os.WriteFile(name, []byte(spec), 0o644); err != nil {
			t.Fatal(err)
		}
		payload := []string{"w9.gzdio", "w6.xzdio", "w3.zstdio", "w9.bzdio"}[i%4]
		out, err := exec.Command("rpmbuild", "-bb", "--quiet", "--define", "_topdir "+dir, "--define", "_rpmdir "+dir, "--define", "_binary_payload "+payload, "--define", "__spec_install_post %{nil}", name).CombinedOutput()
		if err != nil {
			t.Fatalf("rpmbuild: %v\n%s", err, out)
		}
	}
	made, err := filepath.Glob(dir + "/noarch/*.rpm")
	if err != nil || len(made) != len(specs) {
		t.Fatal(made, err)
	}
	return made
}

const head = "Name: %s\nVersion: 1\nRelease: 1\nSummary: x\nLicense: none\nBuildArch: noarch\n%%description\nx\n"

var specs = []string{
	fmt.Sprintf(head, "filesystem") + `%install
mkdir -p %{buildroot}/usr/lib %{buildroot}/usr/bin %{buildroot}/etc %{buildroot}/var/lib
ln -s usr/lib %{buildroot}/lib
%files
/lib
%dir /usr
%dir /usr/lib
%dir /usr/bin
%attr(0711,root,root) %dir /var/lib
`,
	fmt.Sprintf(head, "daemon") + `%pre
getent group keepers >/dev/null || groupadd -r -g 77 keepers
getent passwd daemonx >/dev/null || \
  useradd -r -u 25 -g keepers -s /sbin/nologin -d /var/lib/daemon daemonx >/dev/null 2>&1 || :
exit 0
%install
mkdir -p %{buildroot}/lib/daemon %{buildroot}/usr/bin %{buildroot}/var/lib/daemon
head -c 300000 /dev/zero | tr '\0' x > %{buildroot}/usr/bin/daemon
ln %{buildroot}/usr/bin/daemon %{buildroot}/usr/bin/daemon-by-another-name
echo part > "%{buildroot}/lib/daemon/with a space"
ln -s ../daemon/part %{buildroot}/lib/daemon/link
: > %{buildroot}/lib/daemon/empty
ln %{buildroot}/lib/daemon/empty %{buildroot}/lib/daemon/empty-too
%files
%attr(4755,root,root) /usr/bin/daemon
%attr(4755,root,root) /usr/bin/daemon-by-another-name
/lib/daemon
%attr(0750,daemonx,keepers) %dir /var/lib/daemon
%ghost /var/lib/daemon/state
`,
	fmt.Sprintf(head, "setup") + `%install
mkdir -p %{buildroot}/etc
printf 'root:x:0:0::/root:/bin/sh\nbin:x:1:1::/:/bin/false\n' > %{buildroot}/etc/passwd
printf 'root:x:0:\nbin:x:1:\n' > %{buildroot}/etc/group
%files
%config /etc/passwd
%config /etc/group
`,
	fmt.Sprintf(head, "owned") + `%install
mkdir -p %{buildroot}/srv
echo x > %{buildroot}/srv/bins
echo y > %{buildroot}/srv/strangers
%files
%attr(0600,bin,bin) /srv/bins
%attr(0640,stranger,strangers) /srv/strangers
`,
}

// listed describes what is below dir: type, mode, size, links, target, content.
func listed(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(p, dir)
		if strings.HasPrefix(name, "/var/lib/rpm") || name == "" {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := fmt.Sprint(info.Mode())
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text += " -> " + target
		case d.Type().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d links, %v, %v", info.Sys().(*syscall.Stat_t).Nlink, info.ModTime().Unix(), manifest.Sum(b))
		}
		all[name] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestUnpackAsRPM(t *testing.T) {
	files := built(t, specs...)
	ours, theirs := t.TempDir(), t.TempDir()
	// The order does not count: the link /lib comes last.
	reversed := []string{files[2], files[3], files[0], files[1]}
	if err := Unpack(t.Context(), reversed, ours); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"--root", theirs, "--dbpath", "/var/lib/rpm", "-i", "--nodeps", "--noscripts"}, files...)
	if out, err := exec.Command("rpm", args...).CombinedOutput(); err != nil {
		t.Fatalf("rpm: %v\n%s", err, out)
	}
	got, want := listed(t, ours), listed(t, theirs)
	for _, added := range []string{"/etc/passwd", "/etc/group"} { // the accounts
		delete(got, added)
		delete(want, added)
	}
	for p, w := range want {
		if got[p] != w {
			t.Errorf("%s: %s, rpm has %s", p, got[p], w)
		}
	}
	for p, g := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%s: %s, which rpm has not made", p, g)
		}
	}
	owner := func(p string) string {
		info, err := os.Lstat(ours + p)
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
	}
	for p, want := range map[string]string{"/usr/bin/daemon": "0:0", "/var/lib/daemon": "25:77", "/srv/bins": "1:1", "/srv/strangers": "999:999"} {
		if got := owner(p); got != want {
			t.Errorf("%s belongs to %s, want %s", p, got, want)
		}
	}
	passwd, err := os.ReadFile(ours + "/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"root:x:0:0::/root:/bin/sh\n", "daemonx:x:25:77:", "stranger:x:999:998:"} {
		if !strings.Contains(string(passwd), line) {
			t.Errorf("/etc/passwd lacks %q:\n%s", line, passwd)
		}
	}
}

func TestUnpackRefusesDamage(t *testing.T) {
	files := built(t, specs[1])
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad.rpm")
	for i := 1; i < 30; i++ {
		damaged := append([]byte(nil), b...)
		damaged[len(b)-len(b)*i/40-1] ^= 0x55
		if err := os.WriteFile(bad, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		err := Unpack(t.Context(), []string{bad}, t.TempDir())
		if err != nil && !strings.Contains(err.Error(), "bad.rpm") {
			t.Errorf("damage at %d: %v", i, err)
		}
	}
	if err := os.WriteFile(bad, b[:len(b)-12], 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(t.Context(), []string{bad}, t.TempDir()); !errors.Is(err, manifest.ErrCorrupt) {
		t.Errorf("a payload cut off: %v", err)
	}
	if err := Unpack(t.Context(), []string{"/nonexistent.rpm"}, t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
