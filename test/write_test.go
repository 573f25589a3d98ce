package test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/test/world"
)

// dataSize is that of the file that the keeper writes to.
const dataSize = 48 << 20

// newKeeper builds a site whose source runs the keeper: a server with a large file
// that it has open for writing, a log in a folder that it may not make files
// in, and a file that has two names.
func newKeeper(t *testing.T) *site {
	t.Helper()
	s := newSite(t, world.StandbyRoot)
	build := exec.CommandContext(s.ctx, "go", "build", "-o", filepath.Join(binaries, "keeper"), "srvfs/test/keeper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the keeper: %v\n%s", err, out)
	}
	s.check(s.source.Install(filepath.Join(binaries, "keeper"), "usr/local/bin/keeper"))
	s.on(s.source, fmt.Sprintf("mkdir -p /srv/keeper /var/log/keeper; head -c %d /dev/urandom > /srv/keeper/data; chown 1234:1235 /srv/keeper/data; chmod 640 /srv/keeper/data; setfattr -n user.kept -v yes /srv/keeper/data; chmod 2751 /srv/keeper; chown 77:78 /srv/keeper; touch -d '2001-02-03 04:05:06.789' /srv/keeper/data /srv/keeper", dataSize))
	s.on(s.source, "yes what the source has seen | head -c 3000000 > /var/log/keeper/keeper.log; chown 55:56 /var/log/keeper/keeper.log; chmod 600 /var/log/keeper/keeper.log")
	_, log, err := s.source.Start(s.ctx, "/usr/local/bin/keeper")
	s.check(err)
	if err := s.source.Await(s.ctx, "127.0.0.1:8090"); err != nil {
		text, _ := os.ReadFile(log)
		t.Fatalf("%v: %s", err, text)
	}
	s.wrote(s.source) // from now on it has the file open
	s.on(s.source, "touch -d '2001-02-03 04:05:06.789' /srv/keeper/data")
	s.on(s.source, "srvd capture keeper --exec /usr/local/bin/keeper --include /srv/keeper --probe http://127.0.0.1:8090/")
	s.serve()
	s.paired()
	return s
}

// A written is the keeper's answer to a write.
type written struct {
	Open, Write time.Duration
	Size        int64
}

func (s *site) wrote(h *world.Host) (w written) {
	s.Helper()
	s.check(json.Unmarshal([]byte(must(h.Get(s.ctx, "http://127.0.0.1:8090/write"))(s.T)), &w))
	if w.Size != dataSize {
		s.Errorf("the keeper's file has %d bytes", w.Size)
	}
	return w
}

// prepared is what `srvfs status --json` says of private copies.
func (s *site) prepared(name string) (copies, placed struct{ Files, Bytes int64 }) {
	s.Helper()
	var all []struct{ Prepared, Placed struct{ Files, Bytes int64 } }
	s.check(json.Unmarshal([]byte(s.on(s.standby, "srvfs status --json "+name)), &all))
	if len(all) != 1 {
		s.Fatalf("status of %s: %+v", name, all)
	}
	return all[0].Prepared, all[0].Placed
}

const upperOf = "/var/lib/srvfs/services/%s/root/upper"

// stat returns what this machine sees of a file in a service's upper.
func (s *site) stat(service, name string) *syscall.Stat_t {
	s.Helper()
	info, err := os.Lstat(s.standby.Path(fmt.Sprintf(upperOf, service) + name))
	if err != nil {
		return nil
	}
	return info.Sys().(*syscall.Stat_t)
}

func (s *site) sum(path string) string {
	s.Helper()
	f := must(os.Open(path))(s.T)
	defer func() { _ = f.Close() }()
	h := sha256.New()
	_, err := io.Copy(h, f)
	s.check(err)
	return hex.EncodeToString(h.Sum(nil))
}

