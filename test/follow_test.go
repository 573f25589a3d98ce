package test

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"srvfs/test/world"
)

// srvd follows what changes: a standby that comes later gets what the source has now.
func TestFollow(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "srvd capture web -q --unit nginx --probe http://127.0.0.1/ && srvd capture other -q --exec 'nginx -g \"daemon off;\"' --probe http://127.0.0.1/")
	_, log, err := s.source.Start(s.ctx, "srvd", "serve", "-v", "--follow")
	s.check(err)
	s.check(s.source.Await(s.ctx, "127.0.0.1:7077"))
	s.paired()

	s.await("both services are watched", func() bool { return strings.Count(s.on(s.source, "srvd status"), "  watched\n") == 2 })
	// Nothing has changed since the capture, whatever the running service logs: the
	// first snapshot that comes is of the first change.
	s.get(s.source, "/")
	for n, change := range []string{
		"echo changed > /var/www/html/index.html",
		"echo new > /var/www/html/new.html",
		"mkdir -p /var/www/html/deep/er && echo x > /var/www/html/deep/er/page.html",
		"mv /var/www/html/deep /var/www/html/moved",
		"ln /var/www/html/new.html /var/www/html/link.html && echo more >> /var/www/html/link.html",
		"chmod 600 /var/www/html/new.html",
		"rm -r /var/www/html/moved",
		"printf 'server { listen 8081; root /var/www/html; }' > /etc/nginx/conf.d/more.conf",
	} {
		before := s.sequence("web")
		if n == 0 && before != 1 {
			t.Errorf("snapshot %d was published, and nothing had changed", before)
		}
		s.on(s.source, change)
		s.await("a snapshot after "+change, func() bool { return s.sequence("web") > before })
	}
	// The last one may have come in two, as it was made: the view is what counts.
	const look = "cd /mnt/view/var/www/html && find . | sort | tr '\\n' ' ' && cat index.html link.html && stat -c '%a %h' new.html && cat /mnt/view/etc/nginx/conf.d/more.conf"
	const want = ". ./index.html ./index.nginx-debian.html ./link.html ./new.html changed\nnew\nmore\n600 2\nserver { listen 8081; root /var/www/html; }"
	s.await("the view is what the source has", func() bool {
		out, err := s.standby.Shell(s.ctx, "mkdir -p /mnt/view; srvfs mount "+s.source.Addr+"/web /mnt/view && ("+look+"); c=$?; srvfs umount /mnt/view; exit $c")
		return err == nil && out == want
	})
	// A change may be seen in several steps, and then the first snapshots are kept no more.
	kept := s.kept("web")
	diff := s.on(s.source, fmt.Sprintf("srvd diff web@%d", kept[len(kept)-1]))
	if !strings.Contains(diff, "/etc/nginx/conf.d/more.conf") || strings.Contains(diff, "/var/log/nginx") {
		t.Errorf("since the oldest of %v:\n%s", kept, diff)
	}
	if out := s.on(s.source, "srvd why web /var/www/html/link.html"); !strings.Contains(out, "came into a folder") {
		t.Errorf("why: %s", out)
	}
	if s.sequence("other") < 2 {
		t.Error("the other service is not followed")
	}

	// A capture comes between, and is followed from then on.
	s.on(s.source, "srvd capture web -q --unit nginx --probe http://127.0.0.1/")
	before := s.sequence("web")
	s.on(s.source, "echo again > /var/www/html/index.html")
	s.await("a snapshot after the capture", func() bool { return s.sequence("web") > before })
	s.on(s.standby, "srvfs run "+s.source.Addr+"/web")
	if got := s.get(s.standby, "/"); got != "again\n" {
		t.Errorf("the standby serves %q", got)
	}
	s.on(s.standby, "srvfs remove web")
	s.noResidue(s.standby)
	if out := s.on(s.source, "srvd status"); !strings.HasPrefix(out, "serving on [::]:7077 since ") {
		t.Errorf("status: %s", out)
	}
	s.endProcess(s.source, "srvd", "TERM")
	if out := s.on(s.source, "srvd status"); !strings.HasPrefix(out, "nobody serves") || strings.Contains(out, "watched") {
		t.Errorf("status: %s", out)
	}
	if out := string(must(os.ReadFile(log))(t)); strings.Contains(out, "interrupted") || strings.Contains(out, "level=ERROR") {
		t.Errorf("srvd says:\n%s", out)
	}
}

