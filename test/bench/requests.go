package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"srvfs/test/world"
)

// Requests for one file, as fast as nginx answers: it opens the file for each.
var _ = add(Row{
	Place: 60, Name: "nginx, 8 KiB file, requests/s in the root: local, stored and just fetched content", Unit: "requests/s",
	Reach: "0.97 of the same tree on plain overlayfs over ext4 (what every container gets), that one itself measured against native",
	Prepare: func(ctx context.Context, s *Site) error {
		for _, p := range pageServers {
			if err := s.pageService(ctx, p); err != nil {
				return err
			}
		}
		return nil
	},
	Runs:     []Run{{Name: "srvfs, local"}, {Name: "srvfs, stored"}, {Name: "srvfs, just fetched"}, {Name: plainOverlay}, {Name: native}},
	Together: serveTogether,
	Judge: func(r Results) (goals []Goal) {
		for _, p := range pageServers {
			goals = append(goals, r.Keeps(p.run, plainOverlay, 0.97))
		}
		return append(goals, r.Keeps(plainOverlay, native, 0))
	},
})

// A pageServer is an nginx that serves a page of its own at a port of its own.
type pageServer struct {
	run, service string
	port         int
}

// pageServers are the services. The baselines are the second one's tree.
var pageServers = []pageServer{{"srvfs, local", "local", 8101}, {"srvfs, stored", "stored", 8102}, {"srvfs, just fetched", "fetched", 8103}}

const (
	overlayPort = 8104
	nativePort  = 8105
	pageSize    = 8 << 10
)

// page lies where packages put files: those of the host are linked into the store,
// while what lies in /srv would be copied.
func (p pageServer) page() string { return "/usr/share/pages/" + p.service + "/page" }

// nginxConf is as Debian's, but for one worker, no access log, and connections
// that stay.
const nginxConf = `user www-data; worker_processes 1; worker_cpu_affinity auto; pid /run/page-%[1]d.pid; error_log /var/log/nginx/error.log;
events { worker_connections 768; }
http {
	sendfile on; tcp_nopush on; types_hash_max_size 2048; access_log off; keepalive_requests 1000000000;
	include /etc/nginx/mime.types; default_type application/octet-stream;
	server { listen %[1]d; root %[2]s; }
}
`

// pageService captures the service of a page, with the configuration of the baselines.
func (s *Site) pageService(ctx context.Context, p pageServer) error {
	return s.Capture(ctx, p.service, func() error {
		dir := filepath.Dir(p.page())
		conf := filepath.Join(s.Source.Root, "etc/nginx/pages", p.service)
		// Each page has content of its own: what is fetched must not be stored already.
		content := bytes.Repeat(fmt.Appendf(nil, "%-16s", p.service), pageSize/16)
		errs := []error{os.MkdirAll(filepath.Join(s.Source.Root, dir), 0o755), os.WriteFile(filepath.Join(s.Source.Root, p.page()), content, 0o644), os.MkdirAll(conf, 0o755)}
		for _, port := range []int{p.port, overlayPort, nativePort} {
			errs = append(errs, os.WriteFile(filepath.Join(conf, strconv.Itoa(port)), fmt.Appendf(nil, nginxConf, port, dir), 0o644))
		}
		return errors.Join(errs...)
	}, fmt.Sprintf("--exec \"nginx -g 'daemon off;' -c %s\" --probe http://127.0.0.1:%d/page --include %s --include /etc/nginx/pages/%s", p.conf(p.port), p.port, p.page(), p.service))
}

func (p pageServer) conf(port int) string {
	return fmt.Sprintf("/etc/nginx/pages/%s/%d", p.service, port)
}

