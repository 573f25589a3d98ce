package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"srvfs/test/world"
)

// Whatever is killed, and whenever, while a source changes and a standby follows it:
// the next start goes on, and the standby comes to have what the source has.
// SRVFS_KILLS is how often; the default is for every day.
func TestKilledWhileFollowing(t *testing.T) {
	kills := setting(t, "SRVFS_KILLS", 16)
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "srvd capture web -q --unit nginx --probe http://127.0.0.1/")
	var log string
	serve := func() {
		t.Helper()
		var err error
		_, log, err = s.source.Start(s.ctx, "srvd", "serve", "--follow")
		s.check(err)
		if err := s.source.Await(s.ctx, "127.0.0.1:7077"); err != nil {
			text, _ := os.ReadFile(log)
			s.Fatalf("%v\n%s", err, text)
		}
	}
	serve()
	s.paired()
	s.on(s.standby, "srvfs follow "+s.source.Addr+"/web")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	edits := []string{
		"echo %[1]d > index.html",
		"head -c 700000 /dev/urandom > large%[2]d; cp large%[2]d other%[1]d",
		"mkdir -p d%[2]d/e && for i in $(seq 200); do echo %[1]d.$i > d%[2]d/e/$i; done",
		"rm -rf d%[2]d; echo %[1]d > note",
		"test ! -e d%[2]d || mv d%[2]d moved%[1]d; echo %[1]d > note",
		"truncate -s %[1]d large%[2]d; ln -f index.html link%[2]d || :",
	}
	const list = "cd %s && find . | sort && find . -type f -printf '%%P %%s %%m %%T@ ' -exec sha256sum {} \\; | sort"
	for kill := range kills {
		edit := edits[random.IntN(len(edits))]
		line := "cd /var/www/html; " + fmt.Sprintf(edit+"; : %[1]d %[2]d", kill, random.IntN(3))
		s.on(s.source, line)
		time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond) // the point where it is hit
		if kill%2 == 0 {
			s.endProcess(s.source, "srvd", "KILL")
			s.on(s.source, "echo unseen"+fmt.Sprint(kill)+" >> /var/www/html/index.html") // while nobody looks
			serve()
		} else {
			s.endProcess(s.standby, "srvfs", "KILL")
			s.on(s.standby, "srvfs status")
		}
		if kill%4 != 3 && kill != kills-1 {
			continue // some are killed again before they have caught up
		}
		want := s.on(s.source, fmt.Sprintf(list, "/var/www/html"))
		var got string
		s.await(fmt.Sprintf("the standby has what the source has, after %d kills", kill+1), func() bool {
			st := s.status("web")
			if st.Reason != "" || !st.Content.Detached || st.Sequence != s.sequence("web") {
				return false
			}
			out, err := s.standby.Shell(s.ctx, "mkdir -p /mnt/v; srvfs mount "+s.source.Addr+"/web /mnt/v && { ("+fmt.Sprintf(list, "/mnt/v/var/www/html")+") || c=$?; srvfs umount /mnt/v; exit $c; }")
			got = out
			return err == nil && got == want
		})
	}
	if out := string(must(os.ReadFile(log))(t)); strings.Contains(out, "level=ERROR") {
		t.Errorf("srvd says:\n%s", out)
	}
	// All that either side keeps is what its name says, and every snapshot of the
	// history can still be read.
	s.endProcess(s.source, "srvd", "KILL")
	s.endProcess(s.standby, "srvfs", "KILL")
	if bad := s.on(s.standby, `cd /var/lib/srvfs/store/blobs && find . -type f | while read f; do test "$(sha256sum < $f | cut -c1-64)" = "$(basename $f)" || echo $f; done`); bad != "" {
		t.Errorf("damaged in the standby's store: %s", bad)
	}
	for _, n := range s.kept("web") {
		s.on(s.source, fmt.Sprintf("srvd show web@%d > /dev/null", n))
	}
	s.on(s.source, "srvd capture web -q --unit nginx --probe http://127.0.0.1/") // and a capture finds its place
	serve()
	s.on(s.standby, "srvfs unfollow web")
	s.noResidue(s.standby)
}
