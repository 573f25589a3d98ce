package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"srvfs/sandbox"
	"srvfs/test/world"
)

// The first write to a large file, as a database makes it when it has just been
// taken over: test/keeper opens its file, writes 4 KiB and flushes, and says how long
// that took. overlayfs copies the whole file before that, unless it is in the
// upper already. All files are cold, and on the same ext4.
var _ = add(Row{
	Place: 100, Name: "first write and fsync to a 1 GB data file that the service is known to write, detached root on ext4", Unit: "ms",
	Reach:   "20 ms over native",
	Prepare: keeperService,
	Runs: []Run{
		{"native, plain ext4", nativeWrite}, {"srvfs", preparedWrite},
		{"srvfs --no-prepare", unpreparedWrite}, {"plain overlayfs, as containers have", overlayWrite},
	},
	Judge: func(r Results) []Goal {
		return []Goal{r.AtMost("srvfs", r.Value("native, plain ext4")+20, "ms", "native + 20 ms")}
	},
})

// Where the keeper's files are, and where it answers.
const (
	keeperData = "srv/keeper/data"
	keeperAddr = "127.0.0.1:8090"
	keeperLine = "/usr/local/bin/keeper"
)

func (s *Site) keeperSize() int64 {
	if s.Short {
		return 64 << 20
	}
	return 1 << 30
}

// keeperService captures the service keeper while it runs and has its file open.
func keeperService(ctx context.Context, s *Site) error {
	err := s.Capture(ctx, "keeper", func() error {
		program := filepath.Join(s.dir, "keeper")
		build := exec.CommandContext(ctx, "go", "build", "-o", program, "srvfs/test/keeper")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build the keeper: %w\n%s", err, out)
		}
		if err := errors.Join(s.Source.Install(program, keeperLine), randomFile(filepath.Join(s.Source.Root, keeperData), s.keeperSize())); err != nil {
			return err
		}
		if _, err := s.Source.Shell(ctx, keeperLog("")); err != nil {
			return err
		}
		if _, _, err := s.Source.Start(ctx, keeperLine); err != nil {
			return err
		}
		_, err := s.written(ctx, s.Source)
		return err
	}, "--exec "+keeperLine+" --include /"+filepath.Dir(keeperData)+" --probe http://"+keeperAddr+"/")
	if err != nil {
		return err
	}
	return s.List(ctx, "keeper")
}

// keeperLog is the shell line that makes the keeper's log in a root: logs are in
// no snapshot.
func keeperLog(root string) string {
	return fmt.Sprintf("mkdir -p %[1]s/var/log/keeper; : >> %[1]s/var/log/keeper/keeper.log", root)
}

// written has the keeper of a host write, and returns how many milliseconds it took
// from the open to the end of the flush.
func (s *Site) written(ctx context.Context, h *world.Host) (Sample, error) {
	if err := h.Await(ctx, keeperAddr); err != nil {
		return Sample{}, err
	}
	answer, err := h.Get(ctx, "http://"+keeperAddr+"/write")
	if err != nil {
		return Sample{}, err
	}
	var r struct {
		Open, Write time.Duration
		Size        int64
	}
	if err := json.Unmarshal([]byte(answer), &r); err != nil {
		return Sample{}, fmt.Errorf("the keeper of %s says %q: %w", h.Name, answer, err)
	}
	if r.Open == 0 || r.Size != s.keeperSize() {
		return Sample{}, fmt.Errorf("the keeper of %s did not open a file of %d bytes: %s", h.Name, s.keeperSize(), answer)
	}
	return Sample{Value: float64(r.Open+r.Write) / float64(time.Millisecond)}, nil
}

// nativeWrite measures the keeper in a chroot on a copy on the standby's disk.
func nativeWrite(ctx context.Context, s *Site) (Sample, error) {
	dir, err := s.Native(ctx, "keeper")
	if err != nil {
		return Sample{}, err
	}
	return s.keeperIn(ctx, dir)
}

