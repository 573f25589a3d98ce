package test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"srvfs/test/world"
)

// The main job: capture, pair, run elsewhere, prefetch, lose the source, start
// again, also on a standby that has been switched off meanwhile; leave nothing.
func TestMainJob(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	running := s.on(s.source, "cat /run/nginx.pid")
	s.captured()
	if again := s.on(s.source, "cat /run/nginx.pid && kill -0 $(cat /run/nginx.pid)"); again != running {
		t.Errorf("the running instance was %s, is %s", running, again)
	}
	if why := s.on(s.source, "srvd why web /etc/nginx/mime.types"); !strings.Contains(why, "traced") || !strings.Contains(why, "package") {
		t.Errorf("why: %s", why)
	}
	if list := s.on(s.source, "srvd list"); !strings.Contains(list, "web") {
		t.Errorf("list: %s", list)
	}
	s.paired()
	if list := s.on(s.standby, "srvfs list "+s.source.Addr); !strings.Contains(list, "web") {
		t.Errorf("srvfs list: %s", list)
	}

	spec := s.source.Addr + "/web"
	out := s.on(s.standby, "srvfs run "+spec)
	for _, step := range []string{"snapshot", "view", "root", "unit nginx", "probes", "answers"} {
		if !strings.Contains(out, step) {
			t.Errorf("run does not tell of %q:\n%s", step, out)
		}
	}
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("the standby serves %q", got)
	}
	st := s.status("web")
	if st.State != "running" || st.Content.Detached || st.Content.Missing.Bytes == 0 || st.Content.Fetched.Bytes == 0 || st.Content.Local.Bytes == 0 {
		t.Errorf("status after the start: %+v", st)
	}
	if text := s.on(s.standby, "test -f "+st.LogFile+" && srvfs status web"); !strings.Contains(text, st.LogFile) {
		t.Errorf("status does not name the log file: %s", text)
	}

	s.on(s.standby, "srvfs prefetch web")
	if st := s.status("web"); !st.Content.Detached || st.Content.Missing.Bytes != 0 {
		t.Errorf("status after prefetch: %+v", st)
	}
	s.lose()
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("with the source lost, the standby serves %q", got)
	}
	s.on(s.standby, "srvfs stop web")
	s.await("nginx has ended", func() bool { return !s.runs(s.standby, "nginx") })
	s.on(s.standby, "srvfs run "+s.source.Addr+":7077/web") // the same source by another name
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("started again, the standby serves %q", got)
	}

	// A power cut: every process and every mount of the standby is gone.
	s.check(s.standby.Crash(s.ctx))
	s.standby = must(s.world.Reboot(s.ctx, s.standby))(t)
	s.on(s.standby, "srvfs run "+spec)
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("after a power cut, the standby serves %q", got)
	}

	s.on(s.standby, "srvfs remove web")
	s.noResidue(s.standby)
	if left := s.on(s.standby, "find /var/lib/srvfs/store -type f -path '*blobs*' | wc -l"); strings.TrimSpace(left) != "0" {
		t.Errorf("%s blobs are left after remove", left)
	}
}

// A standby with the same packages moves next to nothing.
func TestLocalFirst(t *testing.T) {
	s := newSite(t, world.SourceRoot)
	s.captured()
	s.paired()
	before := must(s.standby.Received())(t)
	s.on(s.standby, "srvfs run "+s.source.Addr+"/web")
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("the standby serves %q", got)
	}
	moved := must(s.standby.Received())(t) - before
	st := s.status("web")
	if st.Content.Fetched.Bytes > 200<<10 || moved > 1<<20 {
		t.Errorf("fetched %d bytes of content, received %d, of a service of %d local bytes", st.Content.Fetched.Bytes, moved, st.Content.Local.Bytes)
	}
	// Nothing that this host has with the same content was fetched.
	s.on(s.standby, "srvfs prefetch web")
	st = s.status("web")
	differ := int64(0)
	for _, e := range s.entries() {
		if e.Type != "file" || e.Size == 0 {
			continue
		}
		b, err := os.ReadFile(filepath.Join(s.standby.Root, e.Path))
		if sum := sha256.Sum256(b); err != nil || "sha256:"+hex.EncodeToString(sum[:]) != e.Digest {
			differ += e.Size
		}
	}
	if st.Content.Fetched.Bytes > differ {
		t.Errorf("fetched %d bytes, but only %d differ from this host's own files", st.Content.Fetched.Bytes, differ)
	}
}

