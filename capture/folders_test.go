package capture

import (
	"maps"
	"testing"

	"srvfs/capture/rootfs"
)

func TestSkeletonOfRun(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\n", 0o644)
	write(t, root+"/etc/group", "root:x:0:\nadm:x:4:\n", 0o644)
	write(t, root+"/usr/lib/tmpfiles.d/web.conf", "# comment\nd /run/web 0750 web adm -\nD /var/run/old 2775 33 4\nd /run/default\nf /run/file 0644 root root\n"+
		"d /var/lib/elsewhere 0755 root root\nd /run/%m 0755\nd /run/nobody 0755 nobody -\nd /run/systemd/x\nd relative 0755\nd /run/bad 9\n", 0o644)
	write(t, root+"/usr/lib/tmpfiles.d/masked.conf", "d /run/masked\n", 0o644)
	write(t, root+"/etc/tmpfiles.d/masked.conf", "", 0o644)
	write(t, root+"/run/live/deep/file.pid", "1", 0o644)
	write(t, root+"/run/systemd/private", "", 0o644)
	r := must(rootfs.New(root))(t)
	defer func() { _ = r.Close() }()
	got := map[string]folder{}
	for _, f := range skeleton(r) {
		got[f.path] = f
	}
	want := map[string]folder{
		"/run/web": {"/run/web", 0o750, 33, 4}, "/run/old": {"/run/old", 0o2775, 33, 4}, "/run/default": {"/run/default", 0o755, 0, 0},
		"/run/live": {"/run/live", 0o755, 0, 0}, "/run/live/deep": {"/run/live/deep", 0o755, 0, 0},
	}
	if !maps.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func FuzzTmpfiles(f *testing.F) {
	f.Add([]byte("d /run/web 0750 web adm -\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		out := map[string]folder{}
		parseTmpfiles(b, nil, nil, out)
		for p, one := range out {
			if p != one.path || !isPseudo(p) || one.mode&^0o7777 != 0 {
				t.Fatalf("accepts %+v as %q", one, p)
			}
		}
	})
}

func TestNameServiceModules(t *testing.T) {
	got := nssModules([]byte("passwd: files systemd # comment\nhosts:\tfiles mdns4_minimal [NOTFOUND = return] dns\n# group: ldap\nbad line\nnetgroup: ../x\n"))
	if want := map[string]bool{"files": true, "systemd": true, "mdns4_minimal": true, "dns": true}; !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
