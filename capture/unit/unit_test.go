package unit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

const passwd = "root:x:0:0:root:/root:/bin/bash\nwww:x:33:34:w:/srv/www:/bin/sh\n+::::::\nbroken:x:1\nbig:x:99999999999:1:::\nsystemd:x:500:501::/:/bin/false\n"

const groups = "root:x:0:\nweb:x:34:\nssl:x:40:postfix, www\nadm:x:4:root,www\nbad\n+:::\n"

// world makes a root with some programs and accounts, and the files given: text,
// or "-> target" for a link.
func world(t testing.TB, files map[string]string) *rootfs.Root {
	t.Helper()
	dir := t.TempDir()
	base := map[string]string{
		"etc/passwd": passwd, "etc/group": groups, "etc/hostname": "box.example.org\n", "etc/machine-id": "0123\n", "etc/os-release": "ID=debian\nVERSION_ID=\"12\"\n",
		"usr/sbin/webd": "x", "usr/bin/true": "x", "usr/bin/kill": "x", "usr/local/bin/tool": "x", "srv/www/x": "", "bin": "-> usr/bin", "sbin": "-> /usr/sbin",
	}
	for _, m := range []map[string]string{base, files} {
		for name, text := range m {
			p := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if target, ok := strings.CutPrefix(text, "-> "); ok {
				if err := os.Symlink(target, p); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	root, err := rootfs.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// valid fails if a snapshot can't carry u.
func valid(t testing.TB, u *manifest.Unit) {
	t.Helper()
	s := manifest.Snapshot{Service: "x", Sequence: 1, Root: manifest.Entry{Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: manifest.Sum(nil)}, Units: []manifest.Unit{*u}}
	if _, err := s.Encode(); err != nil {
		t.Errorf("%+v: %v", u, err)
	}
}

const lib = "usr/lib/systemd/system/"

func TestFromUnitWhole(t *testing.T) {
	root := world(t, map[string]string{
		lib + "web.service": `# a comment
[Unit]
Description=Web on %H
Requires=db.service network.target
ConditionPathExists=/etc/web
Documentation=man:web

[Service]
Type = forking
PIDFile=web.pid
Environment=A=1 "B=two words" 'C=x\ty' %p=no
Environment="D=%i%%" E=
EnvironmentFile=-/etc/default/none
EnvironmentFile=/etc/default/web
UnsetEnvironment=E B=other
ExecStartPre=-/usr/bin/true
ExecStartPre=+/sbin/webd -t \
  # a comment in between
  -q 'master on; x'
ExecStart=/gone
ExecStart=
ExecStart=webd -g "daemon on;" $OPTS ${A}x $$y "$B" $NONE tail
ExecStartPost=/bin/true $MAINPID ${MAINPID}
ExecReload=/bin/kill -HUP $MAINPID
ExecStop=/bin/kill -s QUIT $MAINPID
User=www
SupplementaryGroups=adm 77
WorkingDirectory=~
UMask=027
RuntimeDirectory=web web/sub
RuntimeDirectoryMode=0750
StateDirectory=deep/er
ConfigurationDirectory=web
TimeoutSec=1min 30s
TimeoutStopSec=infinity
PrivateTmp=yes
AmbientCapabilities=CAP_NET_BIND_SERVICE
Restart=on-failure

[Install]
WantedBy=multi-user.target
`,
		lib + "web.socket":   "[Socket]\nListenStream=80\n",
		"etc/default/web":    "# options\nOPTS=\"-a 'b c'\"\nA=file\n",
		"etc/default/locale": "LANG=de_DE.UTF-8\nOTHER=x\n",
	})
	u, info, err := FromUnit(root, "web")
	if err != nil {
		t.Fatal(err)
	}
	valid(t, u)
	want := &manifest.Unit{
		Name: "web.service", Kind: manifest.Forking,
		Pre:     []manifest.Command{{Argv: []string{"/usr/bin/true"}, MayFail: true}, {Argv: []string{"/sbin/webd", "-t", "-q", "master on; x"}, Privileged: true}},
		Start:   []manifest.Command{{Argv: []string{"/usr/sbin/webd", "-g", "daemon on;", "-a", "b c", "filex", "$y", "two", "words", "tail"}}},
		Post:    []manifest.Command{{Argv: []string{"/bin/true", "$MAINPID", "${MAINPID}"}}},
		PIDFile: "/run/web.pid", User: manifest.User{Name: "www", UID: 33, GID: 34, Groups: []uint32{4, 34, 40, 77}},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=de_DE.UTF-8", "HOME=/srv/www", "LOGNAME=www", "USER=www", "SHELL=/bin/sh",
			"RUNTIME_DIRECTORY=/run/web:/run/web/sub", "STATE_DIRECTORY=/var/lib/deep/er", "CONFIGURATION_DIRECTORY=/etc/web",
			"A=file", "B=two words", "C=x\ty", "web=no", "D=%", "OPTS=-a 'b c'"},
		Dir: "/srv/www", Umask: 0o027, Signal: 3, StartMax: int64(90 * time.Second), StopMax: forever,
		Folders: []manifest.Folder{{Path: "/run/web", Mode: 0o750, UID: 33, GID: 34}, {Path: "/run/web/sub", Mode: 0o750, UID: 33, GID: 34}, {Path: "/var/lib/deep", Mode: 0o755}, {Path: "/var/lib/deep/er", Mode: 0o755, UID: 33, GID: 34}, {Path: "/etc/web", Mode: 0o755}},
	}
	if !reflect.DeepEqual(u, want) {
		t.Errorf("got  %+v\nwant %+v", u, want)
	}
	wantInfo := Info{
		Name: "web.service", Description: "Web on box.example.org",
		Files:   []string{"/usr/lib/systemd/system/web.service", "/etc/default/locale", "/etc/default/web"},
		Ignored: []string{"Requires=db.service: other units are not started", "ConditionPathExists=/etc/web: not checked", "PrivateTmp=yes", "AmbientCapabilities=CAP_NET_BIND_SERVICE: capabilities are not given to the unit's user", "Restart=on-failure"},
		Sockets: []string{"web.socket"}, Folders: []string{"/var/lib/deep/er", "/etc/web"},
	}
	if !reflect.DeepEqual(info, wantInfo) {
		t.Errorf("got  %+v\nwant %+v", info, wantInfo)
	}
}

// TestService changes one thing of a small unit and looks at one thing.
func TestService(t *testing.T) {
	argv := func(u *manifest.Unit) string { return fmt.Sprintf("%q", u.Start[0].Argv) }
	for _, c := range []struct {
		text string
		get  func(*manifest.Unit) string
		want string
	}{
		{"", func(u *manifest.Unit) string { return string(u.Kind) }, "simple"},
		{"Type=exec", func(u *manifest.Unit) string { return string(u.Kind) }, "simple"},
		{"Type=notify-reload", func(u *manifest.Unit) string { return string(u.Kind) }, "notify"},
		{"BusName=org.x", func(u *manifest.Unit) string { return string(u.Kind) }, "simple"},
		{"Type=oneshot\nExecStart=/bin/true 2", func(u *manifest.Unit) string { return fmt.Sprint(len(u.Start), u.StartMax == forever) }, "2 true"},
		{"Type=oneshot\nExecStart=/bin/true 2 ; /bin/true 3 \\; ;", func(u *manifest.Unit) string { return fmt.Sprintf("%d %q", len(u.Start), u.Start[2].Argv) }, `3 ["/bin/true" "3" ";"]`},
		{"KillSignal=SIGQUIT", func(u *manifest.Unit) string { return fmt.Sprint(u.Signal) }, "3"},
		{"KillSignal=RTMIN+3", func(u *manifest.Unit) string { return fmt.Sprint(u.Signal) }, "37"},
		{"ExecStop=/bin/kill -WINCH ${MAINPID}", func(u *manifest.Unit) string { return fmt.Sprint(u.Signal, len(u.Stop)) }, "28 0"},
		{"ExecStop=/bin/kill $MAINPID", func(u *manifest.Unit) string { return fmt.Sprint(u.Signal, len(u.Stop)) }, "15 0"},
		{"ExecStop=/bin/kill -9 $MAINPID 7", func(u *manifest.Unit) string { return fmt.Sprint(u.Signal, len(u.Stop)) }, "15 1"},
		{"ExecStop=-/none $MAINPID", func(u *manifest.Unit) string { return fmt.Sprint(len(u.Stop)) }, "0"},
		{"TimeoutStartSec=0", func(u *manifest.Unit) string { return fmt.Sprint(u.StartMax == forever) }, "true"},
		{"WorkingDirectory=-/none", func(u *manifest.Unit) string { return u.Dir }, ""},
		{"WorkingDirectory=/srv/../srv/www/", func(u *manifest.Unit) string { return u.Dir }, "/srv/www"},
		{"WorkingDirectory=~", func(u *manifest.Unit) string { return u.Dir }, "/root"},
		{"PIDFile=/var/run/../run/x", func(u *manifest.Unit) string { return u.PIDFile }, "/var/run/x"},
		{"User=33", func(u *manifest.Unit) string { return fmt.Sprint(u.User) }, "{www 33 34 [4 34 40]}"},
		{"User=www\nGroup=adm", func(u *manifest.Unit) string { return fmt.Sprint(u.User) }, "{www 33 4 [4 40]}"},
		{"User=4242", func(u *manifest.Unit) string { return fmt.Sprint(u.User) }, "{ 4242 4242 [4242]}"},
		{"SupplementaryGroups=adm ssl", func(u *manifest.Unit) string { return fmt.Sprint(u.User) }, "{root 0 0 [4 40]}"},
		{"ExecStart=\nExecStart=@/bin/true other a", argv, `["/bin/true" "a"]`},
		{"ExecStart=\nExecStart=:/bin/true $A ${A}", argv, `["/bin/true" "$A" "${A}"]`},
		{"ExecStart=\nExecStart=-!/bin/true", func(u *manifest.Unit) string { return fmt.Sprint(u.Start[0].MayFail, u.Start[0].Privileged) }, "true true"},
		{"ExecStart=\nExecStart=!!/bin/true", func(u *manifest.Unit) string { return fmt.Sprint(u.Start[0].Privileged) }, "false"},
		{"ExecStart=\nExecStart=tool", argv, `["/usr/local/bin/tool"]`},
		{"ExecSearchPath=/nope:/usr/sbin\nExecStart=\nExecStart=webd", argv, `["/usr/sbin/webd"]`},
		{`ExecStart=` + "\n" + `ExecStart=/bin/true a"b c"d '' "\x41\101\u00e4\s\"" \;x`, nil, ""},
		{`ExecStart=` + "\n" + `ExecStart=/bin/true a"b c"d '' "\x41\101\u00e4\s\""`, argv, `["/bin/true" "ab cd" "" "AAä \""]`},
		{"ExecStart=\nExecStart=/bin/true %n %N %p %i|%j %t%S%C%L %H %l %m %o%w %u %% %Q", argv, `["/bin/true" "s.service" "s" "s" "|s" "/run/var/lib/var/cache/var/log" "box.example.org" "box" "0123" "debian12" "root" "%" "%Q"]`},
		{"PermissionsStartOnly=yes\nExecStartPre=/bin/true", func(u *manifest.Unit) string { return fmt.Sprint(u.Pre[0].Privileged, u.Start[0].Privileged) }, "true false"},
		{"StateDirectory=a:b", func(u *manifest.Unit) string { return fmt.Sprint(u.Folders) }, "[{/var/lib/a 493 0 0}]"},
		{"NoEquals\n=x\nUMask=", func(u *manifest.Unit) string { return fmt.Sprint(u.Umask) }, "18"},
		{"EnvironmentFile=/etc/e*.env\nEnvironment=A=0", func(u *manifest.Unit) string { return u.Env[len(u.Env)-1] }, "A=2"},
		// what can't be understood says where
		{"Type=strange", nil, ""}, {"UMask=999", nil, ""}, {"KillSignal=SIGNO", nil, ""}, {"TimeoutSec=soon", nil, ""}, {"User=nobody-here", nil, ""}, {"Group=none", nil, ""},
		{"WorkingDirectory=rel", nil, ""}, {"RuntimeDirectory=../etc", nil, ""}, {"RuntimeDirectory=/abs", nil, ""}, {"RuntimeDirectoryMode=9", nil, ""}, {"EnvironmentFile=/none", nil, ""},
		{"EnvironmentFile=rel", nil, ""}, {"ExecStartPre=/none", nil, ""}, {"ExecStart=/bin/true 'open", nil, ""}, {"ExecStart=/bin/true 2", nil, ""}, {"ExecStartPre=rel/x", nil, ""}, {"DynamicUser=perhaps", nil, ""}, {"[unclosed", nil, ""},
	} {
		root := world(t, map[string]string{lib + "s.service": "[Service]\nExecStart=/bin/true\n" + c.text + "\n", "etc/e1.env": "A=1\n", "etc/e2.env": "A=2\n"})
		u, _, err := FromUnit(root, "s")
		if c.get == nil {
			if !errors.Is(err, manifest.ErrInvalid) || errors.Is(err, manifest.ErrNotFound) || !strings.Contains(err.Error(), "s.service:") {
				t.Errorf("%q: %v, want a line and ErrInvalid", c.text, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		valid(t, u)
		if got := c.get(u); got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
}

func TestDynamicUser(t *testing.T) {
	files := map[string]string{lib + "dyn.service": "[Service]\nDynamicUser=yes\nStateDirectory=dyn\nExecStart=/bin/true\n"}
	root := world(t, files)
	u, info, err := FromUnit(root, "dyn")
	if err != nil || u.User.UID < dynamicMin || u.User.UID > dynamicMax || u.User.Name != "dyn" || len(info.Ignored) != 1 || u.Folders[0].Path != "/var/lib/dyn" {
		t.Errorf("%+v %+v %v", u, info, err)
	}
	files["var/lib/dyn"] = "-> private/dyn"
	files["var/lib/private/dyn/x"] = ""
	root = world(t, files)
	if err := os.Chown(root.Host("/var/lib/private/dyn"), 61200, 61200); err != nil {
		t.Fatal(err)
	}
	u, info, err = FromUnit(root, "dyn")
	want := []manifest.Folder{{Path: "/var/lib/private", Mode: 0o700}, {Path: "/var/lib/private/dyn", Mode: 0o755, UID: 61200, GID: 61200}}
	if err != nil || u.User.UID != 61200 || !slices.Equal(u.Folders, want) || !slices.Contains(u.Env, "STATE_DIRECTORY=/var/lib/dyn") {
		t.Errorf("%+v %+v %v", u, info, err)
	}
	valid(t, u)
}

func TestFindingUnits(t *testing.T) {
	simple := func(arg string) string { return "[Service]\nExecStart=/bin/true " + arg + "\n" }
	root := world(t, map[string]string{
		lib + "nginx.service": simple("lib"), "etc/systemd/system/nginx.service": simple("etc"),
		lib + "tmpl@.service": simple("%i %I %f %j"), lib + "tmpl@own.service": simple("own"),
		lib + "ssh.service": simple("%n"), "etc/systemd/system/sshd.service": "-> /lib/systemd/system/ssh.service", "lib": "-> usr/lib",
		"etc/systemd/system/alias@.service": "-> /lib/systemd/system/tmpl@.service",
		"etc/systemd/system/linked.service": "-> /opt/other.service", "opt/other.service": simple("%n"),
		lib + "masked.service": "-> /dev/null", lib + "empty.service": "", lib + "dangling.service": "-> none.service",
		lib + "loop.service": "-> loop2.service", lib + "loop2.service": "-> loop.service",
		lib + "a-b-c.service": simple(""), "etc/systemd/system/a-.service.d/20.conf": "[Service]\nUMask=001\n", lib + "a-b-.service.d/30.conf": "[Service]\nUMask=002\n",
		"run/systemd/system/a-b-c.service.d/10.conf": "[Service]\nUMask=003\nEnvironment=X=1\n", "etc/systemd/system/service.d/40.conf": "[Service]\nEnvironment=Y=1\n",
		lib + "ssh.service.d/x.conf": "[Service]\nUMask=004\n", "etc/systemd/system/sshd.service.d/x.conf": "[Service]\nUMask=005\n",
		lib + "tmpl@.service.d/x.conf": "[Service]\nUMask=006\n", "etc/systemd/system/tmpl@i.service.d/y.conf": "[Service]\nUMask=007\n",
		lib + "a-b-c.service.d/hidden.conf": "[Service]\nUMask=077\n", "etc/systemd/system/a-b-c.service.d/hidden.conf": "-> /dev/null",
		"etc/init.d/olddaemon":   "#!/bin/sh\n### BEGIN INIT INFO\n# Short-Description: old\n### END INIT INFO\n",
		lib + "umbrella.service": "[Service]\nType=oneshot\nExecStart=/bin/true\n", lib + "umbrella@.service": simple(""),
		lib + "mail.service": "[Service]\nType=oneshot\nExecStart=/bin/true\n", "run/systemd/generator/mail.service.wants/mail@-.service": "-> x",
		lib + "nothing.service": "[Service]\nType=oneshot\n",
	})
	for name, want := range map[string]string{
		"nginx": "[/bin/true etc]", "nginx.service": "[/bin/true etc]",
		`tmpl@a-b\x2dc`: `[/bin/true a-b\x2dc a/b-c /a/b-c tmpl]`, "tmpl@own": "[/bin/true own]", "alias@z": "[/bin/true z z /z tmpl]",
		"sshd": "[/bin/true ssh.service]", "linked": "[/bin/true linked.service]", "olddaemon": "[/etc/init.d/olddaemon start]",
	} {
		u, _, err := FromUnit(root, name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := fmt.Sprint(u.Start[0].Argv); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	for name, want := range map[string]uint32{"a-b-c": 0o002, "ssh": 0o004, "sshd": 0o004, "tmpl@i": 0o007, "tmpl@j": 0o006} {
		u, info, err := FromUnit(root, name)
		if err != nil || u.Umask != want {
			t.Errorf("%s: umask %o, %v, want %o (%q)", name, u.Umask, err, want, info.Files)
		}
		if name == "a-b-c" && (!slices.Contains(u.Env, "X=1") || !slices.Contains(u.Env, "Y=1") || len(info.Files) != 5) {
			t.Errorf("%q %q", u.Env, info.Files)
		}
	}
	for name, want := range map[string]string{"umbrella": "umbrella@.service", "mail": "mail@-.service"} {
		if _, info, err := FromUnit(root, name); err != nil || !slices.Equal(info.Instances, []string{want}) {
			t.Errorf("%s: %q %v", name, info.Instances, err)
		}
	}
	for name, want := range map[string]struct {
		err  error
		text string
	}{
		"nginz": {manifest.ErrNotFound, "did you mean nginx?"}, "xyzzy": {manifest.ErrNotFound, "unit xyzzy.service in " + root.Path() + ": not found"}, "dangling": {manifest.ErrNotFound, ""},
		"oldaemon": {manifest.ErrNotFound, "did you mean olddaemon?"}, "masked": {manifest.ErrInvalid, "masked by"}, "empty": {manifest.ErrInvalid, "masked by"}, "tmpl@": {manifest.ErrInvalid, "name an instance"},
		"web.socket": {manifest.ErrNotFound, "unit web.socket in"}, "web.timer": {manifest.ErrInvalid, "only a .service, or a .socket"}, "../x": {manifest.ErrInvalid, ""}, "": {manifest.ErrInvalid, ""}, "@x": {manifest.ErrInvalid, ""}, "loop": {manifest.ErrInvalid, ""}, "nothing": {manifest.ErrInvalid, "has no ExecStart="},
	} {
		if _, _, err := FromUnit(root, name); !errors.Is(err, want.err) || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%q: %v, want %v with %q", name, err, want.err, want.text)
		}
	}
}

func TestFromInit(t *testing.T) {
	root := world(t, map[string]string{
		"etc/init.d/old": "#!/bin/sh\n# pidfile: /var/run/./old.pid\n### BEGIN INIT INFO\n# Provides: old\n# Short-Description: the old way\n### END INIT INFO\nPIDFILE=/run/other\n",
		"etc/init.d/var": "#!/bin/sh\nNAME=\"var\" # its name\nDIR='/run'\nexport PIDFILE=${DIR}/$NAME.pid\nPIDFILE=/later\n",
		"etc/init.d/odd": "#!/bin/sh\nPIDFILE=$(mktemp)\npidfile=/run/$UNSET\nPID_FILE=`x`\n", "etc/default/old": "A=1\n", "opt/script": "#!/bin/sh\n",
	})
	if err := os.WriteFile(root.Host("/etc/init.d/README"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	u, info, err := FromInit(root, "old")
	if err != nil {
		t.Fatal(err)
	}
	valid(t, u)
	if u.Kind != manifest.Forking || fmt.Sprint(u.Start, u.Stop) != "[{[/etc/init.d/old start] false false}] [{[/etc/init.d/old stop] false false}]" || u.PIDFile != "/var/run/old.pid" || !slices.Contains(u.Env, "SYSTEMCTL_SKIP_REDIRECT=1") {
		t.Errorf("%+v", u)
	}
	if info.Name != "old" || info.Description != "the old way" || !slices.Equal(info.Files, []string{"/etc/init.d/old", "/etc/default/old"}) {
		t.Errorf("%+v", info)
	}
	for script, want := range map[string]string{"var": "/run/var.pid", "odd": "", "/opt/script": ""} {
		if u, _, err := FromInit(root, script); err != nil || u.PIDFile != want {
			t.Errorf("%s: %+v %v, want %q", script, u, err, want)
		}
	}
	for script, want := range map[string]error{"README": manifest.ErrNotFound, "odl": manifest.ErrNotFound, "/none": manifest.ErrNotFound, "a/b": manifest.ErrInvalid} {
		if _, _, err := FromInit(root, script); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", script, err, want)
		}
	}
}

func TestFromExec(t *testing.T) {
	root := world(t, map[string]string{"etc/locale.conf": "LC_ALL=C.UTF-8\n"})
	u, info, err := FromExec(root, []string{"webd", "-x", "a b"})
	if err != nil {
		t.Fatal(err)
	}
	valid(t, u)
	if u.Kind != manifest.Simple || !slices.Equal(u.Start[0].Argv, []string{"/usr/sbin/webd", "-x", "a b"}) || u.User.Name != "root" || !slices.Contains(u.Env, "LC_ALL=C.UTF-8") || info.Name != "webd" {
		t.Errorf("%+v %+v", u, info)
	}
	for _, c := range []struct {
		argv []string
		want error
	}{{nil, manifest.ErrInvalid}, {[]string{""}, manifest.ErrInvalid}, {[]string{"none"}, manifest.ErrNotFound}, {[]string{"/none"}, manifest.ErrNotFound}, {[]string{"./x"}, manifest.ErrInvalid}, {[]string{"/etc"}, os.ErrPermission}} {
		if _, _, err := FromExec(root, c.argv); !errors.Is(err, c.want) {
			t.Errorf("%q: %v, want %v", c.argv, err, c.want)
		}
	}
}

// TestHostUnits reads every unit of this host: each must be understood, or
// refused for one of the known reasons.
func TestHostUnits(t *testing.T) {
	root, err := rootfs.New("/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	read := 0
	for _, n := range known(root) {
		u, info, err := FromUnit(root, n)
		if err != nil {
			ok := slices.ContainsFunc([]string{"is a template", "is masked", "has no ExecStart", "program "}, func(s string) bool { return strings.Contains(err.Error(), s) })
			if !ok || !errors.Is(err, manifest.ErrInvalid) {
				t.Errorf("%s: %v", n, err)
			}
			continue
		}
		read++
		valid(t, u)
		if info.Name == "" || len(info.Files) == 0 {
			t.Errorf("%s: %+v", n, info)
		}
	}
	if read < 10 {
		t.Errorf("only %d units on this host", read)
	}
}
