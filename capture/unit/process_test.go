package unit

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"srvfs/manifest"
)

func TestFromProcess(t *testing.T) {
	root := world(t, map[string]string{
		"usr/bin/python3.11": "x", "usr/bin/python3": "-> python3.11", "usr/bin/busybox": "x", "usr/bin/httpd": "-> busybox", "usr/sbin/nginx": "x",
		"etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/opt/app:/bin/sh\n",
	})
	env := []string{"PATH=/usr/bin", "LANG=C", "APP_MODE=live", "SSH_TTY=/dev/pts/0", "SHLVL=1", "INVOCATION_ID=7"}
	u, info, err := FromProcess(root, Process{PID: 9, Exe: "/usr/bin/python3.11", Argv: []string{"python3", "/opt/app/server.py", "--port", "80"}, Env: env, Dir: "/opt/app", UID: 1000, GID: 1000, Groups: []uint32{4}, Umask: 0o027})
	if err != nil {
		t.Fatal(err)
	}
	valid(t, u)
	if got := u.Start[0].Argv; !slices.Equal(got, []string{"/usr/bin/python3", "/opt/app/server.py", "--port", "80"}) || u.Kind != manifest.Simple || info.Name != "python3" {
		t.Errorf("%v %v %+v", got, u.Kind, info)
	}
	if u.User.Name != "app" || u.User.UID != 1000 || u.Dir != "/opt/app" || u.Umask != 0o027 || !slices.Equal(u.User.Groups, []uint32{4}) {
		t.Errorf("%+v", u)
	}
	text := strings.Join(u.Env, " ")
	if !strings.Contains(text, "APP_MODE=live") || !strings.Contains(text, "LANG=C") || strings.Contains(text, "SSH_TTY") || strings.Contains(text, "INVOCATION") || strings.Contains(text, "SHLVL") {
		t.Errorf("environment %s", text)
	}

	u, _, err = FromProcess(root, Process{PID: 9, Exe: "/usr/bin/busybox", Argv: []string{"httpd", "-p", "80"}, Env: env, Dir: "/"})
	if err != nil || u.Start[0].Argv[0] != "/usr/bin/httpd" || u.Dir != "" {
		t.Errorf("by another name: %+v, %v", u, err)
	}
	u, _, err = FromProcess(root, Process{PID: 9, Exe: "/usr/sbin/nginx", Argv: []string{"relative/nginx"}})
	if err != nil || u.Start[0].Argv[0] != "/usr/sbin/nginx" {
		t.Errorf("by a relative name: %+v, %v", u, err)
	}
	for what, p := range map[string]Process{
		"restart the service": {PID: 9, Argv: []string{"nginx"}},
		"kernel thread":       {PID: 9, Exe: "/usr/sbin/nginx"},
		"name its unit":       {PID: 9, Exe: "/usr/sbin/nginx", Argv: []string{"nginx: master process /usr/sbin/nginx"}},
	} {
		if _, _, err := FromProcess(root, p); !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), what) {
			t.Errorf("%+v: %v", p, err)
		}
	}
}
