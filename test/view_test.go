package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/test/world"
)

// odd makes one of everything that a file system can hold.
const odd = `
mkdir -p /opt/odd/empty /opt/odd/private; cd /opt/odd
printf data > file; ln file hard; ln file private/hard; ln -s file soft; ln -s /does/not/exist dangling; ln -s ../../etc/passwd outside
printf suid > suid; chown 33:44 suid; chmod 6755 suid
mknod zero c 1 5; mknod disk b 8 0; mkfifo pipe; chmod 640 pipe
: > empty-file; truncate -s 3M sparse; printf end >> sparse
head -c 5000000 /dev/urandom > big; head -c 262144 /dev/urandom > one-chunk; head -c 262145 /dev/urandom > one-more
printf x > "$(printf 'new\nline')"; printf x > "$(printf '\377\376')"; printf x > 'sp ace'; printf x > "$(printf 'a%.0s' $(seq 255))"
setfattr -n user.note -v hello file; setfattr -n trusted.mark -v t empty
cp /bin/true capable; setcap cap_net_bind_service=ep capable
setfacl -m u:33:rw file; setfacl -d -m g:44:rx private; chmod 1777 empty; chmod 700 private
touch -d '1969-07-20 20:17:40.123456789 UTC' file; touch -h -d '2033-05-18 03:33:20.000000001 UTC' soft; touch -d '2001-02-03 04:05:06.7 UTC' private
`

// The view shows the source's files byte for byte and attribute for attribute.
func TestViewEqualsSource(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, odd)
	s.captured("--include /opt/odd")
	s.paired()
	s.on(s.standby, "mkdir -p /srv/web; srvfs mount "+s.source.Addr+"/web /srv/web")

	// Before anything was read, no content was fetched.
	if st := s.status("/srv/web"); st.Content.Fetched.Bytes != 0 {
		t.Errorf("%d bytes of content were fetched by the mount alone", st.Content.Fetched.Bytes)
	}
	s.on(s.standby, "ls -lR /srv/web > /dev/null; find /srv/web -printf '%s' > /dev/null")
	if st := s.status("/srv/web"); st.Content.Fetched.Bytes != 0 {
		t.Errorf("%d bytes of content were fetched by ls and find", st.Content.Fetched.Bytes)
	}

	view := s.standby.Path("/srv/web")
	paths := map[string]bool{}
	for _, e := range s.entries() {
		paths[e.Path] = true
	}
	compared := 0
	err := filepath.WalkDir(view, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(path, view)
		if rel == "" {
			rel = "/"
		} else if !paths[rel] && !strings.Contains(fmt.Sprintf("%+q", rel), `\x`) {
			t.Errorf("the view shows %q, which the snapshot does not list", rel)
		}
		delete(paths, rel)
		compared++
		s.compare(filepath.Join(s.source.Root, rel), path, rel)
		return nil
	})
	s.check(err)
	for p := range paths {
		if !strings.ContainsRune(p, '\ufffd') { // JSON can't carry such names
			t.Errorf("the view does not show %q", p)
		}
	}
	t.Logf("%d entries compared", compared)

	// Hard links are one file, as they were.
	var a, b unix.Stat_t
	s.check(unix.Lstat(view+"/opt/odd/file", &a))
	s.check(unix.Lstat(view+"/opt/odd/private/hard", &b))
	if a.Ino != b.Ino || a.Nlink != 3 {
		t.Errorf("hard links: inodes %d and %d, %d links", a.Ino, b.Ino, a.Nlink)
	}

	// A warm path makes no upcall. The kernel may give its cached pages away at
	// any time; then the walk makes the path warm again, and the next one is the
	// one that counts. What can't be cached asks each time.
	const walk = "cd /srv/web/etc/nginx; find . -type f -exec cat {} + > /dev/null; ls -lR . > /dev/null; ! test -e no-such-file"
	var asked map[string]uint64
	for range 4 {
		before := s.status("/srv/web").Upcalls
		s.on(s.standby, walk)
		asked = map[string]uint64{}
		for op, n := range s.status("/srv/web").Upcalls {
			// find asks for the type of the file system, and ls for attributes such
			// as security.selinux; the kernel remembers neither.
			if n > before[op] && op != "statfs" && op != "getxattr" && op != "listxattr" {
				asked[op] = n - before[op]
			}
		}
		if len(asked) == 0 {
			break
		}
	}
	if len(asked) > 0 {
		t.Errorf("a walk and read of a warm path asked the view: %v", asked)
	}
	s.on(s.standby, "srvfs umount /srv/web")
	s.noResidue(s.standby)
}

// compare holds one path of the view against the source.
func (s *site) compare(want, got, rel string) {
	s.Helper()
	var w, g unix.Stat_t
	s.check(unix.Lstat(want, &w))
	s.check(unix.Lstat(got, &g))
	pseudo := rel == "/proc" || rel == "/sys" || rel == "/dev" || rel == "/run" || rel == "/tmp"
	if w.Mode != g.Mode || w.Uid != g.Uid || w.Gid != g.Gid || w.Rdev != g.Rdev {
		s.Errorf("%q: mode %o owner %d:%d device %x, want %o %d:%d %x", rel, g.Mode, g.Uid, g.Gid, g.Rdev, w.Mode, w.Uid, w.Gid, w.Rdev)
	}
	if !pseudo && rel != "/" && w.Mtim != g.Mtim && !changing(rel) {
		s.Errorf("%q: mtime %v, want %v", rel, g.Mtim, w.Mtim)
	}
	if wx, gx := xattrs(want), xattrs(got); !slices.Equal(wx, gx) {
		s.Errorf("%q: attributes %q, want %q", rel, gx, wx)
	}
	switch w.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if changing(rel) {
			return
		}
		if w.Size != g.Size {
			s.Errorf("%q: %d bytes, want %d", rel, g.Size, w.Size)
		}
		a, errA := os.ReadFile(want)
		b, errB := os.ReadFile(got)
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			s.Errorf("%q: content differs (%v, %v)", rel, errA, errB)
		}
	case unix.S_IFLNK:
		a, _ := os.Readlink(want)
		b, _ := os.Readlink(got)
		if a != b || w.Size != g.Size {
			s.Errorf("%q: link to %q of %d bytes, want %q of %d", rel, b, g.Size, a, w.Size)
		}
	}
}

