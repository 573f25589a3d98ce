package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"

	"srvfs/test/world"
)

// Many services that use the same libraries, on one standby. Each root is an
// overlay of its own; their pages are those of one blob, or each root would cost
// what one costs. Counted are the page frames behind all shared libraries that
// all nginx processes have mapped, each frame once.
var _ = add(Row{
	Place: 90, Name: "20 roots of the same service on one standby: memory for the shared libraries' pages", Unit: "MB",
	Reach:   "as for one",
	Prepare: socketService,
	Runs:    []Run{{"one root", libraryPages(1)}, {"20 roots", libraryPages(20)}},
	Judge: func(r Results) []Goal {
		return []Goal{r.Within("20 roots", "one root", 1.05)}
	},
})

// socketService captures an nginx that listens at a socket below /run, which is
// each root's own: any number of them can run beside each other.
func socketService(ctx context.Context, s *Site) error {
	return s.Capture(ctx, "socket", func() error {
		return os.WriteFile(s.Source.Root+"/etc/nginx/socket.conf",
			[]byte("daemon off;\nworker_processes 1;\nevents {}\nhttp { server { listen unix:/run/page.sock; root /var/www/html; } }\n"), 0o644)
	}, `--exec "/usr/sbin/nginx -c /etc/nginx/socket.conf" --probe "exec:test -S /run/page.sock"`)
}

// libraryPages measures n roots, of which the first was up once before, so that
// every page that a start needs is in the page cache already.
func libraryPages(n int) measurement {
	return func(ctx context.Context, s *Site) (Sample, error) {
		if s.Short {
			n = min(n, 3)
		}
		if err := s.Daemon(ctx, s.Standby, world.Wire{}, "--host-root", ""); err != nil {
			return Sample{}, err
		}
		if _, err := s.Standby.Shell(ctx, "srvfs run --name root1 "+s.Spec("socket")+"; srvfs prefetch root1; srvfs stop root1"); err != nil {
			return Sample{}, err
		}
		for i := range n {
			if _, err := s.Standby.Shell(ctx, "srvfs run --name root"+strconv.Itoa(i+1)+" "+s.Spec("socket")); err != nil {
				return Sample{}, err
			}
		}
		pids, err := s.Standby.Shell(ctx, "grep -lx nginx /proc/[0-9]*/comm | cut -d/ -f3")
		if err != nil {
			return Sample{}, err
		}
		if have := len(strings.Fields(pids)); have != 2*n {
			return Sample{}, fmt.Errorf("%d nginx processes where %d roots have two each", have, n)
		}
		frames := map[uint64]bool{}
		for _, pid := range strings.Fields(pids) {
			if err := libraryFrames(s.Standby.Path("/proc/"+pid), frames); err != nil {
				return Sample{}, err
			}
		}
		for i := range n {
			if _, err := s.Standby.Shell(ctx, "srvfs remove root"+strconv.Itoa(i+1)); err != nil {
				return Sample{}, err
			}
		}
		return Sample{Value: float64(len(frames)*os.Getpagesize()) / 1e6}, s.EndDaemon(ctx, s.Standby)
	}
}

// libraryFrames enters the frames of the file pages that a process has in its
// mappings of shared libraries; proc is its folder in procfs.
func libraryFrames(proc string, frames map[uint64]bool) error {
	maps, err := os.ReadFile(proc + "/maps")
	if err != nil {
		return err
	}
	pagemap, err := os.Open(proc + "/pagemap")
	if err != nil {
		return err
	}
	defer func() { _ = pagemap.Close() }()
	found := 0
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.Contains(f[5], ".so") {
			continue
		}
		var from, to uint64
		if _, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); err != nil {
			return fmt.Errorf("%s/maps: %q: %w", proc, f[0], err)
		}
		page := uint64(os.Getpagesize())
		b := make([]byte, (to-from)/page*8)
		if _, err := pagemap.ReadAt(b, int64(from/page*8)); err != nil {
			return err
		}
		// The kernel's Documentation/admin-guide/mm/pagemap.rst has the bits.
		const present, file, frame = 1 << 63, 1 << 61, 1<<55 - 1
		for ; len(b) > 0; b = b[8:] {
			if e := binary.LittleEndian.Uint64(b); e&present != 0 && e&file != 0 {
				frames[e&frame] = true
				found++
			}
		}
	}
	if found == 0 {
		return fmt.Errorf("%s has no library pages in memory", proc)
	}
	return nil
}
