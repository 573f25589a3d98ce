package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"srvfs/test/world"
)

// A service can be found through its unit, its SysV script or a command, on
// this host's root or on another: each snapshot runs on the standby.
func TestEveryWayToCapture(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.check(world.SourceRoot.Extract(s.ctx, filepath.Join(s.source.Root, "mnt/disk")))
	s.check(os.WriteFile(filepath.Join(s.source.Root, "mnt/disk/var/www/html/index.html"), []byte("from the dead disk\n"), 0o644))
	const probe = " -q --probe http://127.0.0.1/"
	s.on(s.source, "srvd capture script --init nginx"+probe)
	s.on(s.source, `srvd capture command --exec "nginx -g 'daemon off;'"`+probe)
	s.on(s.source, "srvd capture disk --root /mnt/disk --unit nginx.service"+probe)
	s.serve()
	s.paired()
	for name, want := range map[string]string{"script": page, "command": page, "disk": "from the dead disk\n"} {
		s.on(s.standby, "srvfs run "+s.source.Addr+"/"+name)
		if got := s.get(s.standby, "/"); got != want {
			t.Errorf("%s: the standby serves %q, want %q", name, got, want)
		}
		s.on(s.standby, "srvfs remove "+name)
	}
	s.noResidue(s.standby)

	// The same source gives the same tree: a capture is a function of it.
	roots := map[string]bool{}
	for range 3 {
		s.on(s.source, "srvd capture command --exec \"nginx -g 'daemon off;'\""+probe)
		roots[strings.TrimSpace(s.on(s.source, `srvd list --json | grep -A7 '"command"' | grep root_digest`))] = true
	}
	if len(roots) != 1 {
		t.Errorf("three captures of one state have the roots %v", roots)
	}
}

// --include and --exclude, what stays out by rule, and secrets.
func TestWhatGoesIn(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "mkdir -p /opt/data/cache /root/.ssh; echo a > /opt/data/a; echo b > /opt/data/cache/b; echo key > /root/.ssh/id_rsa")
	s.captured("--include /opt/data --exclude '/opt/data/cache/**'")
	in := map[string]string{}
	for _, e := range s.entries() {
		in[e.Path] = e.Class
	}
	for path, class := range map[string]string{
		"/opt/data/a": "user", "/usr/sbin/nginx": "traced", "/etc/nginx/mime.types": "traced", "/var/www/html/index.html": "traced",
		"/etc/nginx/fastcgi.conf": "", "/etc/passwd": "", "/etc/nsswitch.conf": "", "/lib64": "",
	} {
		if got, ok := in[path]; !ok || class != "" && got != class {
			t.Errorf("%s is in as %q, want %q", path, got, class)
		}
	}
	for _, path := range []string{"/opt/data/cache/b", "/root/.ssh/id_rsa", "/etc/shadow", "/run/nginx.pid", "/usr/share/doc/nginx", "/var/lib/dpkg/status"} {
		if class, ok := in[path]; ok {
			t.Errorf("%s is in, as %s", path, class)
		}
	}
	if out := s.on(s.source, "srvd show web --summary"); !strings.Contains(out, "traced") || !strings.Contains(out, "total") {
		t.Errorf("summary: %s", out)
	}
	// A service that listens on an address of its host finds it in the sandbox.
	s.on(s.source, "printf 'server { listen "+s.source.Addr+":8081; root /var/www/html; }' > /etc/nginx/conf.d/own.conf")
	s.on(s.source, "srvd capture own -q --unit nginx --probe http://"+s.source.Addr+":8081/")
}

