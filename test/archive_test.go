package test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"srvfs/test/world"
)

// tool runs a program of this machine; it must succeed.
func (s *site) tool(argv ...string) string {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		s.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// An export is what srvd and srvfs print of one with --json.
type export struct {
	Sequence  uint64
	Unchanged bool
	Layers    int
	Members   int
	Bytes     int64
	Added     int64
}

func (s *site) export(h *world.Host, line string) (e export) {
	s.Helper()
	s.check(json.Unmarshal([]byte(s.on(h, line+" --json")), &e))
	return e
}

// layers returns the layers of the newest image in a layout.
func (s *site) layers(dir string) (layers []string) {
	s.Helper()
	var image struct{ Layers []string }
	s.check(json.Unmarshal([]byte(s.tool("skopeo", "inspect", "oci:"+dir+":latest")), &image))
	for _, l := range image.Layers {
		layers = append(layers, filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(l, "sha256:")))
	}
	return layers
}

// unpack has umoci unpack an image. The umoci of Debian 12 knows no zstd; skopeo helps.
func (s *site) unpack(dir string) string {
	s.Helper()
	tmp := s.TempDir()
	s.tool("skopeo", "copy", "--dest-compress", "--dest-compress-format=gzip", "oci:"+dir+":latest", "oci:"+tmp+"/gzip:it")
	s.tool("umoci", "unpack", "--image", tmp+"/gzip:it", tmp+"/bundle")
	return filepath.Join(tmp, "bundle/rootfs")
}

// same holds an unpacked tree against the source, entry for entry, and returns how many
// there are.
func (s *site) same(dir string) (n int) {
	s.Helper()
	s.check(filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, dir)
		if n++; rel != "" {
			s.compare(filepath.Join(s.source.Root, rel), p, rel)
		}
		return nil
	}))
	return n
}

// registry starts Debian's registry, and lets the hosts reach it on their port 5000. It
// returns its address here, and what ends it.
func (s *site) registry(hosts ...*world.Host) (addr string, stop func()) {
	s.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	s.check(err)
	addr = l.Addr().String()
	s.check(l.Close())
	dir := s.TempDir()
	s.check(os.WriteFile(dir+"/config.yml", fmt.Appendf(nil, "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: %s/data\nhttp:\n  addr: %s\n", dir, addr), 0o644))
	c := exec.Command("docker-registry", "serve", dir+"/config.yml")
	s.check(c.Start())
	s.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	s.await("the registry answers", func() bool {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil
	})
	for _, h := range hosts {
		l, err := h.Listen(s.ctx, "tcp", "127.0.0.1:5000")
		s.check(err)
		s.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go forward(c, addr)
			}
		}()
	}
	return addr, func() { _ = c.Process.Kill() }
}

func forward(from net.Conn, addr string) {
	defer func() { _ = from.Close() }()
	to, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer func() { _ = to.Close() }()
	go func() { _, _ = io.Copy(to, from); _ = to.(*net.TCPConn).CloseWrite() }()
	_, _ = io.Copy(from, to)
}

