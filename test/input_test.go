package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"srvfs/test/world"
)

// Wrong input is answered by a clear message and the documented exit code, and
// changes nothing.
func TestWrongInputOnTheSource(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	for _, c := range []struct {
		code       int
		text, line string
	}{
		{3, "did you mean nginx?", "srvd capture x --unit nginz --probe http://127.0.0.1/"},
		{3, "no-such-package", "srvd capture x --unit nginx --package no-such-package"},
		{3, "/no/such/path", "srvd capture x --unit nginx --include /no/such/path"},
		{3, "no-such-init", "srvd capture x --init no-such-init"},
		{3, "/no/such/root", "srvd capture x --unit nginx --root /no/such/root"},
		{2, "one of --unit, --init, --exec and --pid", "srvd capture x"},
		{2, "one of --unit, --init, --exec and --pid", "srvd capture x --unit nginx --exec /bin/true"},
		{2, "a name for the service", "srvd capture"},
		{2, "unknown flag", "srvd capture x --unti nginx"},
		{2, "unknown command", "srvd caputre"},
		{1, "service name", "srvd capture ../x --unit nginx"},
		{1, "gopher", "srvd capture x --unit nginx --probe gopher://127.0.0.1/"},
		{9, "status 404", "srvd capture x --unit nginx --timeout 2s --probe http://127.0.0.1/no-such-page"},
		{9, "nginx", "echo 'bogus;' > /etc/nginx/conf.d/bad.conf; srvd capture x --unit nginx --probe http://127.0.0.1/ || c=$?; rm /etc/nginx/conf.d/bad.conf; exit $c"},
		{9, "dying", "srvd capture x --exec '/bin/sh -c \"echo dying; exit 3\"' --timeout 2s --probe tcp://127.0.0.1:99"},
		{3, "mail", "srvd show mail"},
		{3, "/no/such/path", "srvd why web /no/such/path"},
		{1, "in use", "srvd serve --listen 127.0.0.1:7077"},
		{3, "zzzz", "srvd peers revoke zzzz"},
		{4, "needs root rights", "setpriv --reuid 33 --clear-groups srvd capture x --unit nginx"},
		{4, "lacks CAP_SYS_PTRACE", "setpriv --bounding-set -sys_ptrace srvd capture x --unit nginx"},
		{4, "lacks CAP_SYS_ADMIN", "setpriv --bounding-set -sys_admin srvd capture x --unit nginx"},
		{3, "no package database: name files", "mv /var/lib/dpkg /var/lib/away; srvd capture x --unit nginx --package nginx || c=$?; mv /var/lib/away /var/lib/dpkg; exit $c"},
		{6, "dpkg --audit", "cp /var/lib/dpkg/status /root/status; head -c 100000 /dev/urandom > /var/lib/dpkg/status; srvd capture x --unit nginx || c=$?; cp /root/status /var/lib/dpkg/status; exit $c"},
		{9, "which exist on the source and were left out: /etc/nginx/mime.types", "srvd capture x --unit nginx --probe http://127.0.0.1/ --exclude /etc/nginx/mime.types"},
		{2, "512M or 8G", "srvd capture x --unit nginx --scratch lots"},
		{9, "of which it may take 4.2 MB, and that is full", "srvd capture x --exec '/bin/sh -c \"cat /usr/sbin/nginx /usr/sbin/nginx /usr/sbin/nginx /usr/sbin/nginx > /var/lib/big; exec sleep 100\"' --scratch 4M --timeout 5s --probe tcp://127.0.0.1:99"},
		{1, "it starts a process of each@.service for each connection", `cd /etc/systemd/system; printf '[Socket]\nListenStream=98\nAccept=yes\n' > each.socket; srvd capture x --unit each.socket`},
		{1, "shut.socket:2: ListenStream=: \"nowhere\": neither a port", `cd /etc/systemd/system; printf '[Socket]\nListenStream=nowhere\n' > shut.socket; printf '[Service]\nExecStart=/bin/true\n' > shut.service; srvd capture x --unit shut.socket`},
		{9, "systemd can pass lazy.service the sockets of lazy.socket", `cd /etc/systemd/system; printf '[Socket]\nListenStream=99\n' > lazy.socket; printf '[Service]\nExecStart=/bin/sh -c "test -n $LISTEN_FDS"\n' > lazy.service; srvd capture x --unit lazy --timeout 2s --probe tcp://127.0.0.1:99`},
		{2, "--thaw", "srvd capture x --unit nginx --thaw true"},
	} {
		s.fails(s.source, c.code, c.text, c.line)
	}
	if out := s.on(s.source, "(mv /var/lib/dpkg /var/lib/away; srvd capture y --unit nginx --probe http://127.0.0.1/ --freeze true; mv /var/lib/away /var/lib/dpkg; srvd remove y) 2>&1"); !strings.Contains(out, "no package database: only what the service used") || !strings.Contains(out, "--freeze was not run") {
		t.Errorf("without a package database: %s", out)
	}
	if list := s.on(s.source, "srvd list --json"); strings.Contains(list, `"x"`) {
		t.Errorf("a failed capture was published: %s", list)
	}
	if left := must(s.source.Mounts("overlay"))(t); len(left) > 0 {
		t.Errorf("mounts are left on the source: %v", left)
	}
}

