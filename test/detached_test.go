package test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"srvfs/test/world"
)

// What is detached is that to the last byte: it is verified, becomes a folder of plain
// files, and runs without source, FUSE and daemon.
func TestDetached(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	s.paired()
	web := s.source.Addr + "/web"

	s.fails(s.standby, 1, "is not detached", "srvfs run "+web+" --no-fuse")
	s.fails(s.standby, 1, "`srvfs prefetch "+web+"@1` first", "srvfs run "+web+" --no-fuse")
	if out := s.on(s.standby, "srvfs prefetch "+web+" --verify"); !strings.Contains(out, "verified: ") || !strings.Contains(out, "; detached: ") {
		t.Errorf("prefetch --verify: %s", out)
	}

	// A folder of plain files is what the view shows, and with links too.
	s.on(s.standby, "srvfs export "+web+" -o dir:/srv/plain && srvfs export "+web+"@1 -o dir:/srv/linked --link && mkdir /mnt/v && srvfs mount "+web+" /mnt/v")
	const list = "find . -type d -printf '%p %m %U:%G %T@ %n\\n' | sort; find . ! -type d -printf '%p %y %m %U:%G %T@ %s %l\\n' | sort; find . -type f | sort | xargs -d '\\n' sha256sum"
	shown := s.on(s.standby, "cd /mnt/v && "+list)
	for _, dir := range []string{"/srv/plain", "/srv/linked"} {
		if got := s.on(s.standby, "cd "+dir+" && "+list); got != shown || len(got) < 10_000 {
			t.Errorf("%s differs from the view: %d and %d bytes of list", dir, len(got), len(shown))
		}
	}
	s.on(s.standby, "srvfs umount /mnt/v")
	s.fails(s.standby, 1, "not empty", "srvfs export "+web+" -o dir:/srv/plain")
	s.fails(s.standby, 2, "-o dir:FOLDER", "srvfs export "+web+" -o /srv/other --link")
	s.fails(s.standby, 2, "-o dir:FOLDER", "srvfs export "+web+" -o dir: --compact")
	s.on(s.standby, "chroot /srv/plain /usr/sbin/nginx -v")

	s.lose()
	s.on(s.standby, "srvfs run "+web+" --no-fuse")
	s.served("without FUSE")
	st := s.status("web")
	if st.Reads != "kernel" || !st.Content.Detached || len(st.Units) != 1 {
		t.Errorf("status: %+v", st)
	}
	if mounts := s.mountsOf(st.Units[0].PID); !strings.Contains(mounts, " - overlay ") || strings.Contains(mounts, "fuse") {
		t.Errorf("the service's mounts:\n%s", mounts)
	}
	for range 2 { // the daemon that took over is killed too
		s.endProcess(s.standby, "srvfs", "KILL")
		s.served("with the daemon killed")
		s.on(s.standby, "srvfs --deadline 1s status") // starts the next
		now := s.status("web")
		if now.State != "running" || len(now.Units) != 1 || now.Units[0].PID != st.Units[0].PID {
			t.Errorf("the next daemon says: %+v", now)
		}
	}
	if out := s.on(s.standby, "srvfs status web"); !strings.Contains(out, "goes on if the daemon is killed") {
		t.Errorf("status:\n%s", out)
	}
	s.on(s.standby, "srvfs stop web")
	if s.runs(s.standby, "nginx") {
		t.Error("nginx runs after a stop")
	}
	// Killed in the middle of a start, it is begun anew, or goes on if it was ready.
	for _, step := range []string{"snapshot", "tree", "root", "unit ", "probes"} {
		_, log, err := s.standby.Start(s.ctx, "srvfs", "run", "web", "--no-fuse")
		s.check(err)
		s.await("the step "+step, func() bool { return strings.Contains("\n"+string(must(os.ReadFile(log))(t)), "\n"+step) })
		s.endProcess(s.standby, "srvfs", "KILL")
		s.on(s.standby, "srvfs --deadline 1s run web --no-fuse || srvfs status web | grep '^service .*running'")
		s.served("after a kill at " + step)
		s.on(s.standby, "srvfs stop web")
		if s.runs(s.standby, "nginx") {
			t.Errorf("killed at %s: nginx runs after a stop", step)
		}
	}
	// It stands on the same snapshot with a view and without.
	s.on(s.standby, "srvfs run web")
	s.served("with a view")
	s.on(s.standby, "srvfs stop web && srvfs run web --no-fuse")
	s.served("without one again")

	// What is damaged is named, and nobody has it any more.
	blob := "/var/lib/srvfs/store/blobs/" + s.digest("/var/www/html/index.html")
	s.on(s.standby, "chmod 600 "+blob+" && printf x | dd of="+blob+" conv=notrunc status=none")
	s.fails(s.standby, 6, "/var/www/html/index.html: ", "srvfs prefetch web --verify")
	if st := s.status("web"); st.Content.Detached || st.Content.Missing.Files != 1 || st.Content.Missing.Bytes != int64(len(page)) {
		t.Errorf("with a file lost: %+v", st.Content)
	}
	s.on(s.standby, "srvfs stop web")
	s.fails(s.standby, 1, "1 file, "+fmt.Sprint(len(page))+" B", "srvfs run web --no-fuse")
	s.on(s.standby, "cp /srv/plain/var/www/html/index.html "+blob) // it is what its name says

	// Without data-only layers there are copies.
	s.await("the daemon has ended", func() bool { return !s.runs(s.standby, "srvfs") })
	s.on(s.standby, "srvfs --reads view run "+web+" --name copy --no-fuse")
	s.served("from copies")
	if st := s.status("copy"); st.Reads != "disk" {
		t.Errorf("status: %+v", st)
	}
	s.endProcess(s.standby, "srvfs", "KILL")
	s.served("from copies, with the daemon killed")
	s.on(s.standby, "srvfs remove copy && srvfs remove web && rm -rf /srv/plain /srv/linked")
	s.noResidue(s.standby)
}