// A source that is lost while the data comes has given everything else: the service
// starts, and only what was not yet here is missing.
func TestDataComesLast(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "cd /var/www/html; mkdir gallery; head -c 300000000 /dev/urandom > gallery/film; echo caption > gallery/caption")
	s.captured()
	if class := s.on(s.source, "srvd show web | grep gallery/film"); !strings.Contains(class, "data") {
		t.Errorf("srvd show: %s", class)
	}
	s.paired()
	ended := make(chan error, 1)
	go func() {
		_, err := s.standby.Shell(s.ctx, "srvfs prefetch "+s.source.Addr+"/web")
		ended <- err
	}()
	s.await("chunks of the film are on the standby", func() bool {
		entries, _ := os.ReadDir(s.standby.Path("/var/lib/srvfs/store/partial"))
		return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
			info, err := e.Info()
			return err == nil && info.Size() == 300_000_000
		})
	})
	s.lose()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), `among those of "data"`) {
		t.Fatalf("the prefetch of what its source no longer has: %v", err)
	}
	s.on(s.standby, "srvfs run "+s.source.Addr+"/web")
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("without its data's rest the standby serves %q", got)
	}
	missing := s.status("web").Content.Missing
	if missing.Files > 2 || missing.Bytes == 0 {
		t.Errorf("missing: %+v", missing)
	}
	s.on(s.standby, "srvfs remove web")
	s.noResidue(s.standby)
}

// What a service looks for in vain on a standby is in the next snapshot: by itself
// if it is the service's, and with --learn wherever it is.
func TestMissesHeal(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, `mkdir -p /extra/deep; echo outside > /extra/deep/other
sed -i 's#^\(\s*\)location / {#location /doc/ { alias /usr/share/doc/nginx-common/; } location /extra/ { alias /extra/; }\n&#' /etc/nginx/sites-available/default; nginx -t 2>&1
dpkg -L nginx-common | grep -q /usr/share/doc/nginx-common/copyright`)
	s.captured()
	s.paired()
	ask := func(path string) string {
		body, err := s.client.Get(s.ctx, "http://"+s.standby.Addr+path)
		if err != nil {
			return err.Error()
		}
		return body
	}
	s.on(s.standby, "srvfs run "+s.source.Addr+"/web")
	for _, path := range []string{"/doc/copyright", "/extra/deep/other", "/nowhere"} {
		if got := ask(path); !strings.Contains(got, "404") {
			t.Fatalf("%s is there before it was captured: %.200s", path, got)
		}
	}
	// The kernel asks for the first name that is not there, and no further.
	s.await("the source has noted what is its service's", func() bool {
		return slices.Contains(s.status("web").Missed, "/usr/share/doc")
	})
	if out := s.on(s.standby, "srvfs status web"); !strings.Contains(out, "/usr/share/doc: the source has it") || strings.Contains(out, "/extra") {
		t.Errorf("srvfs status: %s", out)
	}
	s.await("the source knows of both", func() bool {
		out := s.on(s.source, "srvd misses web")
		return strings.Contains(out, "/extra\n") && strings.Contains(out, "/usr/share/doc\n")
	})
	if out := s.on(s.source, "srvd misses web"); strings.Contains(out, "nowhere") || !strings.Contains(out, "outside") || !strings.Contains(out, "noted") {
		t.Errorf("srvd misses: %s", out)
	}
	const again = "srvd capture web --unit nginx --probe http://127.0.0.1/ "
	if out := s.on(s.source, again); !strings.Contains(out, "standbys had looked for") {
		t.Errorf("the next capture: %s", out)
	}
	if out := s.on(s.source, "srvd why web /usr/share/doc/nginx-common/copyright; srvd misses web"); !strings.Contains(out, "looked for in vain on the standby") || !strings.Contains(out, "/extra\n") || strings.Contains(out, "/usr/share/doc\n") {
		t.Errorf("the next snapshot: %s", out)
	}
	s.on(s.source, again+"--learn")
	if out, err := s.source.Shell(s.ctx, "srvd misses web"); err != nil || strings.Contains(out, "/extra") {
		t.Errorf("misses after --learn: %s, %v", out, err)
	}
	s.on(s.source, again) // what was learned stays in
	s.on(s.standby, "srvfs stop web; srvfs run --update --discard "+s.source.Addr+"/web")
	if got := ask("/extra/deep/other"); got != "outside\n" {
		t.Errorf("what was learned is not on the standby: %.200s", got)
	}
	if got := ask("/doc/copyright"); !strings.Contains(got, "nginx") || strings.Contains(got, "404") {
		t.Errorf("what was learned is not on the standby: %.200s", got)
	}
	s.on(s.standby, "srvfs remove web")
	s.noResidue(s.standby)
}