func TestWrongInputOnTheStandby(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	spec := s.source.Addr + "/web"
	s.fails(s.standby, 4, "srvd pair", "mkdir -p /srv/web; srvfs mount "+spec+" /srv/web")
	s.paired()
	s.on(s.standby, "mkdir -p /srv/full /srv/taken; touch /srv/full/x /srv/file; srvfs mount "+spec+" /srv/taken")
	for _, c := range []struct {
		code       int
		text, line string
	}{
		{3, "does not exist", "srvfs mount " + spec + " /srv/missing"},
		{1, "not empty", "srvfs mount " + spec + " /srv/full"},
		{1, "not a folder", "srvfs mount " + spec + " /srv/file"},
		{1, "already mounted", "srvfs mount " + spec + " /srv/taken"},
		{1, "state folder", "mkdir -p /var/lib/srvfs/store/x; srvfs mount " + spec + " /var/lib/srvfs/store/x"},
		{1, "state folder", "srvfs mount " + spec + " /var"},
		{3, "mail", "srvfs mount " + s.source.Addr + "/mail /srv/web"},
		{2, "HOST[:PORT]/SERVICE", "srvfs mount " + s.source.Addr + " /srv/web"},
		{2, "a mountpoint", "srvfs mount " + spec},
		{4, "srvd pair", "srvfs mount 10.77.0.99/web /srv/web"},
		{4, "srvd pair", "srvfs list 10.77.0.99"},
		{3, "srvfs status", "srvfs umount /srv/web"},
		{3, "mail", "srvfs stop mail"},
		{3, "mail", "srvfs remove mail"},
		{3, "mail", "srvfs run mail"},
		{3, "mail", "srvfs prefetch mail"},
		{3, "mail", "srvfs status mail"},
		{1, "token", "srvfs pair not-a-token"},
		{2, "--host-root", "srvfs status --host-root relative"},
		{2, "unknown mount option", "ln -sf /usr/local/sbin/srvfs /sbin/mount.fuse.srvfs; /sbin/mount.fuse.srvfs " + spec + " /srv/web -o bogus"},
		{4, "needs root rights", "setpriv --reuid 33 --clear-groups srvfs mount " + spec + " /srv/web"},
		{1, "/dev/fuse", "mv /dev/fuse /dev/fuse.away; srvfs mount " + spec + " /srv/web || c=$?; mv /dev/fuse.away /dev/fuse; exit $c"},
	} {
		s.fails(s.standby, c.code, c.text, c.line)
	}
	if got := s.on(s.standby, "cat /srv/taken/var/www/html/index.html"); got != page {
		t.Errorf("the view that was there shows %q", got)
	}
	s.on(s.standby, "srvfs umount /srv/taken")
	s.noResidue(s.standby)
}

// A token works once, in time, for the services that it names; a revoked peer
// reads nothing more.
func TestPairing(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	token := strings.TrimSpace(s.on(s.source, "srvd pair"))
	if strings.ContainsAny(token, " \n'\"$\\") {
		t.Errorf("a token that a shell minds: %q", token)
	}
	s.on(s.standby, "srvfs pair "+token)
	s.fails(s.standby, 4, "used", "srvfs pair "+token+" --state /tmp/other")
	late := strings.TrimSpace(s.on(s.source, "srvd pair --expires 1s; sleep 1.1"))
	s.fails(s.standby, 4, "expired", "srvfs pair "+late)
	s.fails(s.standby, 1, "token", "srvfs pair "+token[:len(token)-4]+"aaaa")

	// Another standby state, limited to another service.
	other := strings.TrimSpace(s.on(s.source, "srvd pair --service dns"))
	s.on(s.standby, "echo "+other+" | srvfs pair - --state /tmp/other")
	s.fails(s.standby, 4, "web", "mkdir -p /srv/web; srvfs mount --state /tmp/other "+s.source.Addr+"/web /srv/web")

	s.on(s.standby, "srvfs mount "+s.source.Addr+"/web /srv/web")
	peers := s.on(s.source, "srvd peers")
	id := ""
	for line := range strings.Lines(peers) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "paired" && strings.Contains(line, "(all)") {
			id = f[0]
		}
	}
	s.on(s.source, "srvd peers revoke "+id)
	s.fails(s.standby, 4, "", "srvfs list "+s.source.Addr)
	s.fails(s.standby, 1, "Input/output error", "cat /srv/web/usr/sbin/nginx > /dev/null")
	s.on(s.standby, "srvfs umount /srv/web")
}

