package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"srvfs/test/world"
)

// A large file, read from the beginning to the end while it arrives.
var _ = add(Row{
	Place: 110, Name: "256 MB file, cold, sequential", Unit: "MB/s",
	Reach: "0.9 of the wire's measured rate at 1 Gbit/s",
	Prepare: func(ctx context.Context, s *Site) error {
		return s.Service(ctx, "large", func() error { return randomFile(filepath.Join(s.Source.Root, largeFile), s.largeSize()) }, "--include /"+largeFile)
	},
	Runs: []Run{
		rate("the wire: plain TCP", plainTCP),
		rate("srvfs, plain view", viewStream),
		rate("srvfs, root of the service", rootStream),
		rate("sshfs", sshfs.reads("dd if=DIR/"+largeFile+" of=/dev/null bs=1M", lan)),
		rate("rsync -a", rsync.copies(largeFile, lan)),
	},
	Judge: func(r Results) []Goal {
		return []Goal{r.AtLeast("srvfs, plain view", "the wire: plain TCP", 0.9), r.AtLeast("srvfs, root of the service", "the wire: plain TCP", 0.9)}
	},
})

var lan = world.Wire{Rate: gigabit}

const largeFile = "srv/large/file"

func (s *Site) largeSize() int64 {
	if s.Short {
		return 16 << 20
	}
	return 256 << 20
}

// rate makes a run of one that returns the seconds that the large file took. That
// it came over the wire does not depend on time.
func rate(name string, seconds measurement) Run {
	return Run{name, func(ctx context.Context, s *Site) (Sample, error) {
		sample, err := seconds(ctx, s)
		if err == nil && sample.Moved < s.largeSize() {
			err = fmt.Errorf("only %d of %d bytes crossed the wire", sample.Moved, s.largeSize())
		}
		sample.Value = float64(s.largeSize()) / 1e6 / sample.Value
		return sample, err
	}}
}

// plainTCP measures what the wire carries: one connection, no protocol.
func plainTCP(ctx context.Context, s *Site) (Sample, error) {
	if err := s.Wire(ctx, lan); err != nil {
		return Sample{}, err
	}
	l, err := s.Source.Listen(ctx, "tcp4", ":9")
	if err != nil {
		return Sample{}, err
	}
	sent := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.CopyN(c, zeros{}, s.largeSize())
			_ = c.Close()
		}
		sent <- err
	}()
	sample, err := s.Timed(s.Standby, func() error {
		c, err := s.Standby.Dial(ctx, "tcp4", s.Source.Addr+":9")
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, struct{ io.Reader }{c})
		_ = c.Close()
		return err
	})
	_ = l.Close()
	if sendErr := <-sent; err == nil {
		err = sendErr
	}
	return sample, err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// viewStream reads the file through `srvfs mount`.
func viewStream(ctx context.Context, s *Site) (Sample, error) {
	return s.viewed(ctx, "large", lan, "dd if=/srv/view/"+largeFile+" of=/dev/null bs=1M")
}

// viewed measures a line that reads a fresh, mounted view at /srv/view.
func (s *Site) viewed(ctx context.Context, service string, w world.Wire, line string) (Sample, error) {
	if err := s.Daemon(ctx, s.Standby, w, "--host-root", ""); err != nil {
		return Sample{}, err
	}
	if _, err := s.Standby.Shell(ctx, "mkdir -p /srv/view; srvfs mount "+s.Spec(service)+" /srv/view"); err != nil {
		return Sample{}, err
	}
	sample, err := s.Timed(s.Standby, func() error {
		_, err := s.Standby.Shell(ctx, line)
		return err
	})
	if err != nil {
		return sample, err
	}
	if _, err := s.Standby.Shell(ctx, "srvfs umount /srv/view"); err != nil {
		return sample, err
	}
	return sample, s.EndDaemon(ctx, s.Standby)
}

// rootStream reads it as the service does, in its root.
func rootStream(ctx context.Context, s *Site) (Sample, error) {
	return s.rooted(ctx, "large", lan, "dd if=ROOT/"+largeFile+" of=/dev/null bs=1M")
}

// rooted measures a line that reads what a service that has just started has not
// touched yet, in its root, which is ROOT in the line.
func (s *Site) rooted(ctx context.Context, service string, w world.Wire, line string) (Sample, error) {
	if err := s.Daemon(ctx, s.Standby, w, "--host-root", ""); err != nil {
		return Sample{}, err
	}
	if _, err := s.Standby.Shell(ctx, "srvfs run "+s.Spec(service)); err != nil {
		return Sample{}, err
	}
	root, err := s.Root(ctx, s.Standby, service)
	if err != nil {
		return Sample{}, err
	}
	sample, err := s.Timed(s.Standby, func() error {
		_, err := s.Standby.Shell(ctx, strings.ReplaceAll(line, "ROOT", root))
		return err
	})
	if err != nil {
		return sample, err
	}
	if _, err := s.Standby.Shell(ctx, "srvfs remove "+service); err != nil {
		return sample, err
	}
	return sample, s.EndDaemon(ctx, s.Standby)
}

// Root returns where programs on the host find the root of a service that runs
// there.
func (s *Site) Root(ctx context.Context, h *world.Host, service string) (string, error) {
	st, err := s.Status(ctx, h, service)
	if err == nil && len(st.Units) == 0 {
		err = fmt.Errorf("service %s does not run on %s", service, h.Name)
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/root", st.Units[0].PID), nil
}

// A Status is what the bench reads of what `srvfs status` says of a service.
type Status struct {
	Units []struct {
		PID int `json:"pid"`
	} `json:"units"`
	Upcalls map[string]uint64 `json:"upcalls"`
}

// Asked returns how many requests of the kernel the view has answered. For what
// is only told, because memory got scarce, nobody waits.
func (st Status) Asked() (n uint64) {
	for operation, c := range st.Upcalls {
		if operation != "forget" {
			n += c
		}
	}
	return n
}

// Status returns how a service on a host stands.
func (s *Site) Status(ctx context.Context, h *world.Host, service string) (Status, error) {
	out, err := h.Run(ctx, "srvfs", "status", service, "--json")
	if err != nil {
		return Status{}, err
	}
	var all []Status
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return Status{}, fmt.Errorf("srvfs status %s: %w", service, err)
	}
	if len(all) != 1 {
		return Status{}, fmt.Errorf("srvfs status %s tells of %d services", service, len(all))
	}
	return all[0], nil
}
