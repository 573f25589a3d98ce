package test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"srvfs/test/world"
)

// A distribution is the registry of that name, which runs on this machine and is reached at the
// client's address.
type distribution struct {
	addr string // on this machine
	end  func() // kills it
}

// distribution starts one whose content lies in a folder. With a login, that is for "user".
func (s *site) distribution(dir string, login bool) *distribution {
	s.Helper()
	free := must(net.Listen("tcp", "127.0.0.1:0"))(s.T)
	r := &distribution{addr: free.Addr().String()}
	s.check(free.Close())
	config := fmt.Sprintf("version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: %s\n", dir, r.addr)
	if login {
		file := filepath.Join(s.TempDir(), "htpasswd")
		s.check(os.WriteFile(file, []byte("user:$2y$05$Z8LxwfPsDM31TZj2bnjwAeXJDsCGrkJSMtRPTXC1FcGvVpYlKPoSq\n"), 0o600))
		config += "auth:\n  htpasswd:\n    realm: test\n    path: " + file + "\n"
	}
	file := filepath.Join(s.TempDir(), "config.yml")
	s.check(os.WriteFile(file, []byte(config), 0o600))
	c := exec.Command("docker-registry", "serve", file)
	s.check(c.Start())
	l := must(s.client.Listen(s.ctx, "tcp", ":5000"))(s.T)
	var work sync.WaitGroup
	r.end = sync.OnceFunc(func() {
		_ = l.Close()
		_ = c.Process.Kill()
		_ = c.Wait()
		work.Wait()
	})
	s.Cleanup(r.end)
	s.await("the registry answers", func() bool {
		conn, err := net.Dial("tcp", r.addr)
		return err == nil && conn.Close() == nil
	})
	work.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { forward(from, r.addr) })
		}
	})
	return r
}

// A service runs from a registry while its source is dead; what is not here yet is an
// error while the registry is gone, and is there when it is back.
func TestRegistryIsAnOrigin(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "for i in 1 2 3; do head -c 3000000 /dev/urandom > /var/www/html/large$i; done")
	s.captured()
	s.paired()
	s.on(s.standby, "srvfs prefetch "+s.source.Addr+"/web")
	dir := t.TempDir()
	r := s.distribution(dir, false)
	ref := "docker://" + s.client.Addr + ":5000/web:latest"
	s.on(s.standby, "srvfs export "+s.source.Addr+"/web --insecure -o "+ref)
	r.end()
	s.lose()
	gamma := s.gamma()
	s.on(gamma, "mkdir -p /mnt/v")

	s.fails(gamma, 5, "refused", "srvfs run --insecure "+ref)
	r = s.distribution(dir, true)
	s.fails(gamma, 4, "login", "srvfs run --insecure "+ref)
	r.end()
	r = s.distribution(dir, false)

	s.on(gamma, "srvfs run --insecure "+ref)
	if got := s.get(gamma, "/"); got != page {
		t.Errorf("run from the registry: %q", got)
	}
	if st := s.statusOn(gamma, "web"); st.Content.Missing.Bytes < 6_000_000 {
		t.Errorf("all came: %+v", st.Content)
	}
	r.end()
	if _, err := s.client.Get(s.ctx, "http://"+gamma.Addr+"/large1"); err == nil {
		t.Error("a file is read that is nowhere")
	}
	s.await("status tells that the registry is gone", func() bool { return s.origins(gamma, "web")[0].Failing != "" })
	s.distribution(dir, false)
	s.await("the file is there with the registry", func() bool {
		got, err := s.client.Get(s.ctx, "http://"+gamma.Addr+"/large1")
		return err == nil && len(got) == 3_000_000
	})
	s.on(gamma, "srvfs mount --insecure "+ref+"@1 /mnt/v && cmp /mnt/v/var/www/html/large1 /mnt/v/var/www/html/large1 && srvfs umount /mnt/v")
	s.on(gamma, "srvfs remove web")
	s.noResidue(gamma)
}