// A service that ends by itself is said to have failed, and can be run again; one
// that can't start says why and leaves nothing.
func TestServiceThatFails(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	s.paired()
	web := s.source.Addr + "/web"
	s.on(s.standby, "srvfs run "+web)
	s.fails(s.standby, 9, "Address already in use", "srvfs run "+web+" --name second")
	s.fails(s.standby, 3, "second", "srvfs stop second")
	s.fails(s.standby, 1, "running already", "srvfs run web")
	// Only the main process: a worker that died before it would be replaced.
	s.on(s.standby, `kill -KILL $(srvfs status --json web | sed -n 's/.*"pid": \([0-9]*\).*/\1/p' | head -n 1)`)
	s.await("the service has failed", func() bool { return s.status("web").State == "failed" })
	s.on(s.standby, "srvfs run web")
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("run again, the standby serves %q", got)
	}
	s.on(s.standby, "srvfs stop web")
	s.fails(s.standby, 1, "choose another name", "srvfs run "+s.source.Addr+"/other --name web")
	s.on(s.standby, "srvfs remove web")
	s.noResidue(s.standby)
}

// A package file names files too, where no package database does.
func TestPackageFile(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	dir := t.TempDir()
	const spec = "Name: extra\nVersion: 1\nRelease: 1\nSummary: extra\nLicense: none\nBuildArch: noarch\n%description\nExtra.\n%install\nmkdir -p %{buildroot}/opt/extra\necho as shipped > %{buildroot}/opt/extra/data\necho gone > %{buildroot}/opt/extra/removed\n%files\n/opt/extra\n"
	s.check(os.WriteFile(filepath.Join(dir, "extra.spec"), []byte(spec), 0o644))
	out, err := exec.CommandContext(s.ctx, "rpmbuild", "-bb", "--define", "_topdir "+dir, "--define", "_rpmdir "+dir, filepath.Join(dir, "extra.spec")).CombinedOutput()
	if err != nil {
		t.Fatalf("rpmbuild: %v\n%s", err, out)
	}
	s.check(s.source.Install(filepath.Join(dir, "noarch/extra-1-1.noarch.rpm"), "root/extra.rpm"))
	s.on(s.source, "mkdir -p /opt/extra; echo as installed > /opt/extra/data; echo no package > /root/bad.rpm")
	s.captured("--package /root/extra.rpm")
	in := map[string]string{}
	for _, e := range s.entries() {
		in[e.Path] = e.Class
	}
	if in["/opt/extra/data"] != "package" || in["/opt/extra/removed"] != "" {
		t.Errorf("data is in as %q, removed as %q", in["/opt/extra/data"], in["/opt/extra/removed"])
	}
	if why := s.on(s.source, "srvd why web /opt/extra/data"); !strings.Contains(why, "extra-1-1.noarch") {
		t.Errorf("why: %s", why)
	}
	s.fails(s.source, 1, "not an rpm package", "srvd capture x --unit nginx --package /root/bad.rpm")
	s.fails(s.source, 3, "no such file", "srvd capture x --unit nginx --package /root/none.rpm")
}

// A view is up after a few pages, however large the tree is.
func TestMountCostsTheSameForManyFiles(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "mkdir /opt/many; cd /opt/many; seq -f '%06.0f' 1 30000 | split -l 1 -a 5 -d - f")
	s.captured("--include /opt/many")
	s.paired()
	s.on(s.standby, "mkdir -p /srv/web")
	before := must(s.standby.Received())(t)
	// Without --host-root nothing looks for identical files in the background.
	s.on(s.standby, "srvfs mount --host-root '' "+s.source.Addr+"/web /srv/web")
	mount := must(s.standby.Received())(t) - before
	if got := strings.TrimSpace(s.on(s.standby, "ls /srv/web/opt/many | wc -l")); got != "30000" {
		t.Errorf("the view shows %s names", got)
	}
	all := must(s.standby.Received())(t) - before
	if mount > 400<<10 || all < 3*mount {
		t.Errorf("the mount moved %d bytes, with the listing of 30,000 names %d", mount, all)
	}
	if got := s.on(s.standby, "cat /srv/web/opt/many/f12345"); got != "012346\n" {
		t.Errorf("one of many files holds %q", got)
	}
	s.on(s.standby, "srvfs umount /srv/web")
}

