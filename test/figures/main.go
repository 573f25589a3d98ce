// Command figures measures the main job beside rsync, in the same run and in
// turn, and prints a Markdown table of medians: what the README quotes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"srvfs/sandbox"
	"srvfs/test/world"
)

func main() {
	sandbox.Init()
	world.Private()
	rounds := flag.Int("rounds", 5, "how often each is measured")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	if err := run(ctx, *rounds); err != nil {
		fmt.Fprintf(os.Stderr, "figures: %v\n", err)
		os.Exit(1)
	}
}

const page = "<html><body>hello from the source</body></html>\n"

// A sample is one measurement.
type sample struct {
	took  time.Duration
	bytes int64 // that the standby received
}

type bench struct {
	ctx                           context.Context
	source, standby, twin, client *world.Host
	rows                          []string
	samples                       map[string][]sample
}

func run(ctx context.Context, rounds int) (err error) {
	dir, err := os.MkdirTemp("", "srvfs-figures-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w, err := world.New(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	b := &bench{ctx: ctx, samples: map[string][]sample{}}
	if err := b.build(w); err != nil {
		return err
	}
	for range rounds {
		if err := b.round(); err != nil {
			return err
		}
	}
	return b.print(rounds)
}

func (b *bench) build(w *world.World) (err error) {
	if b.source, err = w.Host(b.ctx, "source", world.SourceRoot); err != nil {
		return err
	}
	if b.standby, err = w.Host(b.ctx, "standby", world.StandbyRoot); err != nil {
		return err
	}
	if b.twin, err = w.Host(b.ctx, "twin", world.SourceRoot); err != nil {
		return err
	}
	if b.client, err = w.Client(b.ctx); err != nil {
		return err
	}
	if err := errors.Join(
		b.source.Install("bin/srvd", "usr/local/sbin/srvd"),
		b.standby.Install("bin/srvfs", "usr/local/sbin/srvfs"),
		b.twin.Install("bin/srvfs", "usr/local/sbin/srvfs"),
		os.WriteFile(filepath.Join(b.source.Root, "var/www/html/index.html"), []byte(page), 0o644),
		os.WriteFile(filepath.Join(b.source.Root, "etc/rsyncd.conf"), []byte("use chroot = no\nuid = 0\ngid = 0\n[root]\npath = /\n"), 0o644)); err != nil {
		return err
	}
	for _, line := range []string{"nginx", "rsync --daemon", capture + " -q",
		`srvd show web | awk 'NF>2 && $NF ~ /^\// {print $NF}' > /root/closure`} {
		if _, err := b.source.Shell(b.ctx, line); err != nil {
			return err
		}
	}
	if _, _, err := b.source.Start(b.ctx, "srvd", "serve"); err != nil {
		return err
	}
	return errors.Join(b.source.Await(b.ctx, "127.0.0.1:7077"), b.source.Await(b.ctx, "127.0.0.1:873"), b.source.Await(b.ctx, "127.0.0.1:80"))
}

const capture = "srvd capture web --unit nginx --probe http://127.0.0.1/"

// round measures everything once, in turn.
func (b *bench) round() error {
	web := b.source.Addr + "/web"
	steps := []struct {
		row  string
		on   *world.Host
		line string
		ask  bool // the client then asks the host for the page
		done string
	}{
		{"capture, first", b.source, capture + " -q --state /root/fresh", false, "rm -rf /root/fresh"},
		{"capture, again", b.source, capture + " -q", false, ""},
		{"mount", b.standby, "mkdir -p /srv/web; srvfs mount " + web + " /srv/web", false, "srvfs umount /srv/web"},
		{"first answer, nothing local", b.standby, "srvfs run --host-root '' " + web, true, "srvfs remove web"},
		{"rsync -a of the same files, chroot, nothing local", b.standby, "mkdir /srv/copy; rsync -a --files-from=:/root/closure rsync://" + b.source.Addr + "/root/ /srv/copy/; mkdir -p /srv/copy/dev /srv/copy/run; mknod /srv/copy/dev/null c 1 3; chroot /srv/copy nginx", true, "kill $(cat /srv/copy/run/nginx.pid); rm -rf /srv/copy"},
		{"first answer, the standby has the same release", b.standby, "srvfs run " + web, true, "srvfs remove web"},
		{"first answer, the standby has the same packages", b.twin, "srvfs run " + web, true, "srvfs remove web"},
		{"prefetch, nothing local", b.standby, "srvfs prefetch --host-root '' " + web, false, ""},
		{"start again, detached", b.standby, "srvfs run " + web, true, "srvfs remove web"},
	}
	for _, s := range steps {
		if s.on != b.source && !strings.Contains(s.row, "again") {
			if err := b.fresh(s.on); err != nil {
				return err
			}
		}
		before, err := s.on.Received()
		if err != nil {
			return err
		}
		start := time.Now()
		if _, err := s.on.Shell(b.ctx, s.line); err != nil {
			return err
		}
		if s.ask {
			body, err := b.client.Get(b.ctx, "http://"+s.on.Addr+"/")
			if err != nil || body != page {
				return fmt.Errorf("%s: the client got %q: %w", s.row, body, err)
			}
		}
		took := time.Since(start)
		after, err := s.on.Received()
		if err != nil {
			return err
		}
		if b.samples[s.row] == nil {
			b.rows = append(b.rows, s.row)
		}
		b.samples[s.row] = append(b.samples[s.row], sample{took, after - before})
		if s.done != "" {
			if _, err := s.on.Shell(b.ctx, s.done); err != nil {
				return err
			}
		}
	}
	return nil
}

// fresh gives a host an empty state folder, paired, with no daemon.
func (b *bench) fresh(h *world.Host) error {
	token, err := b.source.Run(b.ctx, "srvd", "pair")
	if err != nil {
		return err
	}
	for {
		procs, err := h.Processes()
		if err != nil {
			return err
		}
		if len(procs) == 0 {
			break
		}
		select {
		case <-b.ctx.Done():
			return fmt.Errorf("%s still runs %v", h.Name, procs)
		case <-time.After(20 * time.Millisecond): // the daemon ends a moment after its last service
		}
	}
	_, err = h.Shell(b.ctx, "rm -rf /var/lib/srvfs; srvfs pair "+strings.TrimSpace(token)+"; sync; echo 3 > /proc/sys/vm/drop_caches")
	return err
}

func (b *bench) print(rounds int) error {
	model := "unknown processor"
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	cores := 0
	for line := range strings.Lines(string(info)) {
		if v, ok := strings.CutPrefix(line, "model name"); ok {
			model = strings.TrimSpace(strings.TrimLeft(strings.TrimSpace(v), ": \t"))
			cores++
		}
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	fmt.Printf("%d rounds in turn; %d x %s, Linux %s; both hosts on one machine, no delay on the wire, cold page cache.\n\n", rounds, cores, model, strings.TrimSpace(string(release)))
	fmt.Println("| what | median s | min - max s | MB received |\n| --- | --- | --- | --- |")
	for _, row := range b.rows {
		all := b.samples[row]
		slices.SortFunc(all, func(x, y sample) int { return int(x.took - y.took) })
		mid := all[len(all)/2]
		fmt.Printf("| %s | %.2f | %.2f - %.2f | %.2f |\n", row, mid.took.Seconds(), all[0].took.Seconds(), all[len(all)-1].took.Seconds(), float64(mid.bytes)/1e6)
	}
	return nil
}