// A file that changed since the capture is refused by name; a new capture has
// its new state.
func TestStale(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	s.paired()
	s.on(s.standby, "mkdir -p /srv/web /srv/new; srvfs mount "+s.source.Addr+"/web /srv/web")
	s.on(s.source, "echo changed > /var/www/html/index.html")
	s.fails(s.standby, 1, "Stale file handle", "cat /srv/web/var/www/html/index.html")
	if log := s.on(s.standby, "cat /var/lib/srvfs/daemon.log"); !strings.Contains(log, "/var/www/html/index.html") || !strings.Contains(log, "changed since the snapshot") {
		t.Errorf("the log does not name the stale file:\n%s", log)
	}
	s.on(s.source, "srvd capture web --unit nginx --probe http://127.0.0.1/")
	s.on(s.standby, "srvfs mount "+s.source.Addr+"/web /srv/new")
	if got := s.on(s.standby, "cat /srv/new/var/www/html/index.html"); got != "changed\n" {
		t.Errorf("the new snapshot shows %q", got)
	}
	if n := s.status("/srv/new").Sequence; n != 2 {
		t.Errorf("the new snapshot has sequence %d", n)
	}
	s.on(s.standby, "srvfs umount /srv/web; srvfs umount /srv/new")
}

// A full disk is told as such, leaves nothing wrong behind, and prefetch goes on
// when there is room.
func TestDiskFull(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	s.paired()
	s.on(s.standby, "mkdir -p /small; mount -t tmpfs -o size=3M tmpfs /small; cp -a /var/lib/srvfs/identity /var/lib/srvfs/sources /small/")
	s.fails(s.standby, 8, "no space left", "srvfs prefetch --state /small "+s.source.Addr+"/web")
	for line := range strings.Lines(s.on(s.standby, "cd /small/store/blobs && sha256sum *")) {
		if f := strings.Fields(line); len(f) != 2 || f[0] != f[1] {
			t.Errorf("a blob is not what its name says: %s", line)
		}
	}
	s.on(s.standby, "mount -o remount,size=300M /small && srvfs prefetch --state /small "+s.source.Addr+"/web")
}

// Blobs that were damaged on the disk are found before anyone reads them, and
// fetched again.
func TestDamagedBlobs(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	s.paired()
	spec := s.source.Addr + "/web"
	s.on(s.standby, "srvfs prefetch "+spec)
	s.await("the daemon has ended", func() bool { return !s.runs(s.standby, "srvfs") })
	digests := map[string]string{}
	for _, e := range s.entries() {
		digests[e.Path] = strings.TrimPrefix(e.Digest, "sha256:")
	}
	blobs := filepath.Join(s.standby.Root, "var/lib/srvfs/store/blobs")
	conf, exe, html := digests["/etc/nginx/nginx.conf"], digests["/usr/sbin/nginx"], digests["/var/www/html/index.html"]
	s.check(os.Truncate(filepath.Join(blobs, conf), 10))
	s.check(overwrite(filepath.Join(blobs, exe), 1<<19, "damage"))
	s.check(os.Remove(filepath.Join(blobs, html)))
	s.on(s.standby, "srvfs run "+spec)
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("the standby serves %q", got)
	}
	for _, d := range []string{conf, exe, html} {
		if out := s.on(s.standby, "sha256sum < /var/lib/srvfs/store/blobs/"+d); !strings.HasPrefix(out, d) {
			t.Errorf("blob %s holds %s", d, out)
		}
	}
	s.on(s.standby, "srvfs remove web")
	s.noResidue(s.standby)
}

func overwrite(path string, off int64, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), off)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("damage %s: %w", path, err)
	}
	return f.Close()
}
