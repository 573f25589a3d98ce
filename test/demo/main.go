// Command demo plays the main job on this machine: two hosts as network
// namespaces with root folders of their own, nginx on one of them. It is
// captured there, runs on the other, and goes on when its source is gone. Each
// step is printed with its time and the bytes that the standby received.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"srvfs/sandbox"
	"srvfs/test/world"
)

func main() {
	sandbox.Init()
	world.Private()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	err := run(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

const page = "<html><body>hello from the source</body></html>\n"

type demo struct {
	ctx                     context.Context
	source, standby, client *world.Host
}

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root rights: it makes mounts and namespaces; run it as root, for example with sudo")
	}
	dir, err := os.MkdirTemp("", "srvfs-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	start := time.Now()
	w, err := world.New(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	d := &demo{ctx: ctx}
	if d.source, err = w.Host(ctx, "source", world.SourceRoot); err != nil {
		return err
	}
	if d.standby, err = w.Host(ctx, "standby", world.StandbyRoot); err != nil {
		return err
	}
	if d.client, err = w.Client(ctx); err != nil {
		return err
	}
	if err := errors.Join(
		d.source.Install("bin/srvd", "usr/local/sbin/srvd"),
		d.standby.Install("bin/srvfs", "usr/local/sbin/srvfs"),
		os.WriteFile(filepath.Join(d.source.Root, "var/www/html/index.html"), []byte(page), 0o644)); err != nil {
		return err
	}
	if _, err := d.source.Run(ctx, "nginx"); err != nil {
		return err
	}
	if err := d.source.Await(ctx, "127.0.0.1:80"); err != nil {
		return err
	}
	title("two hosts: source %s runs nginx, standby %s has none; a client", d.source.Addr, d.standby.Addr)
	row("hosts are up", time.Since(start), 0)
	return d.story()
}

func (d *demo) story() error {
	web := d.source.Addr + "/web"
	steps := []struct {
		title string
		on    *world.Host
		cmd   string
	}{
		{"capture: find out what nginx needs, by itself, and prove it", d.source, "srvd capture web --unit nginx --probe http://127.0.0.1/"},
		{"serve and pair: a one-time token, then both sides know each other's key", nil, ""},
		{"run on the standby: view, root, processes; only what is touched is fetched", d.standby, "srvfs run " + web},
		{"the client asks the standby", d.client, ""},
		{"how much is here?", d.standby, "srvfs status"},
		{"prefetch: bring in the rest", d.standby, "srvfs prefetch web"},
		{"the source dies: srvd killed, host gone", nil, "crash"},
		{"stop and start again, with no source", d.standby, "srvfs stop web && srvfs run web"},
		{"the client asks again", d.client, ""},
		{"remove: nothing is left", d.standby, "srvfs remove web"},
	}
	for _, s := range steps {
		title("%s", s.title)
		before, err := d.standby.Received()
		if err != nil {
			return err
		}
		start := time.Now()
		switch {
		case s.on == d.client:
			err = d.ask()
		case s.cmd == "crash":
			err = d.source.Crash(d.ctx)
		case s.cmd == "":
			err = d.pair()
		default:
			fmt.Printf("  %s# %s\n", s.on.Name, s.cmd)
			var out string
			out, err = s.on.Shell(d.ctx, s.cmd)
			for line := range strings.Lines(out) {
				fmt.Printf("    %s", line)
			}
		}
		if err != nil {
			return err
		}
		took := time.Since(start)
		after, err := d.standby.Received()
		if err != nil {
			return err
		}
		row("", took, after-before)
	}
	return d.residue()
}

func (d *demo) pair() error {
	fmt.Println("  source# srvd serve &")
	if _, _, err := d.source.Start(d.ctx, "srvd", "serve"); err != nil {
		return err
	}
	if err := d.source.Await(d.ctx, "127.0.0.1:7077"); err != nil {
		return err
	}
	fmt.Println("  source# srvd pair")
	token, err := d.source.Run(d.ctx, "srvd", "pair")
	if err != nil {
		return err
	}
	token = strings.TrimSpace(token)
	fmt.Printf("    %.40s...\n  standby# srvfs pair TOKEN\n", token)
	out, err := d.standby.Run(d.ctx, "srvfs", "pair", token)
	fmt.Printf("    %s", out)
	return err
}

func (d *demo) ask() error {
	url := "http://" + d.standby.Addr + "/"
	fmt.Printf("  client# curl %s\n", url)
	body, err := d.client.Get(d.ctx, url)
	if err != nil {
		return err
	}
	fmt.Printf("    %s", body)
	if body != page {
		return fmt.Errorf("the standby serves %q, the source served %q", body, page)
	}
	return nil
}

// residue fails if the standby still has a process, mount or folder of the
// service.
func (d *demo) residue() error {
	for {
		procs, err := d.standby.Processes()
		if err != nil {
			return err
		}
		if len(procs) == 0 {
			break
		}
		select {
		case <-d.ctx.Done():
			return fmt.Errorf("processes are left on the standby: %v", procs)
		case <-time.After(20 * time.Millisecond): // the daemon ends a moment after the last service
		}
	}
	for _, kind := range []string{"fuse.srvfs", " - overlay"} {
		if mounts, err := d.standby.Mounts(kind); err != nil || len(mounts) > 0 {
			return errors.Join(err, fmt.Errorf("mounts are left on the standby: %v", mounts))
		}
	}
	fmt.Println("\nno process, mount or folder of the service is left on the standby")
	return nil
}

func title(format string, args ...any) { fmt.Printf("\n"+format+"\n", args...) }

func row(what string, took time.Duration, received int64) {
	if what == "" {
		what = "done"
	}
	fmt.Printf("  -> %s in %.3f s", what, took.Seconds())
	if received > 0 {
		fmt.Printf("; the standby received %.2f MB", float64(received)/1e6)
	}
	fmt.Println()
}
