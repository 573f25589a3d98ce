package test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"srvfs/manifest"
	"srvfs/test/world"
)

// gamma is another standby.
func (s *site) gamma() *world.Host {
	s.Helper()
	h := must(s.world.Host(s.ctx, "gamma", world.StandbyRoot))(s.T)
	s.check(h.Install(filepath.Join(binaries, "srvfs"), "usr/local/sbin/srvfs"))
	return h
}

// allOf reads everything in a folder of a host, and returns a digest of it.
func (s *site) allOf(h *world.Host, dir string) string {
	s.Helper()
	return s.on(h, "cd "+dir+" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum && find . | wc -l")
}

// An origin is what `srvfs status --json` says of one.
type origin struct {
	Name    string
	Failing string
	Corrupt uint64
	LastBad string `json:"last_bad"`
}

// origins returns where the content of a view on a host comes from, in order.
func (s *site) origins(h *world.Host, name string) (all []origin) {
	s.Helper()
	var views []struct{ Origins []origin }
	s.check(json.Unmarshal([]byte(s.on(h, "srvfs status --json "+name)), &views))
	if len(views) != 1 {
		s.Fatalf("%d views are called %s", len(views), name)
	}
	return views[0].Origins
}

// A standby that has everything serves another one: before the source, and instead of it
// when it is lost.
func TestStandbysServeEachOther(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	s.paired()
	gamma := s.gamma()
	s.fails(gamma, 4, "not paired", "mkdir -p /mnt/v /mnt/w; srvfs mount "+s.source.Addr+"/web /mnt/v")
	s.on(gamma, "srvfs pair "+strings.TrimSpace(s.on(s.source, "srvd pair")))

	s.on(s.standby, "srvfs prefetch "+s.source.Addr+"/web && srvfs serve")
	s.on(s.standby, "mkdir -p /mnt/v && srvfs mount "+s.source.Addr+"/web /mnt/v")
	want := s.allOf(s.standby, "/mnt/v")
	token := strings.TrimSpace(s.on(s.standby, "srvfs peers token"))
	s.on(gamma, "srvfs pair "+token)
	s.fails(gamma, 4, "srvfs peers token", "srvfs --state /var/lib/x pair "+token)
	if out := s.on(gamma, "srvfs list "+s.standby.Addr); !strings.Contains(out, "SOURCE") || !strings.Contains(out, "web") {
		t.Errorf("the standby offers\n%s", out)
	}

	// While the source lives, the standby is asked first.
	s.on(gamma, "srvfs mount "+s.source.Addr+"/web /mnt/v")
	s.await("the standby has said what it has", func() bool { return len(s.origins(gamma, "/mnt/v")) == 2 })
	o := s.origins(gamma, "/mnt/v")
	if !strings.HasPrefix(o[0].Name, "standby ") || o[1].Name != s.source.Addr || o[0].Failing+o[1].Failing != "" {
		t.Errorf("content comes from %+v", o)
	}
	s.on(gamma, "srvfs umount /mnt/v")

	// The source dies. gamma has never asked for what is mounted now.
	s.lose()
	s.await("gamma's daemon has ended", func() bool { return !s.runs(gamma, "srvfs") })
	s.on(gamma, "rm -rf /var/lib/srvfs/store")
	out := s.on(gamma, "srvfs mount "+s.source.Addr+"/web /mnt/v && srvfs status /mnt/v")
	if !strings.Contains(out, "failing") {
		t.Errorf("status with a dead source:\n%s", out)
	}
	if got := s.allOf(gamma, "/mnt/v"); got != want {
		t.Errorf("through the standby: %s, want %s", got, want)
	}
	s.on(gamma, "srvfs umount /mnt/v")

	// A third knows the standby only, which is killed between.
	s.endProcess(s.standby, "srvfs", "KILL")
	s.on(s.standby, "srvfs status")
	const third = "srvfs --state /var/lib/third "
	s.on(gamma, third+"pair "+strings.TrimSpace(s.on(s.standby, "srvfs peers token")))
	name := strings.TrimSpace(s.on(s.source, "hostname"))
	s.on(gamma, third+"run "+name+"/web")
	if got := s.get(gamma, "/"); got != page {
		t.Errorf("gamma serves %q", got)
	}
	s.on(gamma, third+"remove web")
	s.on(gamma, third+"mount "+s.standby.Addr+"/web /mnt/w")
	if got := s.allOf(gamma, "/mnt/w"); got != want {
		t.Errorf("by the standby's own name: %s, want %s", got, want)
	}
	s.on(gamma, third+"umount /mnt/w")

	// A peer that is revoked gets nothing more.
	peers := s.on(s.standby, "srvfs peers")
	if strings.Count(peers, "paired") != 2 {
		t.Errorf("peers:\n%s", peers)
	}
	for line := range strings.Lines(peers) {
		if f := strings.Fields(line); f[1] == "paired" {
			s.on(s.standby, "srvfs peers revoke "+f[0])
		}
	}
	s.fails(gamma, 4, "revoked", "srvfs list "+s.standby.Addr)
	s.on(s.standby, "srvfs serve --stop")
	s.fails(s.standby, 1, "serves no other", "srvfs serve --stop")
	s.fails(gamma, 5, "refused", "srvfs list "+s.standby.Addr)
	for _, h := range []*world.Host{s.standby, gamma} {
		s.noResidue(h)
	}
}