// served fetches the page from the standby.
func (s *site) served(when string) {
	s.Helper()
	if got := s.get(s.standby, "/"); got != page {
		s.Errorf("%s it serves %q", when, got)
	}
}

// mountsOf returns the mount table of a process.
func (s *site) mountsOf(pid int) string {
	s.Helper()
	return s.on(s.standby, fmt.Sprintf("cat /proc/%d/mountinfo", pid))
}

// digest returns the hex digits of a file's digest, as the source had it.
func (s *site) digest(path string) string {
	s.Helper()
	return strings.Fields(s.on(s.standby, "sha256sum /srv/plain"+path))[0]
}

// A mail server and a database, which write, do their job without FUSE, and go on when the
// daemon is killed.
func TestServicesWithoutFuse(t *testing.T) {
	for _, name := range []string{"postfix", "mariadb"} {
		t.Run(name, func(t *testing.T) {
			j := jobNamed(name)
			s := bareSite(t, world.ServiceRoot(name), world.StandbyRoot)
			s.service = name
			if j.prepare != nil {
				j.prepare(s)
			}
			s.on(s.source, j.setup)
			s.on(s.source, "srvd capture "+name+" -q "+j.capture)
			s.serve()
			s.paired()
			of := s.source.Addr + "/" + name
			s.on(s.standby, "srvfs prefetch "+of)
			s.check(s.source.Crash(s.ctx))
			s.on(s.standby, "srvfs run "+of+" --no-fuse")
			s.transaction(j, "without FUSE")
			s.endProcess(s.standby, "srvfs", "KILL")
			s.on(s.standby, "srvfs --deadline 1s status")
			s.transaction(j, "with the daemon killed")
			s.on(s.standby, "srvfs stop "+name+" && srvfs run "+name)
			s.transaction(j, "with a view, over what was written without")
			s.on(s.standby, "srvfs remove "+name)
			s.noResidue(s.standby)
		})
	}
}