// What the snapshot relies on is pinned: upgrading, deleting or overwriting the
// standby's own files takes nothing away.
func TestPinsOutliveThePackages(t *testing.T) {
	s := newSite(t, world.SourceRoot)
	s.captured()
	s.paired()
	s.on(s.standby, "srvfs prefetch "+s.source.Addr+"/web")
	s.lose()
	web := s.source.Addr + "/web"
	// Removed, as a package is; and replaced by rename, as an upgrade does.
	s.on(s.standby, "rm -rf /etc/nginx /usr/share/nginx /usr/sbin/nginx")
	s.on(s.standby, "lib=$(readlink -f /usr/lib/x86_64-linux-gnu/libssl.so.3); echo upgraded > $lib.new; mv $lib.new $lib")
	s.on(s.standby, "srvfs run "+web)
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("the standby serves %q", got)
	}
	s.on(s.standby, "srvfs stop web")
	// Overwritten in place, which no package manager does, but people do: a hard
	// link shares its inode with that. Nobody is shown the wrong bytes, and with
	// the source gone the library is named as what is missing.
	s.on(s.standby, "printf 'not a library' | dd of=$(readlink -f /usr/lib/x86_64-linux-gnu/libpcre2-8.so.0) conv=notrunc 2>/dev/null")
	s.fails(s.standby, 9, "libpcre2", "srvfs run web")
}

// Where the kernel has no data-only layers the view serves the content of the
// root too; the status says so.
func TestReadsByTheView(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	s.paired()
	web := s.source.Addr + "/web"
	s.fails(s.standby, 2, "--reads", "srvfs run --reads nobody "+web)
	for _, reads := range []string{"view", "kernel"} {
		s.on(s.standby, "srvfs run --reads "+reads+" "+web)
		if got := s.get(s.standby, "/"); got != page {
			t.Errorf("%s: the standby serves %q", reads, got)
		}
		st := s.status("web")
		if st.Reads != reads || (reads == "view") != (st.Upcalls["read"] > 0) {
			t.Errorf("status says that reads are served by %q, after %d upcalls; want %q", st.Reads, st.Upcalls["read"], reads)
		}
		if text := s.on(s.standby, "srvfs status web"); !strings.Contains(text, "served by the "+reads) {
			t.Errorf("status: %s", text)
		}
		s.on(s.standby, "srvfs stop web")
		s.await("the end of the daemon", func() bool { return !s.runs(s.standby, "srvfs") })
	}
}

// mount(8) and a line in fstab work through the mount helper.
func TestMountHelper(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	s.paired()
	s.on(s.standby, "ln -s /usr/local/sbin/srvfs /sbin/mount.fuse.srvfs; mkdir -p /srv/web /srv/two")
	s.on(s.standby, "mount -t fuse.srvfs "+s.source.Addr+"/web /srv/web")
	if got := s.on(s.standby, "cat /srv/web/var/www/html/index.html"); got != page {
		t.Errorf("the view shows %q", got)
	}
	if mounts := must(s.standby.Mounts("fuse.srvfs"))(t); len(mounts) != 1 || !strings.Contains(mounts[0], s.source.Addr+"/web") {
		t.Errorf("mount table: %v", mounts)
	}
	s.check(os.WriteFile(filepath.Join(s.standby.Root, "etc/fstab"), []byte(s.source.Addr+"/web /srv/two fuse.srvfs _netdev,nofail,x-systemd.automount 0 0\n"), 0o644))
	s.on(s.standby, "mount /srv/two")
	if got := s.on(s.standby, "cat /srv/two/var/www/html/index.html"); got != page {
		t.Errorf("the view from fstab shows %q", got)
	}
	s.fails(s.standby, 1, "Read-only file system", "touch /srv/web/x")
	s.on(s.standby, "umount /srv/web")
	s.on(s.standby, "srvfs umount /srv/two")
	s.noResidue(s.standby)
}