// A standby that knows no source follows it by way of another one.
func TestFollowByWayOfAStandby(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "srvd capture web -q --unit nginx --probe http://127.0.0.1/")
	_, _, err := s.source.Start(s.ctx, "srvd", "serve", "--follow")
	s.check(err)
	s.check(s.source.Await(s.ctx, "127.0.0.1:7077"))
	s.paired()
	s.on(s.standby, "srvfs follow "+s.source.Addr+"/web && srvfs serve")
	gamma := s.gamma()
	s.on(gamma, "srvfs pair "+strings.TrimSpace(s.on(s.standby, "srvfs peers token")))
	name := strings.TrimSpace(s.on(s.source, "hostname"))
	s.on(gamma, "srvfs follow "+name+"/web")
	for _, text := range []string{"one", "two"} {
		before := s.sequence("web")
		s.on(s.source, "echo "+text+" > /var/www/html/index.html")
		s.await("it is published", func() bool { return s.sequence("web") > before })
		newest := s.sequence("web")
		s.await("it is on gamma", func() bool {
			st := s.statusOn(gamma, "web")
			return st.Sequence >= newest && st.Content.Detached
		})
	}
	s.lose()
	s.endProcess(s.standby, "srvfs", "KILL")
	s.on(gamma, "srvfs run "+name+"/web && srvfs unfollow web")
	if got := s.get(gamma, "/"); got != "two\n" {
		t.Errorf("gamma serves %q", got)
	}
	s.on(gamma, "srvfs remove web")
	s.noResidue(gamma)
}

// archived has the standby export web, which it has prefetched, and puts that into
// /backup/web.tar of another host. It returns where that is.
func (s *site) archived(h *world.Host) string {
	s.Helper()
	s.on(s.standby, "mkdir /backup && srvfs export "+s.source.Addr+"/web -o /backup/web.tar")
	file := filepath.Join(h.Root, "backup/web.tar")
	s.check(os.Mkdir(filepath.Dir(file), 0o700))
	s.check(os.WriteFile(file, must(os.ReadFile(filepath.Join(s.standby.Root, "backup/web.tar")))(s.T), 0o600))
	return file
}