// The service runs in namespaces of its own, as its own user, with the host's
// network, beside another of its kind.
func TestNamespacesAndUsers(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	s.paired()
	s.on(s.standby, "srvfs run "+s.source.Addr+"/web")
	s.on(s.source, `sed 's/80 default_server/8080 default_server/' -i /etc/nginx/sites-available/default; srvd capture second --exec "nginx -g 'daemon off;'" --probe http://127.0.0.1:8080/`)
	s.on(s.standby, "srvfs run "+s.source.Addr+"/second --name other")
	procs := must(s.standby.Processes())(t)
	link := func(pid int, ns string) string {
		return must(os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns)))(t)
	}
	var masters []int
	worker, daemon := 0, 0
	for pid, comm := range procs {
		status := string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))(t))
		switch {
		case comm == "srvfs" && strings.Contains(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)))(t)), "daemon"):
			daemon = pid
		case comm == "nginx" && strings.Contains(status, "Uid:\t0\t"):
			masters = append(masters, pid)
		case comm == "nginx" && strings.Contains(status, "Uid:\t33\t33\t33\t33"):
			worker = pid
		}
	}
	if len(masters) != 2 || worker == 0 || daemon == 0 {
		t.Fatalf("masters %v, worker %d, daemon %d of %v", masters, worker, daemon, procs)
	}
	for _, ns := range []string{"mnt", "pid", "uts", "ipc"} {
		if link(masters[0], ns) == link(daemon, ns) || link(masters[0], ns) == link(masters[1], ns) {
			t.Errorf("the services share a %s namespace", ns)
		}
	}
	if link(masters[0], "net") != link(daemon, "net") {
		t.Error("the service has another network than the host")
	}
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("web serves %q", got)
	}
	body, err := s.client.Get(s.ctx, "http://"+s.standby.Addr+":8080/")
	if err != nil || body != page {
		t.Errorf("other serves %q, %v", body, err)
	}
	s.on(s.standby, "srvfs stop web; srvfs remove other; srvfs remove web")
	s.noResidue(s.standby)
}

// What the administrator has changed in a package's files is marked.
func TestShowMarksWhatIsModified(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "echo '# changed' >> /etc/nginx/nginx.conf; echo '# changed' >> /etc/nginx/mime.types; touch /etc/nginx/fastcgi.conf")
	s.captured()
	modified := map[string]bool{}
	for _, e := range s.entries() {
		if e.Modified {
			modified[e.Path] = true
		}
	}
	if len(modified) != 2 || !modified["/etc/nginx/nginx.conf"] || !modified["/etc/nginx/mime.types"] {
		t.Errorf("modified: %v", modified)
	}
	if out := s.on(s.source, "srvd show web | grep modified"); strings.Count(out, "\n") != len(modified) || !strings.Contains(out, "modified  /etc/nginx/nginx.conf\n") {
		t.Errorf("srvd show web says:\n%s", out)
	}
}

