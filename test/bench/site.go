package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"srvfs/sandbox"
	"srvfs/test/world"
)

// page is what the source's nginx serves.
const page = "<html><body>hello from the source</body></html>\n"

// A Site is the world in which everything is measured.
type Site struct {
	Short                         bool
	Source, Standby, Twin, Client *world.Host

	dir      string
	world    *world.World
	profiles string // folder for profiles, or empty
	srvd     *sandbox.Process
	wire     world.Wire
	services map[string]bool // that are captured
	listed   map[string]bool // of these, that have a list of their paths
	daemons  map[*world.Host]*sandbox.Process
	copies   map[string]bool     // of services' trees on the standby
	walks    map[string][]Sample // that were taken and not told yet, by run
}

func newSite(ctx context.Context, o options) (_ *Site, err error) {
	dir, err := os.MkdirTemp("", "srvfs-bench-")
	if err != nil {
		return nil, err
	}
	s := &Site{Short: o.short, dir: dir, profiles: o.profiles, services: map[string]bool{}, listed: map[string]bool{}, daemons: map[*world.Host]*sandbox.Process{}, copies: map[string]bool{}, walks: map[string][]Sample{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.world, err = world.New(ctx, dir); err != nil {
		return nil, err
	}
	for _, h := range []struct {
		host    **world.Host
		name    string
		kind    world.RootKind
		program string
	}{
		{&s.Source, "source", world.BenchSourceRoot, "srvd"},
		{&s.Standby, "standby", world.BenchStandbyRoot, "srvfs"},
		{&s.Twin, "twin", world.BenchSourceRoot, "srvfs"},
	} {
		if *h.host, err = s.world.Host(ctx, h.name, h.kind); err != nil {
			return nil, err
		}
		if err := (*h.host).Install("bin/"+h.program, "usr/local/sbin/"+h.program); err != nil {
			return nil, err
		}
		if s.profiles != "" {
			(*h.host).Env = []string{"SRVFS_PROFILE=/root/profiles"}
		}
	}
	if s.Client, err = s.world.Client(ctx); err != nil {
		return nil, err
	}
	return s, s.startSource(ctx)
}

// startSource starts what is served from the source: nginx, srvd, and the peers'
// daemons, for which the standby gets a key.
func (s *Site) startSource(ctx context.Context) error {
	key := filepath.Join(s.Standby.Root, "root/.ssh/id_ed25519.pub")
	if _, err := s.Standby.Shell(ctx, "mkdir -p -m 700 /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519"); err != nil {
		return err
	}
	public, err := os.ReadFile(key)
	if err != nil {
		return err
	}
	root := s.Source.Root
	if err := errors.Join(
		os.MkdirAll(filepath.Join(root, "root/.ssh"), 0o700),
		os.WriteFile(filepath.Join(root, "root/.ssh/authorized_keys"), public, 0o600),
		os.WriteFile(filepath.Join(root, "var/www/html/index.html"), []byte(page), 0o644),
		os.WriteFile(filepath.Join(root, "etc/rsyncd.conf"), []byte("use chroot = no\nuid = 0\ngid = 0\n[root]\npath = /\n"), 0o644)); err != nil {
		return err
	}
	if _, err := s.Source.Shell(ctx, "nginx; rsync --daemon; mkdir -p /run/sshd; /usr/sbin/sshd"); err != nil {
		return err
	}
	if s.srvd, _, err = s.Source.Start(ctx, "srvd", "serve"); err != nil {
		return err
	}
	for _, port := range []string{"80", "873", "22", "7077"} {
		if err := s.Source.Await(ctx, "127.0.0.1:"+port); err != nil {
			return err
		}
	}
	_, err = s.Standby.Shell(ctx, "ssh-keyscan "+s.Source.Addr+" > /root/.ssh/known_hosts 2>/dev/null; ssh root@"+s.Source.Addr+" true")
	return err
}

func (s *Site) close() error {
	var errs []error
	if s.world != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		errs = append(errs, s.endSource(ctx), s.world.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// nginx are the flags that capture the source's nginx.
const nginx = "--unit nginx --probe http://127.0.0.1/ "

// Service captures the source's nginx, once, as a service of that name, and lists
// its paths; see Capture and List.
func (s *Site) Service(ctx context.Context, name string, prepare func() error, flags string) error {
	if err := s.Capture(ctx, name, prepare, nginx+flags); err != nil {
		return err
	}
	return s.List(ctx, name)
}

// Capture captures a service of the source, once, under that name, with the flags
// of `srvd capture`, after prepare, if it is not nil, has put on the source what
// they speak of.
func (s *Site) Capture(ctx context.Context, name string, prepare func() error, flags string) error {
	if s.services[name] {
		return nil
	}
	if prepare != nil {
		if err := prepare(); err != nil {
			return err
		}
	}
	if _, err := s.Source.Shell(ctx, "srvd capture "+name+" -q "+flags); err != nil {
		return err
	}
	s.services[name] = true
	return nil
}

// List writes the paths of a captured service, once, to /root/NAME.closure on the
// source: what peers and baselines copy.
func (s *Site) List(ctx context.Context, name string) error {
	if s.listed[name] {
		return nil
	}
	_, err := s.Source.Shell(ctx, `srvd show `+name+` | awk 'NF>2 && $NF ~ /^\// {print substr($NF, 2)}' > /root/`+name+`.closure`)
	s.listed[name] = err == nil
	return err
}

// Spec names a service as the standby does.
func (s *Site) Spec(service string) string { return s.Source.Addr + "/" + service }

// Wire gives the source's wire that length and rate. Of what is short, delays are
// a fifth.
func (s *Site) Wire(ctx context.Context, w world.Wire) error {
	if s.Short {
		w.RTT /= 5
	}
	if w == s.wire {
		return nil
	}
	s.wire = w
	return s.Source.SetWire(ctx, w)
}

// Cool writes the hosts' changes to disk and empties the page cache; then it
// warms what is warm in life: the files that the source's nginx uses, and the
// programs that the lines call, on the source and on the host.
func (s *Site) Cool(ctx context.Context, h *world.Host, there, here string) error {
	if _, err := h.Shell(ctx, "sync; echo 3 > /proc/sys/vm/drop_caches"); err != nil {
		return err
	}
	const closure = "cd /; if test -e /root/web.closure; then xargs -d '\\n' cat < /root/web.closure > /dev/null 2>&1 || true; fi; " // folders are no files
	if _, err := s.Source.Shell(ctx, closure+"cat /usr/sbin/sshd > /dev/null; { "+or(there, "true")+"; } > /dev/null 2>&1"); err != nil {
		return err
	}
	_, err := h.Shell(ctx, "{ chroot / true; "+or(here, "true")+"; } > /dev/null 2>&1")
	return err
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// Daemon sets the wire and gives a host an empty state folder, paired with the
// source, a running
// daemon of srvfs, started with the flags, and a cold page cache. End it with
// EndDaemon.
func (s *Site) Daemon(ctx context.Context, h *world.Host, w world.Wire, flags ...string) error {
	if err := s.pair(ctx, h); err != nil {
		return err
	}
	if err := s.Wire(ctx, w); err != nil {
		return err
	}
	if err := s.Cool(ctx, h, "", "srvfs --help"); err != nil {
		return err
	}
	p, log, err := h.Start(ctx, append([]string{"srvfs", "daemon"}, flags...)...)
	if err != nil {
		return err
	}
	s.daemons[h] = p
	// It runs since the host was started, and keeps connections to its sources.
	if err := s.await(ctx, p, func() bool {
		text, err := os.ReadFile(log)
		return err == nil && bytes.Contains(text, []byte("msg=connected"))
	}); err != nil {
		text, _ := os.ReadFile(log)
		return fmt.Errorf("the daemon of %s: %w\n%s", h.Name, err, text)
	}
	return nil
}

// pair gives a host an empty state folder that is paired with the source.
func (s *Site) pair(ctx context.Context, h *world.Host) error {
	if err := s.EndDaemon(ctx, h); err != nil {
		return err
	}
	if err := s.idle(ctx, h); err != nil {
		return err
	}
	token, err := s.Source.Run(ctx, "srvd", "pair")
	if err != nil {
		return err
	}
	_, err = h.Shell(ctx, "rm -rf /var/lib/srvfs; srvfs pair "+strings.TrimSpace(token))
	return err
}

// EndDaemon ends the daemon of a host as systemd does.
func (s *Site) EndDaemon(ctx context.Context, h *world.Host) error {
	p := s.daemons[h]
	if p == nil {
		return nil
	}
	delete(s.daemons, h)
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_, err := p.Wait(ctx)
	return err
}

// idle waits until no program runs on a host.
func (s *Site) idle(ctx context.Context, h *world.Host) error {
	var left map[int]string
	var err error
	if waitErr := s.await(ctx, nil, func() bool {
		left, err = h.Processes()
		return err != nil || len(left) == 0
	}); waitErr != nil {
		return fmt.Errorf("%s still runs %v: %w", h.Name, left, waitErr)
	}
	return err
}

// await polls, until a process ends if one is given, for what announces itself
// in no other way.
func (s *Site) await(ctx context.Context, p *sandbox.Process, done func() bool) error {
	var ended <-chan struct{}
	if p != nil {
		ended = p.Ended()
	}
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			return errors.New("it ended")
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// Timed returns the seconds that f takes, and the bytes that the host receives
// meanwhile.
func (s *Site) Timed(h *world.Host, f func() error) (Sample, error) {
	before, err := h.Received()
	if err != nil {
		return Sample{}, err
	}
	start := time.Now()
	if err := f(); err != nil {
		return Sample{}, err
	}
	took := time.Since(start)
	after, err := h.Received()
	return Sample{took.Seconds(), after - before}, err
}

// Ask fetches the page from a host, as a client beside it does.
func (s *Site) Ask(ctx context.Context, h *world.Host) error {
	body, err := s.Client.Get(ctx, "http://"+h.Addr+"/")
	if err == nil && body != page {
		err = fmt.Errorf("%s serves %q, the source serves %q", h.Name, body, page)
	}
	return err
}