// overlayWrite measures it in a plain overlayfs whose upper is empty.
func overlayWrite(ctx context.Context, s *Site) (Sample, error) {
	lower, err := s.Native(ctx, "keeper")
	if err != nil {
		return Sample{}, err
	}
	const dir = "/srv/overlay-write"
	if _, err := s.Standby.Shell(ctx, fmt.Sprintf("mkdir -p %[1]s %[1]s.upper %[1]s.work; mount -t overlay -o lowerdir=%[2]s,upperdir=%[1]s.upper,workdir=%[1]s.work overlay %[1]s", dir, lower)); err != nil {
		return Sample{}, err
	}
	sample, err := s.keeperIn(ctx, dir)
	_, end := s.Standby.Shell(ctx, fmt.Sprintf("umount %[1]s; rm -rf %[1]s %[1]s.upper %[1]s.work", dir))
	return sample, errors.Join(err, end)
}

// keeperIn measures the first write of a keeper that runs in a chroot.
func (s *Site) keeperIn(ctx context.Context, dir string) (Sample, error) {
	if err := s.EndDaemon(ctx, s.Standby); err != nil {
		return Sample{}, err
	}
	if _, err := s.Standby.Shell(ctx, keeperLog(dir)); err != nil {
		return Sample{}, err
	}
	p, _, err := s.Standby.Start(ctx, "chroot", dir, keeperLine)
	if err != nil {
		return Sample{}, err
	}
	sample, err := s.coldWrite(ctx)
	return sample, errors.Join(err, end(ctx, p))
}

// end ends a program that has nothing to do at its end.
func end(ctx context.Context, p *sandbox.Process) error {
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_, err := p.Wait(ctx)
	return err
}

// coldWrite waits for the standby's keeper to run, empties the page cache, and
// measures its first write.
func (s *Site) coldWrite(ctx context.Context) (Sample, error) {
	if err := s.Standby.Await(ctx, keeperAddr); err != nil {
		return Sample{}, err
	}
	if err := s.Cool(ctx, s.Standby, "", ""); err != nil {
		return Sample{}, err
	}
	return s.written(ctx, s.Standby)
}

// preparedWrite measures the service's first write, of which srvfs knows
// beforehand. That the file is then in the upper, and the write makes no other of
// it, does not depend on time.
func preparedWrite(ctx context.Context, s *Site) (Sample, error) {
	return s.detachedWrite(ctx, "", func(before, after os.FileInfo) error {
		if before == nil || after == nil || !os.SameFile(before, after) {
			return fmt.Errorf("the keeper's file must be in the upper before the first write (it is: %t), and be the same after it", before != nil)
		}
		return nil
	})
}

// unpreparedWrite measures what it would be without.
func unpreparedWrite(ctx context.Context, s *Site) (Sample, error) {
	return s.detachedWrite(ctx, "--no-prepare", func(before, after os.FileInfo) error {
		if before != nil || after == nil {
			return fmt.Errorf("with --no-prepare the keeper's file must come to the upper by the first write; it is there before: %t, after: %t", before != nil, after != nil)
		}
		return nil
	})
}

// detachedWrite measures the first write of a service that needs its source no
// more, started with the flag. Check is given the keeper's file in the upper as it
// was before and is after the write, or nil.
func (s *Site) detachedWrite(ctx context.Context, flag string, check func(before, after os.FileInfo) error) (Sample, error) {
	if err := s.Daemon(ctx, s.Standby, world.Wire{}, "--host-root", ""); err != nil {
		return Sample{}, err
	}
	spec := flag + " " + s.Spec("keeper")
	out, err := s.Standby.Shell(ctx, "srvfs prefetch "+spec)
	if err != nil {
		return Sample{}, err
	}
	if !strings.Contains(out, "detached: the source is needed no more") {
		return Sample{}, fmt.Errorf("prefetch says %s", out)
	}
	if _, err := s.Standby.Shell(ctx, "srvfs run "+spec); err != nil {
		return Sample{}, err
	}
	upper := filepath.Join(s.Standby.Root, "var/lib/srvfs/services/keeper/root/upper", keeperData)
	before, err := os.Lstat(upper)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Sample{}, err
	}
	sample, err := s.coldWrite(ctx)
	if err != nil {
		return sample, err
	}
	after, err := os.Lstat(upper)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return sample, err
	}
	if err := check(before, after); err != nil {
		return sample, err
	}
	if _, err := s.Standby.Shell(ctx, "srvfs remove keeper"); err != nil {
		return sample, err
	}
	return sample, s.EndDaemon(ctx, s.Standby)
}