// sequence is the number of the newest snapshot.
func (s *site) sequence(service string) uint64 {
	s.Helper()
	var list []struct {
		Service  string
		Sequence uint64
	}
	s.check(json.Unmarshal([]byte(s.on(s.source, "srvd list --json")), &list))
	for _, v := range list {
		if v.Service == service {
			return v.Sequence
		}
	}
	s.Fatalf("no service %s: %+v", service, list)
	return 0
}

// kept are the numbers of the snapshots of a service, the newest first.
func (s *site) kept(service string) (all []uint64) {
	s.Helper()
	for line := range strings.Lines(s.on(s.source, "srvd list "+service)) {
		if f := strings.Fields(line); f[0] == service {
			all = append(all, must(strconv.ParseUint(f[1], 10, 64))(s.T))
		}
	}
	if len(all) == 0 {
		s.Fatalf("no snapshot of %s is listed", service)
	}
	return all
}

// A standby that follows has what the source had a moment before it was lost.
func TestStandbyFollows(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "srvd capture web -q --unit nginx --probe http://127.0.0.1/")
	_, _, err := s.source.Start(s.ctx, "srvd", "serve", "--follow")
	s.check(err)
	s.check(s.source.Await(s.ctx, "127.0.0.1:7077"))
	s.paired()
	s.on(s.standby, "srvfs follow "+s.source.Addr+"/web")
	caughtUp := func(what string) {
		t.Helper()
		newest := s.sequence("web")
		s.await(what, func() bool {
			st := s.status("web")
			return st.Sequence >= newest && st.Content.Detached && st.Reason == ""
		})
	}
	caughtUp("the first snapshot is here")
	for i := range 5 {
		before := s.sequence("web")
		s.on(s.source, fmt.Sprintf("echo %d > /var/www/html/index.html; head -c 700000 /dev/urandom > /var/www/html/large%d", i, i))
		s.await("it is published", func() bool { return s.sequence("web") > before })
		caughtUp("and is here")
	}
	kept := s.kept("web")
	if out := s.on(s.standby, fmt.Sprintf("srvfs diff web@%d", kept[len(kept)-1])); !strings.Contains(out, "/var/www/html/large4") { // by its name here, though it never ran
		t.Errorf("diff:\n%s", out)
	}
	if out := s.on(s.standby, "timeout --preserve-status -s INT 2.5 srvfs status --watch"); strings.Count(out, "followed") < 2 || !strings.Contains(out, "/web") {
		t.Errorf("status --watch:\n%s", out)
	}
	// The daemon is killed, and goes on where it was.
	s.endProcess(s.standby, "srvfs", "KILL")
	before := s.sequence("web")
	s.on(s.source, "echo last > /var/www/html/index.html")
	s.await("it is published", func() bool { return s.sequence("web") > before })
	caughtUp("and is here after the daemon was killed")
	s.await("the page is", func() bool {
		out, err := s.standby.Shell(s.ctx, "mkdir -p /mnt/v; srvfs mount "+s.source.Addr+"/web /mnt/v && cat /mnt/v/var/www/html/index.html; c=$?; srvfs umount /mnt/v; exit $c")
		return err == nil && out == "last\n"
	})
	caughtUp("all is here")

	// What comes after srvd is gone does not.
	s.lose()
	s.await("the loss is noticed", func() bool { return s.status("web").Reason != "" })
	s.on(s.standby, "srvfs run "+s.source.Addr+"/web")
	if got := s.get(s.standby, "/"); got != "last\n" {
		t.Errorf("the standby serves %q", got)
	}
	s.on(s.standby, "srvfs unfollow web")
	s.fails(s.standby, 3, "not followed here", "srvfs unfollow web")
	s.fails(s.standby, 2, "the newest", "srvfs follow "+s.source.Addr+"/web@3")
	s.on(s.standby, "srvfs remove web")
	s.noResidue(s.standby)
}

