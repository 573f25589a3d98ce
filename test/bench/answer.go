package main

import (
	"context"
	"strings"
	"time"

	"srvfs/test/world"
)

// The wires of the table.
const (
	gigabit = 1_000_000_000
	hundred = 100_000_000
)

// The first answer of nginx on a standby that has nothing of it.
var _ = add(
	firstAnswer(10, "first HTTP answer of nginx, nothing local, 10 ms RTT, 1 Gbit/s", world.Wire{RTT: 10 * time.Millisecond, Rate: gigabit}),
	firstAnswer(11, "first HTTP answer of nginx, nothing local, 10 ms RTT, 100 Mbit/s", world.Wire{RTT: 10 * time.Millisecond, Rate: hundred}),
	firstAnswer(20, "the same, 50 ms RTT, 1 Gbit/s", world.Wire{RTT: 50 * time.Millisecond, Rate: gigabit}),
	firstAnswer(21, "the same, 50 ms RTT, 100 Mbit/s", world.Wire{RTT: 50 * time.Millisecond, Rate: hundred}),
	firstAnswer(22, "the same, no delay, no limit", world.Wire{}),
)

func firstAnswer(place int, name string, w world.Wire) Row {
	r := Row{
		Place: place, Name: name, Variant: place%10 > 0,
		Prepare: func(ctx context.Context, s *Site) error { return s.Service(ctx, "web", nil, "") },
		Runs: []Run{
			answers("srvfs", "web", w), answersOnDemand("srvfs, no daemon before", "web", w),
			rsync.answers("web", w), rsyncz.answers("web", w), rsyncd.answers("web", w), tarOverSSH.answers("web", w),
			sshfs.answers("web", w), rclone.answers("web", w), nativeStart("native start", "web"),
		},
	}
	switch w.RTT {
	case 10 * time.Millisecond:
		r.Reach = "3 times faster than rsync on the service's closure, 10 times faster than sshfs"
		r.Judge = func(r Results) []Goal {
			return []Goal{r.Faster("srvfs", "rsync -a", 3), r.Faster("srvfs", "sshfs", 10)}
		}
	case 50 * time.Millisecond:
		r.Reach = "4 times faster than rsync, 25 times faster than sshfs; at most native start + 16 round trips (TCP's slow start included) + bytes/bandwidth x 1.2"
		r.Judge = func(r Results) []Goal {
			limit := r.Value("native start") + 16*w.RTT.Seconds() + r.Moved("srvfs")*8/float64(w.Rate)*1.2
			return []Goal{r.Faster("srvfs", "rsync -a", 4), r.Faster("srvfs", "sshfs", 25), r.AtMost("srvfs", limit, "s", "native start + 16 round trips + bytes/bandwidth x 1.2")}
		}
	}
	return r
}

// answers measures the time from `srvfs run` to the first answer, on a standby
// whose own files are not used; its daemon runs, as systemd keeps it.
func answers(name, service string, w world.Wire) Run {
	return Run{name, func(ctx context.Context, s *Site) (Sample, error) {
		if err := s.Daemon(ctx, s.Standby, w, "--host-root", ""); err != nil {
			return Sample{}, err
		}
		return s.runs(ctx, s.Standby, w, "srvfs run "+s.Spec(service))
	}}
}

// answersOnDemand measures the same with a daemon that the command starts.
func answersOnDemand(name, service string, w world.Wire) Run {
	return Run{name, func(ctx context.Context, s *Site) (Sample, error) {
		if err := s.pair(ctx, s.Standby); err != nil {
			return Sample{}, err
		}
		if err := s.Cool(ctx, s.Standby, "", "srvfs --help"); err != nil {
			return Sample{}, err
		}
		return s.runs(ctx, s.Standby, w, "srvfs run --host-root '' "+s.Spec(service))
	}}
}

// runs measures a line that runs a service, until the first answer, and removes
// the service again.
func (s *Site) runs(ctx context.Context, h *world.Host, w world.Wire, line string) (Sample, error) {
	if err := s.Wire(ctx, w); err != nil {
		return Sample{}, err
	}
	sample, err := s.Timed(h, func() error {
		if _, err := h.Shell(ctx, line); err != nil {
			return err
		}
		return s.Ask(ctx, h)
	})
	if err != nil {
		return sample, err
	}
	name := line[strings.LastIndexByte(line, '/')+1:]
	if _, err := h.Shell(ctx, "srvfs remove "+name); err != nil {
		return sample, err
	}
	return sample, s.EndDaemon(ctx, h)
}

// nativeStart measures nginx in a chroot on a copy that is on the standby's disk,
// with a cold page cache.
func nativeStart(name, service string) Run {
	return Run{name, func(ctx context.Context, s *Site) (Sample, error) {
		if err := s.Wire(ctx, world.Wire{}); err != nil {
			return Sample{}, err
		}
		dir, err := s.Native(ctx, service)
		if err != nil {
			return Sample{}, err
		}
		if err := s.Cool(ctx, s.Standby, "", ""); err != nil {
			return Sample{}, err
		}
		sample, err := s.Timed(s.Standby, func() error {
			if _, err := s.Standby.Shell(ctx, "chroot "+dir+" nginx"); err != nil {
				return err
			}
			return s.Ask(ctx, s.Standby)
		})
		if err != nil {
			return sample, err
		}
		sample.Moved = 0
		_, err = s.Standby.Shell(ctx, strings.ReplaceAll(stopNginx, "DIR", dir))
		return sample, err
	}}
}
