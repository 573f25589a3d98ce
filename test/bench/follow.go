package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"srvfs/sandbox"
	"srvfs/test/world"
)

// What it costs to follow a service of a million files. A srvd of its own follows it, and
// nothing else, with a state folder and a port of its own.
var _ = add(
	Row{
		Place: 310, Name: "a look at all of 1,000,000 followed files, warm, by a srvd that is started anew", Reach: "2.5 s",
		Prepare: followedService,
		Runs:    []Run{{"srvd", rescans}, {"find -printf '%T@ %C@'", findsAll}},
		Judge: func(r Results) []Goal {
			return []Goal{r.AtMost("srvd", 2.5, "s", "all its reading of the index included")}
		},
	},
	Row{
		Place: 320, Name: "resident memory of srvd that follows 1,000,000 files", Unit: "bytes/file", Reach: "150 bytes/file",
		Prepare: followedService,
		Runs:    []Run{{"anonymous", followedMemory("RssAnon")}, {"all: with the pages of its program", followedMemory("VmRSS")}},
		Judge: func(r Results) []Goal {
			return []Goal{r.AtMost("all: with the pages of its program", 150, "bytes/file", "all of it")}
		},
	},
	Row{
		Place: 330, Name: "processor time of daemons that follow 1,000,000 files which do not change", Unit: "%", Reach: "1 % each",
		Prepare: followedService,
		Runs:    []Run{{"srvd", idles(sourceSide)}, {"srvfs daemon", idles(standbySide)}},
		Judge: func(r Results) []Goal {
			return []Goal{r.AtMost("srvd", 1, "%", "of one processor"), r.AtMost("srvfs daemon", 1, "%", "of one processor")}
		},
	},
	Row{
		Place: 340, Name: "a program that makes 15,000 files a second in a followed folder", Unit: "files/s", Reach: "0.85 of one where nobody follows",
		Prepare: followedService,
		Runs: []Run{
			{"nobody follows", writes(false, 15_000)}, {"srvd follows", writes(true, 15_000)},
			{"as fast as it can, nobody follows", writes(false, 0)}, {"as fast as it can, srvd follows", writes(true, 0)},
		},
		Judge: func(r Results) []Goal { return []Goal{r.AtLeast("srvd follows", "nobody follows", 0.85)} },
	},
	Row{
		Place: 350, Name: "one file of 1,000,000 changes, until the standby can read it", Reach: "50 times faster than rsync",
		Prepare: rsyncedService,
		Runs:    []Run{{"srvfs follow, until the snapshot is there", changes(false)}, {"srvfs mount --follow, until a read in the view shows it", changes(true)}, {"rsync -a", rsyncsChange}},
		Judge: func(r Results) []Goal {
			return []Goal{r.Faster("srvfs follow, until the snapshot is there", "rsync -a", 50), r.Faster("srvfs mount --follow, until a read in the view shows it", "rsync -a", 50)}
		},
	},
)

const (
	followedTree  = "srv/followed"
	followedState = "/root/followed"
	followedPort  = "7078"
	rsyncedTree   = "/srv/rsynced"
)

//go:embed testdata/writer.c
var writerSource []byte

// followedService captures it, once, and follows it until what a first look finds out is
// in a snapshot.
func followedService(ctx context.Context, s *Site) error {
	if s.services["followed"] {
		return nil
	}
	folders, files := s.million()
	if err := smallContents(filepath.Join(s.Source.Root, followedTree), folders, files); err != nil {
		return err
	}
	program := filepath.Join(s.dir, "writer")
	cc := exec.CommandContext(ctx, "gcc", "-O2", "-static", "-x", "c", "-o", program, "-")
	cc.Stdin = bytes.NewReader(writerSource)
	if out, err := cc.CombinedOutput(); err != nil {
		return fmt.Errorf("compile writer: %w\n%s", err, out)
	}
	if err := s.Source.Install(program, "usr/local/sbin/writer"); err != nil {
		return err
	}
	if _, err := s.Source.Shell(ctx, "srvd capture followed -q --state "+followedState+" "+nginx+"--include /"+followedTree); err != nil {
		return err
	}
	s.services["followed"] = true
	return s.following(ctx, func(*sandbox.Process) error {
		before, err := s.published(ctx)
		if err != nil {
			return err
		}
		if err := s.change(7); err != nil {
			return err
		}
		return s.await(ctx, nil, func() bool {
			now, err := s.published(ctx)
			return err == nil && now.Sequence > before.Sequence
		})
	})
}

