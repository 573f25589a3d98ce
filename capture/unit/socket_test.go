package unit

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"srvfs/manifest"
)

const webUnit = "[Service]\nExecStart=/usr/sbin/webd\nNonBlocking=yes\n"

func TestSockets(t *testing.T) {
	root := world(t, map[string]string{
		lib + "web.service":                                    webUnit,
		lib + "web@.service":                                   webUnit,
		lib + "lone.service":                                   webUnit,
		lib + "needy.service":                                  "[Unit]\nWants=needy.socket other.socket\n[Service]\nSockets=extra.socket none.socket\n" + webUnit,
		lib + "inetd@.service":                                 webUnit,
		lib + "inetd.service":                                  webUnit,
		lib + "inetd.socket":                                   "[Socket]\nListenStream=79\nAccept=yes\n",
		lib + "lone.socket":                                    "[Socket]\nListenStream=70\n",
		lib + "other.socket":                                   "[Socket]\nListenStream=71\n",
		lib + "needy.socket":                                   "[Socket]\nListenStream=72\nListenStream=\nListenStream=73\n",
		lib + "extra.socket":                                   "[Socket]\nListenStream=@%N-%p\nService=nobody.service\n",
		lib + "admin.socket":                                   "[Socket]\nService=web.service\nListenSequentialPacket=/run/%p\nPassCredentials=1\n",
		lib + "web@.socket":                                    "[Socket]\nListenStream=/run/web-%i\n",
		lib + "web.socket":                                     "[Unit]\nDescription=x\n[Socket]\nListenStream=80\nListenStream=127.0.0.1:81\nListenDatagram=[::1]:82\nListenStream=/run/web//sock\nListenFIFO=/run/fifo\nListenStream=vsock::83\nSocketMode=0660\nSocketUser=www\nSocketGroup=ssl\nDirectoryMode=0750\nBacklog=64\nMaxConnections=7\nSymlinks=/run/link\n[Install]\nWantedBy=sockets.target\n",
		"etc/systemd/system/web.socket.d/10.conf":              "[Socket]\nBindIPv6Only=ipv6-only\nReusePort=yes\nFreeBind=true\nFileDescriptorName=main\nListenDatagram=84\n",
		"etc/systemd/system/sockets.target.wants/web.socket":   "-> /" + lib + "web.socket",
		"etc/systemd/system/sockets.target.wants/admin.socket": "-> /" + lib + "admin.socket",
		"etc/systemd/system/sockets.target.wants/gone.socket":  "-> /" + lib + "gone.socket",
		"etc/systemd/system/sockets.target.wants/inetd.socket": "-> /" + lib + "inetd.socket",
	})
	main := manifest.Socket{Name: "main", Backlog: 64, UID: 33, GID: 40, Mode: 0o660, DirMode: 0o750, NonBlock: true, ReusePort: true, FreeBind: true}
	at := func(s manifest.Socket, network, addr string) manifest.Socket {
		s.Network, s.Address = network, addr
		return s
	}
	plain := func(name, network, addr string) manifest.Socket {
		return manifest.Socket{Name: name, Network: network, Address: addr, Backlog: 1<<31 - 1, Mode: 0o666, DirMode: 0o755, NonBlock: true}
	}
	admin := plain("admin.socket", "unixpacket", "/run/admin")
	admin.PassCred = true
	web := []manifest.Socket{
		at(main, "tcp6", ":80"), at(main, "tcp", "127.0.0.1:81"), at(main, "udp6", "[::1]:82"), at(main, "unix", "/run/web/sock"), at(main, "udp6", ":84"), admin,
	}
	for name, want := range map[string][]manifest.Socket{
		"web": web, "web.socket": web,
		"admin.socket": {admin, web[0], web[1], web[2], web[3], web[4]},
		"lone":         nil,
		"lone.socket":  {plain("lone.socket", "tcp", ":70")},
		"needy":        {plain("needy.socket", "tcp", ":73"), plain("extra.socket", "unix", "@extra-extra")},
		"inetd":        nil,
		"web@a.socket": {plain("web@a.socket", "unix", "/run/web-a")},
		"web@a":        nil,
	} {
		u, info, err := FromUnit(root, name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		valid(t, u)
		if !reflect.DeepEqual(u.Sockets, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, u.Sockets, want)
		}
		hint := map[string][]string{"lone": {"lone.socket"}, "web@a": {"web@a.socket"}}[name]
		if !slices.Equal(info.Sockets, hint) {
			t.Errorf("%s: hint %q", name, info.Sockets)
		}
		switch name {
		case "web":
			if got := strings.Join(info.Ignored, "\n"); !strings.Contains(got, "web.socket: ListenFIFO=/run/fifo") || !strings.Contains(got, "vsock::83: ") || !strings.Contains(got, "Symlinks=") || strings.Contains(got, "MaxConn") {
				t.Error(got)
			}
			if !slices.Contains(info.Files, "/etc/systemd/system/web.socket.d/10.conf") {
				t.Error(info.Files)
			}
		case "needy":
			if got := strings.Join(info.Ignored, "\n"); !strings.Contains(got, "Sockets=none.socket") {
				t.Error(got)
			}
		}
	}
	if _, _, err := FromUnit(root, "inetd.socket"); !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), "Accept=yes: it starts a process of inetd@.service") {
		t.Error(err)
	}
}

func TestSocketsThatAreWrong(t *testing.T) {
	for line, says := range map[string]string{
		"ListenStream=nowhere":      "neither a port",
		"ListenStream=127.0.0.1":    "neither a port",
		"ListenStream=70000":        "neither a port",
		"ListenSequentialPacket=80": "only unix sockets",
		"SocketMode=rw":             "octal",
		"SocketUser=nosuch":         "user",
		"SocketGroup=nosuch":        "group",
		"Backlog=many":              "number",
		"BindIPv6Only=no":           "none of default",
		"ReusePort=perhaps":         "neither yes nor no",
		"Accept=perhaps":            "neither yes nor no",
		"Service=web.socket":        "no service",
	} {
		root := world(t, map[string]string{lib + "web.service": webUnit, lib + "web.socket": "[Socket]\n" + line + "\n"})
		u, _, err := FromUnit(root, "web.socket")
		if !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), "web.socket:2: ") || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %+v, %v", line, u, err)
		}
	}
}
