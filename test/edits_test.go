package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"srvfs/manifest"
	"srvfs/test/garden"
	"srvfs/test/world"
)

// Whatever is done to a folder of the source, in bursts of hundreds of steps, of which some
// are more than the kernel has room to report: after each of them the view on the other host is the
// folder, byte for byte and attribute for attribute, and the snapshot is what a capture by
// a srvd that knows nothing would make.
func TestRandomEditsReachTheView(t *testing.T) {
	const bursts = 6 // what changes in each is published ever more seldom
	s := newSite(t, world.StandbyRoot)
	dir := filepath.Join(s.source.Root, "srv/random")
	s.check(os.MkdirAll(dir, 0o755))
	seed := uint64(time.Now().UnixNano())
	e := &garden.Editor{Dir: dir, Rand: rand.New(rand.NewPCG(seed, 1))}
	t.Logf("seed %d", seed)
	for range 200 {
		e.Edit()
	}
	const service = " -q --exec 'sleep 100000' --probe exec:true --include /srv/random"
	s.on(s.source, "srvd capture random"+service)
	srvd, _, err := s.source.Start(s.ctx, "srvd", "serve", "--follow", "--metrics", "127.0.0.1:9107")
	s.check(err)
	s.check(s.source.Await(s.ctx, "127.0.0.1:7077"))
	s.paired()
	daemon, _, err := s.standby.Start(s.ctx, "srvfs", "daemon")
	s.check(err)
	s.await("the daemon answers", func() bool { _, err := s.standby.Shell(s.ctx, "srvfs status"); return err == nil })
	s.on(s.standby, "mkdir /mnt/view && srvfs mount --follow "+s.source.Addr+"/random /mnt/view")
	view := fmt.Sprintf("/proc/%d/root/mnt/view/srv/random", daemon.Pid())

	for burst := range bursts {
		overflow := burst%3 == 2
		if overflow { // nobody reads what is reported
			s.check(srvd.Signal(syscall.SIGSTOP))
		}
		for range 300 + e.Rand.IntN(500) {
			e.Edit()
		}
		if overflow {
			for i := range 20_000 {
				p := fmt.Sprintf("%s/passing-%d", dir, i)
				s.check(os.WriteFile(p, nil, 0o644))
				s.check(os.Remove(p))
			}
			s.check(srvd.Signal(syscall.SIGCONT))
		}
		want, err := garden.Picture(dir)
		s.check(err)
		var got string
		deadline := time.Now().Add(time.Minute)
		s.await(fmt.Sprint("the view shows burst ", burst), func() bool {
			got, err = garden.Picture(view)
			if (err != nil || got != want) && time.Now().After(deadline) {
				t.Fatalf("after burst %d, %v:\n%s", burst, err, different(want, got))
			}
			return err == nil && got == want
		})
		fresh := fmt.Sprint("/root/fresh-", burst)
		s.on(s.source, "srvd capture random --state "+fresh+service)
		if got, want := s.rootDigest("/var/lib/srvd"), s.rootDigest(fresh); got != want {
			t.Fatalf("after burst %d the snapshot that followed has root %v, one that is captured anew %v", burst, got, want)
		}
	}
	// One with which it began, and one for each that there was no room for.
	if n := value(s.scrape(s.source, "9107"), "srvd_rescans_total", "service", "random"); n < 1+bursts/3 {
		t.Errorf("%v looks at everything: the queue did not overflow", n)
	}
	// What happens elsewhere in the file system, of which the host's root is a part, is not
	// the service's.
	events := func() float64 {
		return value(s.scrape(s.source, "9107"), "srvd_watch_events_total", "service", "random")
	}
	before := events()
	elsewhere := t.TempDir()
	for i := range 1000 {
		s.check(os.WriteFile(fmt.Sprintf("%s/elsewhere-%d", elsewhere, i), nil, 0o644))
	}
	s.check(os.WriteFile(dir+"/last", []byte("last"), 0o644))
	s.await("the view shows the last file", func() bool { b, err := os.ReadFile(view + "/last"); return err == nil && string(b) == "last" })
	if n := events() - before; n < 1 || n > 100 {
		t.Errorf("%v events were taken for the service's, of one change", n)
	}
	s.on(s.standby, "srvfs umount /mnt/view")
	s.check(daemon.Signal(syscall.SIGTERM))
	_, err = daemon.Wait(s.ctx)
	s.check(err)
	s.noResidue(s.standby)
}

// rootDigest is that of the newest snapshot of a srvd with one service.
func (s *site) rootDigest(state string) manifest.Digest {
	s.Helper()
	var list []struct {
		Digest manifest.Digest `json:"root_digest"`
	}
	s.check(json.Unmarshal([]byte(s.on(s.source, "srvd list --json --state "+state)), &list))
	if len(list) != 1 || list[0].Digest.IsZero() {
		s.Fatalf("%s holds %+v", state, list)
	}
	return list[0].Digest
}
