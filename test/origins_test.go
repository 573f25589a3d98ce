package test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

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