// A database is followed too, each time as of one moment: a standby that follows has the
// rows that were written before its source was lost.
func TestServicesFollowedDatabase(t *testing.T) {
	s := bareSite(t, world.ServiceRoot("mariadb"), world.StandbyRoot)
	s.service = "mariadb"
	s.on(s.source, strings.Replace(jobNamed("mariadb").setup, "mysqladmin shutdown; wait", "", 1))
	s.on(s.source, "srvd capture mariadb -q "+jobNamed("mariadb").capture)
	_, log, err := s.source.Start(s.ctx, "srvd", "serve", "-v", "--follow")
	s.check(err)
	s.check(s.source.Await(s.ctx, "127.0.0.1:7077"))
	s.paired()
	s.on(s.standby, "srvfs follow "+s.source.Addr+"/mariadb")
	s.on(s.source, "mysql -e \"insert into shop.t values (2, 'written later')\"")
	// Each snapshot of the data is of a moment; that it is of one after the insert shows
	// in the log file that the insert was written to.
	const wal = "/var/lib/mysql/ib_logfile0"
	sum := func() string { return strings.Fields(s.on(s.source, "sha256sum "+wal))[0] }
	s.await("the standby has the rows", func() bool {
		want := sum()
		out, err := s.standby.Shell(s.ctx, "test -e /var/lib/srvfs/store/blobs/"+want)
		st := s.status("mariadb")
		return err == nil && out == "" && st.Content.Detached && st.Sequence == s.sequence("mariadb") && sum() == want
	})
	s.lose()
	s.on(s.standby, "srvfs run --host-root '' "+s.source.Addr+"/mariadb && srvfs unfollow mariadb")
	s.check(s.inRoot("mysql -N -e 'select name from shop.t order by id'", "written before\nwritten later\n"))
	if out := string(must(os.ReadFile(log))(t)); strings.Contains(out, "interrupted") || strings.Contains(out, "level=ERROR") {
		t.Errorf("srvd says:\n%s", out)
	}
	s.on(s.standby, "srvfs remove mariadb")
	s.noResidue(s.standby)
}

// A service whose packages or units change is captured anew: what an upgrade needs, and
// how it starts now, no change of a file of the snapshot tells.
func TestFollowCapturesAnew(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "srvd capture web -q --unit nginx --probe http://127.0.0.1/ --include /etc/hostname")
	_, log, err := s.source.Start(s.ctx, "srvd", "serve", "-v", "--follow")
	s.check(err)
	s.check(s.source.Await(s.ctx, "127.0.0.1:7077"))
	s.await("it is watched", func() bool { return strings.Contains(s.on(s.source, "srvd status"), "  watched\n") })
	says := func(text string) bool { return strings.Contains(string(must(os.ReadFile(log))(t)), text) }

	// A unit that can't start is told, and the snapshot stays.
	s.on(s.source, `mkdir -p /etc/systemd/system/nginx.service.d
printf '[Service]\nExecStartPre=/bin/false\n' > /etc/systemd/system/nginx.service.d/broken.conf`)
	s.await("the failure is told", func() bool {
		return strings.Contains(s.on(s.source, "srvd status"), "packages or units have changed, and capturing it anew failed")
	})
	if n := s.sequence("web"); n != 1 {
		t.Errorf("snapshot %d", n)
	}
	// One that can is captured, as it was asked for.
	s.on(s.source, `rm /etc/systemd/system/nginx.service.d/broken.conf
printf '[Service]\nEnvironment=GREETING=hello\n' > /etc/systemd/system/nginx.service.d/greeting.conf`)
	s.await("it is captured anew", func() bool { return s.sequence("web") > 1 && says("captured anew") })
	s.await("and followed", func() bool { return strings.Contains(s.on(s.source, "srvd status"), "  watched\n") })
	for _, path := range []string{"/etc/systemd/system/nginx.service.d/greeting.conf", "/etc/hostname"} {
		s.on(s.source, "srvd why web "+path)
	}

	// A package that the service comes to need is in the next snapshot, though nothing
	// tells that but the database.
	s.on(s.source, `mkdir -p /usr/share/more /var/lib/dpkg/info; echo more > /usr/share/more/file
sed -i '/^Package: nginx$/,/^$/ s/^Depends: /Depends: more, /' /var/lib/dpkg/status
printf 'Package: more\nStatus: install ok installed\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: more\n\n' >> /var/lib/dpkg/status
printf '/.\n/usr\n/usr/share\n/usr/share/more\n/usr/share/more/file\n' > /var/lib/dpkg/info/more.list`)
	s.await("it is captured anew", func() bool {
		out, err := s.source.Shell(s.ctx, "srvd why web /usr/share/more/file")
		return err == nil && strings.Contains(out, "package")
	})
	// By hand, with the name alone.
	before := s.sequence("web")
	s.on(s.source, "srvd capture web -q && srvd why web /etc/hostname")
	if n := s.sequence("web"); n <= before {
		t.Errorf("snapshot %d after a capture by hand, %d before", n, before)
	}
	s.fails(s.source, 2, "with none, and no other flag", "srvd capture web --probe http://127.0.0.1/")
	s.fails(s.source, 2, "there are web", "srvd capture -v nobody")
}

