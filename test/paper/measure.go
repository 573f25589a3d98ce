package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"srvfs/capture/trace"
	"srvfs/sandbox"
	"srvfs/test/world"
)

// A bench is the hosts of one subject.
type bench struct {
	*figures
	ctx             context.Context
	dir             string
	source, standby *world.Host
}

func measure(ctx context.Context, s *subject, rounds int) (_ *figures, err error) {
	dir, err := os.MkdirTemp("", "srvfs-paper-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w, err := world.New(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	b := &bench{figures: &figures{subject: s}, ctx: ctx, dir: dir}
	if b.source, err = w.Host(ctx, "source", world.ServiceRoot(s.Name)); err != nil {
		return nil, err
	}
	if b.standby, err = w.Host(ctx, "standby", world.StandbyRoot); err != nil {
		return nil, err
	}
	if err := errors.Join(b.source.Install("bin/srvd", "usr/local/sbin/srvd"), b.standby.Install("bin/srvfs", "usr/local/sbin/srvfs")); err != nil {
		return nil, err
	}
	if err := b.prepare(); err != nil {
		return nil, err
	}
	for range rounds {
		if err := errors.Join(b.captures(), b.runs("--host-root ''", &b.run, &b.moved, &b.detached, &b.all), b.runs("", &b.runSame, &b.movedSame, &b.detachedSame, &b.allSame), b.starts()); err != nil {
			return nil, err
		}
	}
	return b.figures, nil
}

// prepare sets the service up, captures and serves it, and pairs the hosts.
func (b *bench) prepare() error {
	if _, err := b.source.Shell(b.ctx, b.Setup); err != nil {
		return fmt.Errorf("set-up: %w", err)
	}
	if _, err := b.source.Shell(b.ctx, "srvd capture "+b.Name+" -q "+b.Capture); err != nil {
		return err
	}
	if _, _, err := b.source.Start(b.ctx, "srvd", "serve"); err != nil {
		return err
	}
	if err := b.source.Await(b.ctx, "127.0.0.1:7077"); err != nil {
		return err
	}
	token, err := b.source.Run(b.ctx, "srvd", "pair")
	if err != nil {
		return err
	}
	_, err = b.standby.Run(b.ctx, "srvfs", "pair", strings.TrimSpace(token))
	return err
}

func seconds(f func() error) (float64, error) {
	start := time.Now()
	err := f()
	return time.Since(start).Seconds(), err
}

// answered is how `srvd capture` says how long the service took, in each of its runs.
var answered = regexp.MustCompile(`answered after (\d+) ms`)

// captures measures a capture into an empty state folder, and once more into the same.
func (b *bench) captures() error {
	if _, err := b.source.Shell(b.ctx, "rm -rf /root/fresh"); err != nil {
		return err
	}
	for _, to := range []*[]float64{&b.gather, &b.again} {
		var out string
		s, err := seconds(func() (err error) {
			out, err = b.source.Shell(b.ctx, "srvd capture "+b.Name+" --state /root/fresh "+b.Capture)
			return err
		})
		if err != nil {
			return err
		}
		*to = append(*to, s)
		waited := 0.0
		for _, m := range answered.FindAllStringSubmatch(out, -1) {
			ms, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				return err
			}
			waited += ms / 1e3
		}
		if to == &b.gather {
			b.waited = append(b.waited, waited)
		}
	}
	return nil
}

// runs measures the first answer on an empty standby, and then the prefetch.
func (b *bench) runs(flags string, run, moved, rest, all *[]float64) error {
	before, err := b.standby.Received()
	if err != nil {
		return err
	}
	steps := []struct {
		line  string
		took  *[]float64
		bytes *[]float64
	}{
		{"srvfs run " + flags + " " + b.source.Addr + "/" + b.Name, run, moved},
		{"srvfs prefetch " + b.Name, rest, all},
	}
	for _, s := range steps {
		took, err := seconds(func() error { _, err := b.standby.Shell(b.ctx, s.line); return err })
		if err != nil {
			return err
		}
		after, err := b.standby.Received()
		if err != nil {
			return err
		}
		*s.took, *s.bytes = append(*s.took, took), append(*s.bytes, float64(after-before)/1e6)
	}
	if _, err := b.standby.Shell(b.ctx, "srvfs remove "+b.Name); err != nil {
		return err
	}
	for { // the daemon, which has these flags, ends a moment after the last service
		procs, err := b.standby.Processes()
		if err != nil || len(procs) == 0 {
			return err
		}
		select {
		case <-b.ctx.Done():
			return fmt.Errorf("processes are left on the standby: %v", procs)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// starts measures a start until it listens: untraced, traced, and under strace, each in
// a sandbox of its own on the source's root.
func (b *bench) starts() error {
	// The strace of this machine, with its own loader and libraries.
	const strace = "/mnt/lib64/ld-linux-x86-64.so.2 --library-path /mnt/lib/x86_64-linux-gnu:/mnt/usr/lib/x86_64-linux-gnu /mnt/usr/bin/strace -f --seccomp-bpf -e trace=%file -o /dev/null "
	for _, kind := range []struct {
		to     *[]float64
		under  string
		traced bool
	}{{&b.untraced, "", false}, {&b.traced, "", true}, {&b.underTrace, strace, false}} {
		ms, err := b.start(kind.under, kind.traced)
		if err != nil {
			return fmt.Errorf("start (%q, traced: %v): %w", kind.under, kind.traced, err)
		}
		*kind.to = append(*kind.to, ms)
	}
	return nil
}

func (b *bench) start(under string, traced bool) (ms float64, err error) {
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	memory, err := os.MkdirTemp("/dev/shm", "srvfs-paper-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(memory)) }()
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(memory, d), 0o755); err != nil {
			return 0, err
		}
	}
	sb, err := sandbox.Start(ctx, sandbox.Config{
		Root: filepath.Join(memory, "root"), NewNet: true, Log: os.Stderr, Anticipate: traced,
		Mounts: append([]sandbox.Mount{
			{Source: "overlay", Target: "/", Type: "overlay", Data: fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", b.source.Root, memory, memory)},
			sandbox.ProcMount(), sandbox.TmpfsMount("/tmp", 0o1777), sandbox.TmpfsMount("/run", 0o755), sandbox.BindMount("/", "/mnt", true),
		}, sandbox.DevMounts()...),
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, sb.Stop(context.WithoutCancel(ctx))) }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	c := sandbox.Command{
		Argv: []string{"/bin/sh", "-ec", b.Start}, Umask: 0o022, Stdout: null, Stderr: null,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"},
	}
	if under != "" {
		c.Argv = append(strings.Fields(under), c.Argv...)
	}
	begin := time.Now()
	if traced {
		_, err = trace.New(sb).Start(ctx, c)
	} else {
		_, err = sb.Run(ctx, c)
	}
	if err != nil {
		return 0, err
	}
	for {
		conn, err := sb.Dial(ctx, "tcp", b.Address)
		if err == nil {
			took := time.Since(begin)
			return float64(took.Microseconds()) / 1e3, conn.Close()
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("it does not listen at %s: %w", b.Address, err)
		case <-time.After(time.Millisecond): // nothing tells when another process listens
		}
	}
}