// A service is mounted and run from an archive, with no source at all.
func TestArchiveIsAnOrigin(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	s.paired()
	s.on(s.standby, "mkdir -p /mnt/v && srvfs prefetch "+s.source.Addr+"/web && srvfs mount "+s.source.Addr+"/web /mnt/v")
	want := s.allOf(s.standby, "/mnt/v")
	s.on(s.standby, "srvfs umount /mnt/v")
	gamma := s.gamma()
	file := s.archived(gamma)
	s.check(os.WriteFile(filepath.Join(s.source.Root, "var/www/html/web.tar"), must(os.ReadFile(file))(t), 0o644))
	s.on(gamma, "mkdir -p /mnt/v /mnt/w")

	for _, ref := range []string{"/backup/web.tar", "http://" + s.source.Addr + "/web.tar"} {
		s.on(gamma, "rm -rf /var/lib/srvfs && srvfs mount "+ref+" /mnt/v")
		if st := s.statusOn(gamma, "/mnt/v"); st.Content.Missing.Bytes == 0 {
			t.Errorf("%s: all content came with the mount: %+v", ref, st.Content)
		}
		if got := s.allOf(gamma, "/mnt/v"); got != want {
			t.Errorf("%s: %s, want %s", ref, got, want)
		}
		if o := s.origins(gamma, "/mnt/v"); len(o) != 1 || o[0].Name != "archive "+ref || o[0].Failing != "" {
			t.Errorf("%s: content comes from %+v", ref, o)
		}
		s.on(gamma, "srvfs umount /mnt/v")
		s.await("the daemon has ended", func() bool { return !s.runs(gamma, "srvfs") })
	}
	s.lose()

	// It runs, is detached, and needs the archive no more.
	s.on(gamma, "rm -rf /var/lib/srvfs; cd /backup; srvfs run web.tar")
	if got := s.get(gamma, "/"); got != page {
		t.Errorf("run from the archive: %q", got)
	}
	s.on(gamma, "srvfs prefetch web; srvfs stop web; mv /backup/web.tar /backup/moved.tar")
	if st := s.statusOn(gamma, "web"); !st.Content.Detached {
		t.Errorf("after a prefetch: %+v", st.Content)
	}
	for _, again := range []string{"web", "/backup/web.tar"} {
		s.on(gamma, "srvfs run "+again)
		if got := s.get(gamma, "/"); got != page {
			t.Errorf("run %s without the archive: %q", again, got)
		}
		s.on(gamma, "srvfs stop web")
	}
	s.fails(gamma, 1, "choose another name", "srvfs run /backup/moved.tar")
	s.fails(gamma, 3, "has web, snapshots 1", "srvfs run /backup/moved.tar@7 --name other")
	s.on(gamma, "srvfs remove web")
	s.noResidue(gamma)
}

// A mount goes on when its source is killed, and so does a service, from the archive.
func TestArchiveIsTheFallback(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "for i in 1 2 3 4 5 6 7 8; do head -c 3000000 /dev/urandom > /var/www/html/large$i; done")
	s.captured()
	s.paired()
	s.on(s.standby, "srvfs prefetch "+s.source.Addr+"/web")
	gamma := s.gamma()
	s.archived(gamma)
	s.on(gamma, "mkdir -p /mnt/v; srvfs pair "+strings.TrimSpace(s.on(s.source, "srvd pair")))
	s.on(gamma, "srvfs mount "+s.source.Addr+"/web /mnt/v --archive /backup/web.tar")
	s.on(gamma, "srvfs run --archive /backup/web.tar "+s.source.Addr+"/web")
	sums := s.on(s.source, "cd /var/www/html && sha256sum large*")
	for i, line := range strings.Split(strings.TrimSpace(sums), "\n") {
		switch i {
		case 2: // silent
			s.endProcess(s.source, "srvd", "STOP")
		case 4: // gone
			s.lose()
		case 6: // what was named is remembered
			s.endProcess(gamma, "srvfs", "KILL")
			s.on(gamma, "umount -l /mnt/v; srvfs run web")
		}
		began := time.Now()
		sum, name, _ := strings.Cut(line, "  ")
		if i < 6 && i%2 == 0 {
			if got := s.on(gamma, "sha256sum < /mnt/v/var/www/html/"+name); !strings.HasPrefix(got, sum) {
				t.Errorf("%s in the view: %s, want %s", name, got, sum)
			}
		} else if got := manifest.Sum([]byte(s.get(gamma, "/"+name))); got.Hex() != sum {
			t.Errorf("%s from the service: %s, want %s", name, got, sum)
		}
		t.Logf("%s: %v", name, time.Since(began).Round(time.Millisecond))
	}
	s.on(gamma, "srvfs remove web")
	s.noResidue(gamma)
}