// A process that nothing describes is started again as it runs: as its user, with
// its environment, by its command line.
func TestCaptureOfARunningProcess(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	const program = `mkdir -p /opt/app; useradd -r -d /opt/app app
cat > /opt/app/serve.pl <<'END'
use IO::Socket::INET; use POSIX;
my $l = IO::Socket::INET->new(LocalPort => 8081, Listen => 5, ReuseAddr => 1) or die $!;
while (my $c = $l->accept) { my $h = <$c>; my $b = "$ENV{GREETING} from uid $<\n"; print $c "HTTP/1.0 200 OK\r\nContent-Length: " . length($b) . "\r\n\r\n$b"; close $c }
END
cd /opt/app; GREETING=hello setpriv --reuid=app --regid=app --clear-groups perl serve.pl > /dev/null 2>&1 & echo $!`
	pid := strings.TrimSpace(s.on(s.source, program))
	s.check(s.source.Await(s.ctx, "127.0.0.1:8081"))
	s.on(s.source, "srvd capture app --pid "+pid+" --probe http://127.0.0.1:8081/")
	// One that goes into the background is started as that.
	s.on(s.source, `sed 's/8081/8082/; s/^my/exit if fork; POSIX::setsid(); open(my $p, ">", "pid"); print $p $$; close $p; my/' /opt/app/serve.pl > /opt/app/daemon.pl; cd /opt/app; GREETING=bye perl daemon.pl > /dev/null 2>&1`)
	s.check(s.source.Await(s.ctx, "127.0.0.1:8082"))
	s.on(s.source, "srvd capture background --pid $(cat /opt/app/pid) --probe http://127.0.0.1:8082/")
	s.fails(s.source, 3, "there is none with a program", "srvd capture x --pid 99999")
	s.fails(s.source, 1, "name its unit", "srvd capture x --pid $(cat /run/nginx.pid)")
	s.serve()
	s.paired()
	s.on(s.standby, "srvfs run "+s.source.Addr+"/app")
	uid := strings.TrimSpace(s.on(s.source, "id -u app"))
	body, err := s.client.Get(s.ctx, "http://"+s.standby.Addr+":8081/")
	if want := "hello from uid " + uid + "\n"; err != nil || body != want {
		t.Errorf("the standby serves %q, %v; want %q", body, err, want)
	}
	s.on(s.standby, "srvfs remove app; srvfs run "+s.source.Addr+"/background")
	if body, err := s.client.Get(s.ctx, "http://"+s.standby.Addr+":8082/"); err != nil || body != "bye from uid 0\n" {
		t.Errorf("the standby serves %q, %v", body, err)
	}
	s.on(s.standby, "srvfs remove background")
	s.noResidue(s.standby)
}

// What the running instance does rarely is learned by watching it.
func TestWatchLearnsWhatIsRare(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	const program = `mkdir -p /opt/app /opt/rare; echo seldom > /opt/rare/data; echo never > /media/other
cat > /opt/app/serve.pl <<'END'
use IO::Socket::INET;
my $l = IO::Socket::INET->new(LocalPort => 8081, Listen => 5, ReuseAddr => 1) or die $!;
while (my $c = $l->accept) { my $h = <$c>; my $b = "ok\n"; $b = qx(cat /opt/rare/data) if $h =~ /rare/; print $c "HTTP/1.0 200 OK\r\nContent-Length: " . length($b) . "\r\n\r\n$b"; close $c }
END
perl /opt/app/serve.pl > /dev/null 2>&1 & echo $!`
	pid := strings.TrimSpace(s.on(s.source, program))
	s.check(s.source.Await(s.ctx, "127.0.0.1:8081"))
	const capture = "srvd capture web --exec 'perl /opt/app/serve.pl' --probe http://127.0.0.1:8081/ "
	s.on(s.source, capture+"-q")
	if why, err := s.source.Shell(s.ctx, "srvd why web /opt/rare/data"); err == nil {
		t.Fatalf("what is rare is in without being watched: %s", why)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := s.source.Shell(s.ctx, "srvd capture web --pid "+pid+" --probe http://127.0.0.1:8081/ --watch 10s")
		ended <- err
	}()
	s.await("the watch has begun", func() bool { // a mark of a file system says so
		out, _ := s.source.Shell(s.ctx, "cat /proc/[0-9]*/fdinfo/* 2>/dev/null | grep -c '^fanotify sdev:' || true")
		return strings.TrimSpace(out) != "0"
	})
	if body, err := s.source.Get(s.ctx, "http://127.0.0.1:8081/rare"); err != nil || body != "seldom\n" {
		t.Fatalf("%q, %v", body, err)
	}
	s.on(s.source, "cat /media/other") // somebody else
	s.check(<-ended)
	if why := s.on(s.source, "srvd why web /opt/rare/data"); !strings.Contains(why, "while it was watched") {
		t.Errorf("why: %s", why)
	}
	s.fails(s.source, 3, "", "srvd why web /media/other")
	s.on(s.source, "kill "+pid)
	s.fails(s.source, 3, "start it first", "srvd capture x --exec 'perl /opt/app/serve.pl' --watch 1s")
}