// What srvd and srvfs export, the distribution's own tools inspect, copy, unpack and start.
func TestArchive(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured("-q")
	archive := filepath.Join(s.source.Root, "backup/web")
	s.on(s.source, "mkdir /backup")
	first := s.export(s.source, "srvd archive web -o /backup/web")
	if first.Layers != 1 || first.Unchanged || first.Members < 1000 {
		t.Errorf("first export: %+v", first)
	}
	t.Logf("first export: %+v", first)
	if again := s.export(s.source, "srvd archive web -o /backup/web"); !again.Unchanged {
		t.Errorf("second export of the same: %+v", again)
	}
	n := s.same(s.unpack(archive))
	if n < 1000 {
		t.Errorf("umoci unpacked %d entries", n)
	}

	// Small changes cost what has changed.
	old := s.layers(archive)
	before := s.tool(append([]string{"sha256sum"}, old...)...)
	noise := make([]byte, 1<<20)
	_, _ = rand.Read(noise)
	s.check(os.WriteFile(filepath.Join(s.source.Root, "var/www/html/noise"), noise, 0o644))
	s.on(s.source, "seq 200000 > /var/www/html/text; rm -r /etc/nginx/snippets; mv /etc/nginx/mime.types /etc/nginx/types; sed -i s/mime.types/types/ /etc/nginx/nginx.conf; rm /etc/nginx/win-utf; mkdir /etc/nginx/win-utf; ln /var/www/html/text /var/www/html/twice; chmod 711 /var/www")
	s.on(s.source, "srvd capture web -q --unit nginx --probe http://127.0.0.1/")
	second := s.export(s.source, "srvd archive web -o /backup/web")
	changed := int64(len(s.zstd("var/www/html/noise"))+len(s.zstd("var/www/html/text"))) + int64(len(s.zstd("etc/nginx/types"))+len(s.zstd("etc/nginx/nginx.conf")))
	t.Logf("second export: %+v; what has changed has %d bytes, compressed", second, changed)
	if second.Layers != 2 || second.Added > changed*12/10 {
		t.Errorf("second export: %+v, want at most 1.2 times %d bytes", second, changed)
	}
	if got := s.tool(append([]string{"sha256sum"}, old...)...); got != before || len(s.layers(archive)) != 2 || s.layers(archive)[0] != old[0] {
		t.Errorf("the old layers have changed: %s, were %s", got, before)
	}
	root := s.unpack(archive)
	s.same(root)
	for _, gone := range []string{"etc/nginx/snippets", "etc/nginx/mime.types"} {
		if _, err := os.Lstat(filepath.Join(root, gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}

	// podman runs it, where it can run: in a cgroup tree of its own, without limits that the
	// machine may not raise.
	s.podman(archive)

	// tar and chroot are enough to start it.
	plain := filepath.Join(s.standby.Root, "srv/plain")
	s.check(os.MkdirAll(plain, 0o755))
	for _, layer := range s.layers(archive) {
		s.tool("sh", "-ec", `cd "$0"
			tar --zstd -tf "$1" | sed -n 's|\(.*/\)\.wh\.\([^/]*\)$|\1\2|p' | while read -r gone; do rm -rf "./$gone"; done
			tar --zstd --xattrs --xattrs-include='*' --exclude='.wh.*' --numeric-owner -xpf "$1"`, plain, layer)
	}
	s.same(plain)
	s.on(s.standby, "mkdir -p /srv/plain/dev /srv/plain/run /srv/plain/var/log/nginx /srv/plain/var/lib/nginx /srv/plain/tmp; mount --bind /dev /srv/plain/dev; chroot /srv/plain /usr/sbin/nginx")
	s.check(s.standby.Await(s.ctx, "127.0.0.1:80"))
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("nginx in the folder that tar made says %q", got)
	}
	s.on(s.standby, "chroot /srv/plain /usr/sbin/nginx -s stop")
	s.await("nginx is gone", func() bool { return !s.runs(s.standby, "nginx") })
	s.on(s.standby, "umount /srv/plain/dev; rm -rf /srv/plain")

	// Into a registry, also from a standby whose source is gone.
	addr, stop := s.registry(s.source, s.standby)
	s.on(s.source, "srvd archive web -o docker://127.0.0.1:5000/web:stable")
	if got := s.tool("skopeo", "inspect", "--tls-verify=false", "docker://"+addr+"/web:stable"); !strings.Contains(got, `"srvfs.service": "web"`) {
		t.Errorf("skopeo inspect: %s", got)
	}
	s.paired()
	s.on(s.standby, "mkdir /backup; srvfs prefetch "+s.source.Addr+"/web")
	s.lose()
	third := s.export(s.standby, "srvfs export "+s.source.Addr+"/web -o docker://127.0.0.1:5000/web:stable")
	if !third.Unchanged {
		t.Errorf("the standby exports another state: %+v", third)
	}
	t.Log(s.on(s.standby, "srvfs export "+s.source.Addr+"/web -o /backup/web.tar"))
	if got := s.on(s.standby, "cd /backup && srvfs export "+s.source.Addr+"/web -o web.tar"); !strings.Contains(got, "nothing was written") {
		t.Errorf("again: %s", got)
	}
	// What a tool has copied from the file is mounted and run by a standby that has nothing.
	for tag, to := range map[string]string{":latest": ":v1", ":latest-snapshot": ":v1-snapshot"} {
		s.tool("skopeo", "copy", "--dest-tls-verify=false", "oci-archive:"+filepath.Join(s.standby.Root, "backup/web.tar")+tag, "docker://"+addr+"/copied"+to)
	}
	s.on(s.standby, "srvfs --state /var/lib/other --host-root '' run docker://127.0.0.1:5000/copied:v1")
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("run from the registry: %q", got)
	}
	s.on(s.standby, "srvfs --state /var/lib/other --host-root '' remove web")
	stop()

	// What can't be done is said.
	s.fails(s.standby, 5, "127.0.0.1:5000", "srvfs export "+s.source.Addr+"/web -o docker://127.0.0.1:5000/web:stable")
	s.fails(s.standby, 2, "--link goes with", "srvfs export "+s.source.Addr+"/web -o /srv/web --link")
	s.fails(s.standby, 2, "-o is missing", "srvfs export "+s.source.Addr+"/web")
	s.fails(s.standby, 1, "only a FILE.tar can be encrypted", "srvfs export "+s.source.Addr+"/web -o /backup/x --encrypt age1x")
	s.fails(s.standby, 1, "recipient", "srvfs export "+s.source.Addr+"/web -o /backup/x.tar --encrypt age1x")
	s.fails(s.standby, 1, "not empty", "srvfs export "+s.source.Addr+"/web -o /etc")
	s.noResidue(s.standby)
}