// What a change moves to a standby that follows is what has changed: a name among many,
// a page of a large file. SRVFS_NAMES and SRVFS_MB make it larger than it is every day.
func TestFollowMovesLittle(t *testing.T) {
	names, megabytes := setting(t, "SRVFS_NAMES", 20_000), setting(t, "SRVFS_MB", 48)
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, fmt.Sprintf("mkdir /var/www/html/many && cd /var/www/html/many && seq -f 'a name of the usual length %%.0f' %d | xargs -d '\\n' touch; head -c %dM /dev/urandom > ../large", names, megabytes))
	s.on(s.source, "srvd capture web -q --unit nginx --probe http://127.0.0.1/ --include /var/www/html")
	_, _, err := s.source.Start(s.ctx, "srvd", "serve", "--follow")
	s.check(err)
	s.check(s.source.Await(s.ctx, "127.0.0.1:7077"))
	s.paired()
	s.on(s.standby, "srvfs follow "+s.source.Addr+"/web")
	here := func(least uint64) {
		t.Helper()
		s.await("it is here", func() bool {
			st := s.status("web")
			return st.Sequence >= least && st.Sequence == s.sequence("web") && st.Content.Detached && st.Reason == ""
		})
	}
	here(1)
	s.on(s.source, "echo x > /var/www/html/index.html") // what the first change brings beside
	here(2)
	for _, c := range []struct {
		what, line string
		most       int64
	}{
		{"one name more", "touch '/var/www/html/many/a name more'", 64 << 10},
		{"one name less", "rm '/var/www/html/many/a name of the usual length 7000'", 64 << 10},
		{"one page of a large file", "printf changed | dd of=/var/www/html/large bs=4096 seek=5000 conv=notrunc status=none", 256<<10 + int64(megabytes)*4*32 + 64<<10},
	} {
		before, at := must(s.standby.Received())(t), s.sequence("web")
		s.on(s.source, c.line)
		here(at + 1)
		moved := must(s.standby.Received())(t) - before
		t.Logf("%s: %d bytes", c.what, moved)
		if moved > c.most {
			t.Errorf("%s moves %d bytes, want at most %d", c.what, moved, c.most)
		}
	}
	want := s.on(s.source, "sha256sum < /var/www/html/large")
	s.lose()
	if got := s.on(s.standby, "mkdir -p /mnt/v; srvfs mount "+s.source.Addr+"/web /mnt/v; sha256sum < /mnt/v/var/www/html/large; srvfs umount /mnt/v"); !strings.Contains(got, want) {
		t.Errorf("the large file is %s, want %s", got, want)
	}
}

// setting is a number from the environment.
func setting(t *testing.T, name string, usual int) int {
	t.Helper()
	if v := os.Getenv(name); v != "" {
		return must(strconv.Atoi(v))(t)
	}
	return usual
}

// Where the kernel does not report changes to srvd all files are looked at from time to
// time, and that is said.
func TestChangesThatNobodyReports(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "srvd capture web -q --unit nginx --probe http://127.0.0.1/")
	_, log, err := s.source.Start(s.ctx, "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "srvd", "serve", "-v", "--follow")
	s.check(err)
	s.check(s.source.Await(s.ctx, "127.0.0.1:7077"))
	s.await("it is said", func() bool {
		return strings.Contains(s.on(s.source, "srvd status"), "all files are looked at every 30s")
	})
	s.on(s.source, "echo changed > /var/www/html/index.html && mv /var/www/html/index.nginx-debian.html /var/www/html/other.html")
	s.await("the change is published", func() bool { return s.sequence("web") > 1 })
	if diff := s.on(s.source, "srvd diff web@1"); !strings.Contains(diff, "/var/www/html/index.html") || !strings.Contains(diff, "/var/www/html/other.html") {
		t.Errorf("since the first:\n%s", diff)
	}
	if out := string(must(os.ReadFile(log))(t)); strings.Count(out, "changes can't be watched") != 1 || strings.Contains(out, "level=ERROR") {
		t.Errorf("srvd says:\n%s", out)
	}
}