// changing reports whether the source itself changes the path meanwhile: the
// running nginx writes its logs, and srvd its state folder.
func changing(rel string) bool {
	return strings.HasPrefix(rel, "/var/log/") || rel == "/var/lib" || rel == "/opt" || strings.HasPrefix(rel, "/var/lib/nginx")
}

func xattrs(path string) []string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return []string{err.Error()}
	}
	var all []string
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, v)
		if err != nil {
			return []string{name + ": " + err.Error()}
		}
		all = append(all, name+"="+string(v[:n]))
	}
	slices.Sort(all)
	return all
}

// A chunk is fetched once, however many readers wait for it; what was fetched
// is on the disk, also for the next daemon, and with the source gone.
func TestFetchedOnceAndKept(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, odd)
	s.captured("--include /opt/odd")
	s.paired()
	spec := s.source.Addr + "/web"
	s.on(s.standby, "mkdir -p /srv/web; srvfs mount "+spec+" /srv/web")

	path := s.standby.Path("/srv/web/opt/odd/big")
	want := must(os.ReadFile(filepath.Join(s.source.Root, "opt/odd/big")))(t)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			f, err := os.Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = f.Close() }()
			got := make([]byte, 4096)
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want[:4096]) {
				t.Errorf("first page differs (%v)", err)
			}
		})
	}
	wg.Wait()
	first := s.status("/srv/web").Content
	if first.Fetched.Bytes > 2<<20 {
		t.Errorf("32 readers of one page caused %d bytes to be fetched", first.Fetched.Bytes)
	}
	if got := must(os.ReadFile(path))(t); !bytes.Equal(got, want) {
		t.Error("the whole file differs")
	}
	if all := s.status("/srv/web").Content; all.Fetched.Bytes > int64(len(want))+1<<20 {
		t.Errorf("%d bytes were fetched of a file of %d", all.Fetched.Bytes, len(want))
	}

	// The daemon dies, the source too: what was read can be read again.
	s.endProcess(s.standby, "srvfs", "KILL")
	s.endProcess(s.source, "srvd", "KILL")
	s.on(s.standby, "srvfs mount "+spec+" /srv/web")
	if got := must(os.ReadFile(path))(t); !bytes.Equal(got, want) {
		t.Error("after a restart the file differs")
	}
	if st := s.status("/srv/web").Content; st.Fetched.Bytes != 0 {
		t.Errorf("%d bytes were fetched again", st.Fetched.Bytes)
	}
	s.on(s.standby, "srvfs umount /srv/web")
	s.noResidue(s.standby)
}

// With the source lost, missing content is EIO within the deadline, and what is
// here goes on working; nobody hangs. A source that is silent is as lost as one
// that refuses.
func TestSourceLost(t *testing.T) {
	for name, lose := range map[string]func(*site){
		"refuses": func(s *site) { s.endProcess(s.source, "srvd", "KILL") },
		"silent":  func(s *site) { s.endProcess(s.source, "srvd", "STOP") },
		"crashed": func(s *site) { s.check(s.source.Crash(s.ctx)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, world.StandbyRoot)
			s.on(s.source, odd)
			s.captured("--include /opt/odd")
			s.paired()
			const deadline = 3 * time.Second
			s.on(s.standby, "mkdir -p /srv/web; srvfs mount --deadline 3s "+s.source.Addr+"/web /srv/web; cat /srv/web/etc/nginx/nginx.conf >/dev/null; ls -lR /srv/web > /dev/null")
			lose(s)
			path := s.standby.Path("/srv/web/opt/odd/big")
			ctx, cancel := context.WithTimeout(s.ctx, 10*deadline)
			defer cancel()
			failed := make(chan error, 1)
			go func() {
				f, err := os.Open(path)
				if err == nil {
					_, err = io.Copy(io.Discard, f)
					_ = f.Close()
				}
				failed <- err
			}()
			select {
			case err := <-failed:
				if err == nil || !strings.Contains(err.Error(), unix.EIO.Error()) {
					t.Errorf("reading missing content: %v, want EIO", err)
				}
			case <-ctx.Done():
				t.Fatal("reading missing content hangs")
			}
			if log := s.on(s.standby, "cat /var/lib/srvfs/daemon.log"); !strings.Contains(log, "/opt/odd/big") || !strings.Contains(log, s.source.Addr) {
				t.Errorf("the log does not name the file and the origin:\n%s", log)
			}
			// Fetched before, and local: both can be read. So can names.
			s.on(s.standby, "cat /srv/web/etc/nginx/nginx.conf /srv/web/bin/sh > /dev/null; ls -lR /srv/web > /dev/null")
			s.on(s.standby, "srvfs umount /srv/web")
			s.noResidue(s.standby)
		})
	}
}