// What the service writes to is the service's own when it starts: its first write
// copies nothing, and the content that others share stays as it is.
func TestFirstWriteCopiesNothing(t *testing.T) {
	s := newKeeper(t)
	if why := s.on(s.source, "srvd why keeper /var/log/keeper/keeper.log"); !strings.Contains(why, "stays out: a log") {
		t.Errorf("why the log: %s", why)
	}
	spec := s.source.Addr + "/keeper"
	digest := s.sum(s.source.Path("/srv/keeper/data"))
	if out := s.on(s.standby, "srvfs prefetch "+spec); !strings.Contains(out, "prepared for writing: 1 file") {
		t.Errorf("prefetch says %s", out)
	}
	if copies, placed := s.prepared("keeper"); copies.Files != 1 || copies.Bytes < dataSize || placed.Files != 0 {
		t.Errorf("after the prefetch: %+v prepared, %+v placed", copies, placed)
	}
	if out := s.on(s.standby, "srvfs prefetch --json "+spec); !strings.Contains(out, `"wrote": 0`) || !strings.Contains(out, `"detached": true`) {
		t.Errorf("a second prefetch: %s", out)
	}
	s.lose()
	s.on(s.standby, "srvfs run "+spec)
	if copies, placed := s.prepared("keeper"); copies.Files != 0 || placed.Files != 2 || placed.Bytes < dataSize {
		t.Errorf("after the start: %+v prepared, %+v placed", copies, placed)
	}

	before := s.stat("keeper", "/srv/keeper/data")
	if before == nil || before.Uid != 1234 || before.Gid != 1235 || before.Mode != unix.S_IFREG|0o640 || before.Mtim.Sec != 981173106 || before.Mtim.Nsec != 789e6 || before.Nlink != 1 {
		t.Fatalf("the file in the upper: %+v", before)
	}
	if dir := s.stat("keeper", "/srv/keeper"); dir.Uid != 77 || dir.Gid != 78 || dir.Mode != unix.S_IFDIR|0o2751 || dir.Mtim.Sec != 981173106 {
		t.Errorf("its folder in the upper: %+v", dir)
	}
	if log := s.stat("keeper", "/var/log/keeper/keeper.log"); log == nil || log.Uid != 55 || log.Gid != 56 || log.Mode != unix.S_IFREG|0o600 || log.Size == 0 || log.Size > 1000 {
		t.Errorf("the log in the upper: %+v", log)
	}
	wrote := s.blocksWritten()
	w := s.wrote(s.standby)
	after, wrote := s.stat("keeper", "/srv/keeper/data"), s.blocksWritten()-wrote
	if after.Ino != before.Ino {
		t.Errorf("the first write made a new file: inode %d became %d", before.Ino, after.Ino)
	}
	if wrote > dataSize/4 {
		t.Errorf("the first write wrote %d bytes to the disk", wrote)
	}
	t.Logf("first write: open %v, write and flush %v, %d bytes to the disk", w.Open, w.Write, wrote)
	if got := s.sum(s.standby.Path("/var/lib/srvfs/store/blobs/" + digest)); got != digest {
		t.Errorf("the stored content %s has changed", digest)
	}

	// What it wrote stays, and is not replaced by what is prepared anew.
	kept := s.sum(s.standby.Path(fmt.Sprintf(upperOf, "keeper") + "/srv/keeper/data"))
	s.on(s.standby, "srvfs stop keeper; srvfs prefetch keeper; srvfs run keeper")
	if got := s.sum(s.standby.Path(fmt.Sprintf(upperOf, "keeper") + "/srv/keeper/data")); got != kept || got == digest {
		t.Errorf("after a restart the file is %s, was %s", got, kept)
	}
	if copies, placed := s.prepared("keeper"); copies.Files != 0 || placed.Files != 2 {
		t.Errorf("after a restart: %+v prepared, %+v placed", copies, placed)
	}

	s.on(s.standby, "srvfs remove keeper")
	s.noResidue(s.standby)
	if left := strings.TrimSpace(s.on(s.standby, "find /var/lib/srvfs/prepared -type f 2>/dev/null | wc -l")); left != "0" {
		t.Errorf("%s copies are left", left)
	}
}

// blocksWritten returns the bytes that the world's disk has written.
func (s *site) blocksWritten() int64 {
	s.Helper()
	var st unix.Stat_t
	s.check(unix.Stat(s.standby.Root, &st))
	b := must(os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev))))(s.T)
	f := strings.Fields(string(b))
	var sectors int64
	_, err := fmt.Sscan(f[6], &sectors)
	s.check(err)
	return sectors * 512
}