// podman runs the newest image of a layout, and asks it for the page. It runs in a mount
// namespace with the second version of cgroups alone, since crun refuses a mixture, and
// with limits that need not be raised.
func (s *site) podman(layout string) {
	s.Helper()
	dir := s.TempDir()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--propagation", "private", "sh", "-ec", `
		ip link set lo up
		for m in $(awk '$2 ~ "^/sys/fs/cgroup" {print $2}' /proc/mounts | sort -r); do umount -l "$m"; done
		mount -t cgroup2 none /sys/fs/cgroup
		mount -t tmpfs none /mnt # podman wants short paths, and lower-case ones
		mkdir /mnt/web && mount --bind "$1" /mnt/web
		p="podman --root $0/root --runroot /mnt/run --tmpdir /mnt/tmp --storage-driver vfs --cgroup-manager cgroupfs --events-backend file"
		id=$($p pull -q oci:/mnt/web:latest)
		$p run -d --name web --network host --cgroups disabled --log-driver k8s-file --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$id" >&2
		trap '$p logs web >&2; $p rm -f -t 5 web >&2' EXIT
		for _ in $(seq 100); do curl -sf http://127.0.0.1/ && break || sleep 0.1; done
		$p stop -t 10 web >&2
		[ "$($p inspect web --format '{{.State.ExitCode}}')" != 137 ]`, dir, layout)
	var log bytes.Buffer
	c.Stderr = &log
	out, err := c.Output()
	if err != nil || string(out) != page {
		s.Errorf("podman: %q, %v\n%s", out, err, log.String())
	}
}

// zstd returns a file of the source, compressed.
func (s *site) zstd(name string) []byte {
	s.Helper()
	var out bytes.Buffer
	c := exec.CommandContext(s.ctx, "zstd", "-q", "-c", filepath.Join(s.source.Root, name))
	c.Stdout = &out
	s.check(c.Run())
	return out.Bytes()
}