// An archive that can't be read says why, and content that was damaged is not shown.
func TestBadArchives(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.captured()
	s.paired()
	s.on(s.standby, "srvfs prefetch "+s.source.Addr+"/web")
	gamma := s.gamma()
	file := s.archived(gamma)
	dir, whole := filepath.Dir(file), must(os.ReadFile(file))(t)
	write := func(name string, b []byte) { s.check(os.WriteFile(filepath.Join(dir, name), b, 0o600)) }
	write("short.tar", whole[:len(whole)/2])
	write("text.tar", []byte("not an archive\n"))
	s.on(gamma, "mkdir -p /mnt/v; cd /backup; tar -cf foreign.tar /etc/hostname")
	key, other := must(age.GenerateX25519Identity())(t), must(age.GenerateX25519Identity())(t)
	s.on(s.standby, "srvfs export "+s.source.Addr+"/web -o /backup/sealed.tar --encrypt "+key.Recipient().String())
	write("sealed.tar", must(os.ReadFile(filepath.Join(s.standby.Root, "backup/sealed.tar")))(t))
	write("key", []byte(key.String()+"\n"))
	write("other", []byte(other.String()+"\n"))
	edited := bytes.Clone(whole)
	s.spoil(edited)
	write("edited.tar", edited)
	for _, bad := range []struct {
		code       int
		text, args string
	}{
		{3, "none.tar: not found", "mount /backup/none.tar /mnt/v"},
		{3, "none.tar: not found", "run /backup/none.tar"},
		{3, "none.tar: 404", "mount http://" + s.source.Addr + "/none.tar /mnt/v"},
		{3, "it has web, snapshots 1", "mount /backup/web.tar@99 /mnt/v"},
		{6, "cut short", "mount /backup/short.tar /mnt/v"},
		{6, "copy it here again", "prefetch /backup/short.tar"},
		{1, "15 bytes are no archive", "mount text.tar /mnt/v"},
		{1, "no OCI image is in it", "mount foreign.tar /mnt/v"},
		{5, "refused", "mount http://127.0.0.1:1/web.tar /mnt/v"},
		{1, "not encrypted", "mount --identity /nokey /backup/web.tar /mnt/v"},
		{4, "--identity", "mount sealed.tar /mnt/v"},
		{4, "identity", "mount --identity other sealed.tar /mnt/v"},
		{2, "is an archive", "mount web.tar /mnt/v --archive /backup/web.tar"},
		{2, "none is named", "mount --insecure alpha/web /mnt/v"},
		{4, "name the archive alone", "mount --archive /backup/web.tar alpha/web /mnt/v"},
		{6, "edited.tar", "prefetch edited.tar"},
	} {
		s.fails(gamma, bad.code, bad.text, "cd /backup; srvfs "+bad.args)
	}
	// One that was edited mounts, and what is wrong in it is an error that tells who sent
	// it for which file.
	s.on(gamma, "cd /backup; srvfs mount edited.tar /mnt/v")
	s.fails(gamma, 1, "Input/output error", "cat /mnt/v/usr/sbin/nginx")
	o := s.origins(gamma, "/mnt/v")
	if len(o) != 1 || o[0].Corrupt == 0 || o[0].LastBad != "/usr/sbin/nginx" {
		t.Errorf("the origin that sent wrong bytes: %+v", o)
	}
	if out := s.on(gamma, "srvfs status /mnt/v; grep 'wrong bytes' /var/lib/srvfs/daemon.log"); !strings.Contains(out, "/usr/sbin/nginx") || !strings.Contains(out, "archive /backup/edited.tar") {
		t.Errorf("status and log:\n%s", out)
	}
	s.on(gamma, "srvfs umount /mnt/v")

	// With its key one that is encrypted is as good as any, also when it runs again.
	s.on(gamma, "cd /backup; srvfs run --identity key sealed.tar")
	s.endProcess(gamma, "srvfs", "KILL")
	s.on(gamma, "srvfs run web")
	if got := s.get(gamma, "/"); got != page {
		t.Errorf("run from the encrypted archive: %q", got)
	}
	s.on(gamma, "srvfs remove web")
	s.noResidue(gamma)
}

// spoil changes bytes all over the largest member of a tar file: the layer.
func (s *site) spoil(b []byte) {
	s.Helper()
	r := bytes.NewReader(b)
	var from, size int64
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		s.check(err)
		if h.Size > size {
			from, size = r.Size()-int64(r.Len()), h.Size
		}
	}
	for i := from + 4096; i < from+size-64<<10; i += 4096 {
		b[i] ^= 0xff
	}
}