// Preparing can be turned off; two services of one snapshot do not fight for a
// copy; a newer snapshot writes only what differs.
func TestPrepareOffSharedAndDelta(t *testing.T) {
	s := newKeeper(t)
	spec := s.source.Addr + "/keeper"
	if out := s.on(s.standby, "srvfs prefetch --no-prepare "+spec); !strings.Contains(out, "turned off") {
		t.Errorf("prefetch --no-prepare: %s", out)
	}
	if left := strings.TrimSpace(s.on(s.standby, "find /var/lib/srvfs/prepared -type f 2>/dev/null | wc -l")); left != "0" {
		t.Errorf("--no-prepare left %s copies", left)
	}
	s.on(s.standby, "srvfs prefetch "+spec)

	// One chunk of 48 MiB changes.
	s.on(s.source, "printf changed | dd of=/srv/keeper/data bs=1 seek=5000000 conv=notrunc 2>/dev/null; srvd capture keeper --exec /usr/local/bin/keeper --include /srv/keeper --probe http://127.0.0.1:8090/")
	var p struct{ Prepared struct{ Files, Wrote int64 } }
	s.check(json.Unmarshal([]byte(s.on(s.standby, "srvfs prefetch --json "+spec)), &p))
	if p.Prepared.Files != 1 || p.Prepared.Wrote != 256<<10 {
		t.Errorf("for one changed chunk: %+v", p.Prepared)
	}
	digest := s.sum(s.source.Path("/srv/keeper/data"))

	s.on(s.standby, "srvfs run "+spec+" --name one")
	s.on(s.standby, "srvfs stop one")
	if got := s.sum(s.standby.Path(fmt.Sprintf(upperOf, "one") + "/srv/keeper/data")); got != digest {
		t.Errorf("what was placed is %s, want %s", got, digest)
	}
	s.on(s.standby, "srvfs run "+spec+" --name two")
	// It found no copy: overlayfs makes one in the background.
	s.await("the file is in the second service's upper", func() bool { return s.stat("two", "/srv/keeper/data") != nil })
	before := s.stat("two", "/srv/keeper/data")
	s.wrote(s.standby)
	if after := s.stat("two", "/srv/keeper/data"); after.Ino != before.Ino {
		t.Errorf("inode %d became %d", before.Ino, after.Ino)
	}
	s.on(s.standby, "srvfs remove two")

	// Remembered by the service.
	s.on(s.standby, "srvfs run --no-prepare "+spec+" --name three")
	if s.stat("three", "/srv/keeper/data") != nil {
		t.Error("--no-prepare placed a copy")
	}
	if s.stat("three", "/var/log/keeper/keeper.log") == nil {
		t.Error("the log is not placed")
	}
	if record := s.on(s.standby, "cat /var/lib/srvfs/services/three/service.json"); !strings.Contains(record, `"no_prepare":true`) {
		t.Errorf("record: %s", record)
	}
	s.on(s.standby, "srvfs remove three; srvfs remove one")
	s.noResidue(s.standby)
}

// On a file system with reflinks nothing is copied beforehand: overlayfs shares the
// blocks at the first write.
func TestFirstWriteOnReflinks(t *testing.T) {
	s := newKeeper(t)
	s.check(s.standby.Crash(s.ctx))
	image, at := filepath.Join(t.TempDir(), "xfs"), filepath.Join(s.standby.Root, "var/lib/srvfs")
	s.check(os.MkdirAll(at+".ext4", 0o700))
	s.check(os.Rename(at, at+".ext4/srvfs")) // pairing is kept there
	s.check(os.Mkdir(at, 0o700))
	f := must(os.Create(image))(t)
	s.check(f.Truncate(1 << 30))
	s.check(f.Close())
	for _, argv := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1", image}, {"mount", "-o", "loop", image, at}, {"cp", "-a", at + ".ext4/srvfs/.", at}} {
		if out, err := exec.CommandContext(s.ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s.standby = must(s.world.Reboot(s.ctx, s.standby))(t)
	spec := s.source.Addr + "/keeper"
	if out := s.on(s.standby, "srvfs prefetch "+spec); !strings.Contains(out, "has reflinks") {
		t.Errorf("prefetch says %s", out)
	}
	s.on(s.standby, "srvfs run "+spec)
	before := s.free(at)
	w := s.wrote(s.standby)
	if used := before - s.free(at); used > dataSize/4 {
		t.Errorf("the first write took %d bytes of the disk", used)
	}
	t.Logf("first write: open %v, write and flush %v", w.Open, w.Write)
	s.on(s.standby, "srvfs remove keeper")
	s.noResidue(s.standby)
}

func (s *site) free(path string) int64 {
	s.Helper()
	var st unix.Statfs_t
	s.check(unix.Statfs(path, &st))
	return int64(st.Bfree) * st.Bsize
}