// serveTogether runs the five servers, and asks each in turn for as long as wrk
// takes at least: a second or two.
func serveTogether(ctx context.Context, s *Site) (_ Results, err error) {
	slices, seconds := 5, 2
	if s.Short {
		slices, seconds = 1, 1
	}
	stored := pageServers[1]
	disk, err := s.Native(ctx, stored.service)
	if err != nil {
		return nil, err
	}
	overlay, err := s.Overlay(ctx, stored.service)
	if err != nil {
		return nil, err
	}
	if err := s.runPages(ctx); err != nil {
		return nil, err
	}
	servers := append(pageServers[:len(pageServers):len(pageServers)], pageServer{plainOverlay, stored.service, overlayPort}, pageServer{native, stored.service, nativePort})
	dirs := map[string]string{plainOverlay: overlay, native: disk}
	for _, p := range servers {
		if dir := dirs[p.run]; dir != "" {
			if _, err := s.Standby.Shell(ctx, "chroot "+dir+" nginx -c "+p.conf(p.port)); err != nil {
				return nil, err
			}
		}
		if err := s.checkPage(ctx, p); err != nil {
			return nil, err
		}
	}
	before, err := s.pageUpcalls(ctx)
	if err != nil {
		return nil, err
	}
	results := Results{}
	for i := range slices {
		for j := range servers {
			p := servers[j]
			if i%2 == 1 { // to and fro: a drift cancels out
				p = servers[len(servers)-1-j]
			}
			rate, err := s.wrk(ctx, p.port, seconds)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.run, err)
			}
			results[p.run] = append(results[p.run], Sample{Value: rate})
		}
	}
	after, err := s.pageUpcalls(ctx)
	if err == nil && after != before {
		err = fmt.Errorf("the kernel has asked the views %d times while the pages were warm", after-before)
	}
	if err != nil {
		return nil, err
	}
	for _, p := range servers {
		line := "srvfs remove " + p.service
		if dir := dirs[p.run]; dir != "" {
			line = strings.NewReplacer("DIR", dir, "nginx.pid", fmt.Sprintf("page-%d.pid", p.port)).Replace(stopNginx)
		}
		if _, err := s.Standby.Shell(ctx, line); err != nil {
			return nil, err
		}
	}
	return results, s.EndDaemon(ctx, s.Standby)
}

// runPages runs the services of the pages: of the first the standby has the page
// itself, which prefetch finds, the second one's content is prefetched, the third one's comes as it is
// asked for.
func (s *Site) runPages(ctx context.Context) error {
	local, stored := pageServers[0], pageServers[1]
	own := filepath.Join(s.Standby.Root, local.page())
	content, err := os.ReadFile(filepath.Join(s.Source.Root, local.page()))
	if err == nil {
		err = os.MkdirAll(filepath.Dir(own), 0o755)
	}
	if err == nil {
		err = os.WriteFile(own, content, 0o644)
	}
	if err == nil { // what was just written could be written again unseen, and is not linked
		hour := time.Now().Add(-time.Hour)
		err = os.Chtimes(own, hour, hour)
	}
	if err != nil {
		return err
	}
	if err := s.Daemon(ctx, s.Standby, world.Wire{}); err != nil {
		return err
	}
	if _, err := s.Standby.Shell(ctx, "srvfs prefetch "+s.Spec(local.service)+"; srvfs prefetch "+s.Spec(stored.service)); err != nil {
		return err
	}
	for _, p := range pageServers {
		if _, err := s.Standby.Shell(ctx, "srvfs run "+s.Spec(p.service)); err != nil {
			return err
		}
	}
	if links, err := s.Standby.Shell(ctx, "stat -c %h "+local.page()); err != nil {
		return err
	} else if strings.TrimSpace(links) == "1" {
		return fmt.Errorf("%s of the standby is not used: nothing links to it", local.page())
	}
	return nil
}

// checkPage asks for a page, which also warms it.
func (s *Site) checkPage(ctx context.Context, p pageServer) error {
	want, err := os.ReadFile(filepath.Join(s.Source.Root, p.page()))
	if err != nil {
		return err
	}
	if err := s.Standby.Await(ctx, fmt.Sprintf("127.0.0.1:%d", p.port)); err != nil {
		return err
	}
	got, err := s.Standby.Get(ctx, fmt.Sprintf("http://127.0.0.1:%d/page", p.port))
	if err == nil && got != string(want) {
		err = fmt.Errorf("%s serves %d bytes that are not the page", p.run, len(got))
	}
	return err
}

// pageUpcalls returns what the kernel has asked the views of all pages.
func (s *Site) pageUpcalls(ctx context.Context) (n uint64, err error) {
	for _, p := range pageServers {
		st, err := s.Status(ctx, s.Standby, p.service)
		if err != nil {
			return 0, err
		}
		n += st.Asked()
	}
	return n, nil
}

// wrk asks the standby itself for a page for so many seconds, over connections that
// stay, and returns the answers per second.
func (s *Site) wrk(ctx context.Context, port, seconds int) (float64, error) {
	out, err := s.Standby.Shell(ctx, fmt.Sprintf("wrk -t1 -c8 -d%ds http://127.0.0.1:%d/page", seconds, port))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch {
		case strings.HasPrefix(key, "Non-2xx") || key == "Socket errors":
			return 0, fmt.Errorf("wrk: %s", strings.TrimSpace(line))
		case key == "Requests/sec":
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("wrk says no rate:\n%s", out)
}