// smallContents makes files of some bytes, each with its own.
func smallContents(dir string, folders, files int) error {
	for i := range folders {
		folder := filepath.Join(dir, fmt.Sprintf("part%04d", i))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		for j := range files {
			if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("entry-%04d", j)), fmt.Appendf(nil, "file %d of folder %d\n", j, i), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// changing is the path of a file of folder 7, in the tree.
func changing(file int) string { return fmt.Sprintf("part0007/entry-%04d", file) }

// change changes it.
func (s *Site) change(file int) error {
	return os.WriteFile(filepath.Join(s.Source.Root, followedTree, changing(file)), fmt.Append(nil, time.Now().UnixNano()), 0o644)
}

// A published is what the bench reads of `srvd status`.
type published struct {
	Sequence uint64 `json:"sequence"`
	Followed *struct {
		Watched bool          `json:"watched"`
		Looked  time.Duration `json:"looked_ns"`
	} `json:"followed"`
}

func (s *Site) published(ctx context.Context) (published, error) {
	out, err := s.Source.Run(ctx, "srvd", "status", "--json", "--state", followedState)
	if err != nil {
		return published{}, err
	}
	var all struct {
		Services []published `json:"services"`
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return published{}, fmt.Errorf("srvd status: %w", err)
	}
	if len(all.Services) != 1 {
		return published{}, fmt.Errorf("srvd status tells of %d services", len(all.Services))
	}
	return all.Services[0], nil
}

// following calls f while a srvd follows, once that has looked at all files.
func (s *Site) following(ctx context.Context, f func(srvd *sandbox.Process) error) error {
	p, log, err := s.Source.Start(ctx, "srvd", "serve", "--follow", "--state", followedState, "--listen", ":"+followedPort)
	if err != nil {
		return err
	}
	err = s.await(ctx, p, func() bool {
		st, err := s.published(ctx)
		return err == nil && st.Followed != nil && st.Followed.Looked > 0
	})
	if err == nil {
		err = f(p)
	}
	if err != nil {
		text, _ := os.ReadFile(log)
		err = fmt.Errorf("%w\n%s", err, text)
	}
	if end := p.Signal(syscall.SIGTERM); end != nil && !errors.Is(end, os.ErrProcessDone) {
		return errors.Join(err, end)
	}
	_, end := p.Wait(ctx)
	return errors.Join(err, end)
}

// rescans measures the look at all files with which a srvd begins, as it tells it itself.
func rescans(ctx context.Context, s *Site) (Sample, error) {
	var took time.Duration
	err := s.following(ctx, func(*sandbox.Process) error {
		st, err := s.published(ctx)
		if err == nil && !st.Followed.Watched {
			err = errors.New("srvd does not watch")
		}
		if err == nil {
			took = st.Followed.Looked
		}
		return err
	})
	return Sample{Value: took.Seconds()}, err
}

func findsAll(ctx context.Context, s *Site) (Sample, error) {
	sample, err := s.Timed(s.Source, func() error {
		_, err := s.Source.Shell(ctx, "find /"+followedTree+` -printf '%T@ %C@\n' > /dev/null`)
		return err
	})
	sample.Moved = 0
	return sample, err
}

// followedMemory measures what a line of /proc/PID/status says when it does not get less.
func followedMemory(what string) measurement {
	return func(ctx context.Context, s *Site) (sample Sample, err error) {
		folders, files := s.million()
		err = s.following(ctx, func(srvd *sandbox.Process) error {
			n, err := settledAt(ctx, srvd.Pid(), what)
			sample.Value = float64(n) / float64(folders*files)
			return err
		})
		return sample, err
	}
}

// A side is where a daemon follows.
type side bool

const (
	sourceSide  side = false
	standbySide side = true
)

// idles measures the share of a processor that a daemon takes while nothing happens.
func idles(where side) measurement {
	return func(ctx context.Context, s *Site) (sample Sample, err error) {
		span := 20 * time.Second
		if s.Short {
			span = time.Second
		}
		err = s.following(ctx, func(srvd *sandbox.Process) error {
			if err := s.followed(ctx); err != nil {
				return err
			}
			pid := srvd.Pid()
			if where == standbySide {
				pid = s.daemons[s.Standby].Pid()
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(span / 4): // what the start has left to do
			}
			before, err := processorTime(pid)
			if err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(span):
			}
			after, err := processorTime(pid)
			sample.Value = max(0.01, 100*(after-before).Seconds()/span.Seconds())
			return errors.Join(err, s.EndDaemon(ctx, s.Standby))
		})
		return sample, err
	}
}

// processorTime returns what a process has used so far, in steps of the kernel's clock.
func processorTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// followed gives the standby a daemon that follows, and waits until it has the newest
// snapshot.
func (s *Site) followed(ctx context.Context) error {
	if err := s.followedBy(ctx, "srvfs follow --no-prefetch "+s.followedSpec()); err != nil {
		return err
	}
	now, err := s.published(ctx)
	if err != nil {
		return err
	}
	return s.await(ctx, nil, func() bool { return s.arrived() >= now.Sequence })
}

// followedBy gives the standby a daemon, pairs it with the srvd that follows, and runs
// command there.
func (s *Site) followedBy(ctx context.Context, command string) error {
	if err := s.Daemon(ctx, s.Standby, world.Wire{RTT: time.Millisecond, Rate: gigabit}, "--host-root", ""); err != nil {
		return err
	}
	token, err := s.Source.Run(ctx, "srvd", "pair", "--state", followedState, "--address", s.Source.Addr+":"+followedPort)
	if err != nil {
		return err
	}
	_, err = s.Standby.Shell(ctx, "srvfs pair "+strings.TrimSpace(token)+"; "+command)
	return err
}

func (s *Site) followedSpec() string { return s.Source.Addr + ":" + followedPort + "/followed" }

// arrived returns the newest snapshot that the standby has stored.
func (s *Site) arrived() (newest uint64) {
	all, _ := filepath.Glob(filepath.Join(s.Standby.Root, "var/lib/srvfs/store/snapshots/*/followed*"))
	for _, p := range all {
		names, _ := os.ReadDir(p)
		for _, e := range names {
			number, _, _ := strings.Cut(e.Name(), "-")
			if n, err := strconv.ParseUint(number, 10, 64); err == nil {
				newest = max(newest, n)
			}
		}
	}
	return newest
}

// writes measures how many files a program makes in a second that is to make so many, or
// as many as it can.
func writes(follow bool, rate int) measurement {
	return func(ctx context.Context, s *Site) (sample Sample, err error) {
		n := 60_000
		if s.Short {
			n = 3_000
		}
		write := func(*sandbox.Process) error {
			out, err := s.Source.Shell(ctx, fmt.Sprintf("sync -f /; mkdir /%[1]s/written; writer /%[1]s/written %[2]d %[3]d", followedTree, n, rate))
			if err == nil {
				sample.Value, err = strconv.ParseFloat(strings.TrimSpace(out), 64)
			}
			return err
		}
		if follow {
			err = s.following(ctx, func(srvd *sandbox.Process) error {
				before, err := s.published(ctx)
				if err == nil {
					err = write(srvd)
				}
				if err != nil {
					return err
				}
				return s.await(ctx, srvd, func() bool { // it has followed it
					now, err := s.published(ctx)
					return err == nil && now.Sequence > before.Sequence
				})
			})
		} else {
			err = write(nil)
		}
		_, end := s.Source.Shell(ctx, "rm -rf /"+followedTree+"/written; sync -f /")
		return sample, errors.Join(err, end)
	}
}

// changes measures the time from a change of one file to when the standby has the snapshot
// that has it, or to when a followed view there shows it.
func changes(view bool) measurement {
	return func(ctx context.Context, s *Site) (sample Sample, err error) {
		err = s.following(ctx, func(*sandbox.Process) error {
			if view {
				err = s.followedBy(ctx, "mkdir -p /srv/view; srvfs mount --follow "+s.followedSpec()+" /srv/view")
			} else {
				err = s.followed(ctx)
			}
			if err != nil {
				return err
			}
			// A flush waits for all that a disk has to write, and here a million files were
			// just made: no rsync flushes, but srvd does before it tells of a snapshot.
			for _, h := range []*world.Host{s.Source, s.Standby} {
				if _, err := h.Shell(ctx, "sync -f /"); err != nil {
					return err
				}
			}
			shown := filepath.Join("/proc", fmt.Sprint(s.daemons[s.Standby].Pid()), "root/srv/view", followedTree)
			for file := range 3 { // it has followed for a while when the last one changes
				before := s.arrived()
				sample, err = s.Timed(s.Standby, func() error {
					if err := s.change(file); err != nil {
						return err
					}
					want, err := os.ReadFile(filepath.Join(s.Source.Root, followedTree, changing(file)))
					if err != nil {
						return err
					}
					return s.await(ctx, nil, func() bool {
						if !view {
							return s.arrived() > before
						}
						got, err := os.ReadFile(filepath.Join(shown, changing(file)))
						return err == nil && bytes.Equal(got, want)
					})
				})
				if err != nil {
					return err
				}
			}
			if view {
				_, err = s.Standby.Shell(ctx, "srvfs umount /srv/view")
			}
			return errors.Join(err, s.EndDaemon(ctx, s.Standby))
		})
		return sample, err
	}
}

// rsyncedService is followedService, and gives the standby a copy of the tree.
func rsyncedService(ctx context.Context, s *Site) error {
	if err := followedService(ctx, s); err != nil {
		return err
	}
	_, err := s.Standby.Shell(ctx, s.rsyncLine())
	return err
}

func (s *Site) rsyncLine() string {
	return "mkdir -p " + rsyncedTree + "; rsync -a rsync://" + s.Source.Addr + "/root/" + followedTree + "/ " + rsyncedTree + "/"
}

// rsyncsChange measures rsync, without encryption, of the same tree after the same change,
// when the standby has all else, and both have just looked at all of it.
func rsyncsChange(ctx context.Context, s *Site) (Sample, error) {
	if err := s.Wire(ctx, world.Wire{RTT: time.Millisecond, Rate: gigabit}); err != nil {
		return Sample{}, err
	}
	if _, err := s.Standby.Shell(ctx, s.rsyncLine()); err != nil {
		return Sample{}, err
	}
	return s.Timed(s.Standby, func() error {
		if err := s.change(7); err != nil {
			return err
		}
		_, err := s.Standby.Shell(ctx, s.rsyncLine())
		return err
	})
}
