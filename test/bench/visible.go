package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"srvfs/test/world"
)

const follows = "srvfs mount --follow"

// One page after the other is written on the source, a tenth of a second after the one before
// was seen, and looked for in a followed view on the standby until it is there: each is a sample.
// (One that is written all the time would be published every 30 seconds, and who writes without
// a pause waits for others: following takes a fifth of a processor.)
var _ = add(Row{
	Place: 190, Name: "a change on the source until the followed view shows it, 1 ms RTT", Reach: "half within 30 ms, 99 of 100 within 100 ms",
	Prepare: func(ctx context.Context, s *Site) error { return s.Service(ctx, "web", nil, "") },
	Runs:    []Run{{Name: follows}},
	Together: func(ctx context.Context, s *Site) (Results, error) {
		r, err := s.visible(ctx)
		return Results{follows: r}, errors.Join(err, s.serveAgain(context.WithoutCancel(ctx)))
	},
	Judge: func(r Results) []Goal {
		all := slices.SortedFunc(slices.Values(r[follows]), byValue)
		late := all[len(all)*99/100].Value
		return []Goal{
			r.AtMost(follows, 0.030, "s", "half of the changes"),
			{fmt.Sprintf("%s of at most 0.1 s (99 of 100 changes)", number(late)), late <= 0.1},
		}
	},
})

// serveAgain starts srvd anew.
func (s *Site) serveAgain(ctx context.Context, flags ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := s.srvd.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if _, err := s.srvd.Wait(ctx); err != nil {
		return err
	}
	var err error
	if s.srvd, _, err = s.Source.Start(ctx, append([]string{"srvd", "serve"}, flags...)...); err != nil {
		return err
	}
	return s.Source.Await(ctx, "127.0.0.1:7077")
}

func (s *Site) visible(ctx context.Context) ([]Sample, error) {
	if err := s.serveAgain(ctx, "--follow"); err != nil {
		return nil, err
	}
	if err := s.await(ctx, s.srvd, func() bool {
		out, err := s.Source.Run(ctx, "srvd", "status")
		return err == nil && strings.Contains(out, "  watched\n")
	}); err != nil {
		return nil, fmt.Errorf("until the service is watched: %w", err)
	}
	if err := s.Daemon(ctx, s.Standby, world.Wire{RTT: time.Millisecond, Rate: 1e9}); err != nil {
		return nil, err
	}
	if _, err := s.Standby.Shell(ctx, "mkdir -p /mnt/followed && srvfs mount --follow "+s.Spec("web")+" /mnt/followed"); err != nil {
		return nil, err
	}
	// As the standby's own programs see it, without the time that it takes to start one.
	shown := filepath.Join("/proc", fmt.Sprint(s.daemons[s.Standby].Pid()), "root/mnt/followed/var/www/html")
	write := func(name string) (Sample, error) {
		return s.Timed(s.Standby, func() error {
			if err := os.WriteFile(filepath.Join(s.Source.Root, "var/www/html", name), []byte(name), 0o644); err != nil {
				return err
			}
			for {
				got, err := os.ReadFile(filepath.Join(shown, name))
				if err == nil && string(got) == name {
					return nil
				}
				// It may be shown as it was between its creation and its content.
				if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESTALE) {
					return err
				}
				select {
				case <-time.After(200 * time.Microsecond):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		})
	}
	changes := 200 // so that two of them may be late
	if s.Short {
		changes = 20
	}
	var all []Sample
	for n := range changes {
		sample, err := write(fmt.Sprintf("page-%d.html", n))
		if err != nil {
			return nil, err
		}
		all = append(all, sample)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	_, err := s.Standby.Shell(ctx, "srvfs umount --lazy /mnt/followed")
	if err == nil {
		_, err = s.Source.Shell(ctx, "rm /var/www/html/page-*")
	}
	if err == nil { // the next row's snapshot is to be without them
		err = s.await(ctx, s.srvd, func() bool {
			out, err := s.Source.Run(ctx, "srvd", "show", "web")
			return err == nil && !strings.Contains(out, "/var/www/html/page-")
		})
	}
	return all, errors.Join(err, s.EndDaemon(ctx, s.Standby))
}
