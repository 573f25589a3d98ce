package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"srvfs/test/world"
)

// Snapshots have a history: those that are kept are listed, mounted, compared and run,
// also when the source is gone.
func TestHistory(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	page := filepath.Join(s.source.Root, "var/www/html/index.html")
	write := func(text string) { s.check(os.WriteFile(page, []byte(text), 0o644)) }
	capture := func() {
		s.on(s.source, "srvd capture web -q --unit nginx --probe http://127.0.0.1/")
	}
	write("first\n")
	capture()
	between := s.now()
	s.serve()
	s.paired()
	s.on(s.standby, "mkdir -p /mnt/a /mnt/b; srvfs mount "+s.source.Addr+"/web /mnt/a; cat /mnt/a/var/www/html/index.html; srvfs umount /mnt/a")

	write("second\n")
	s.on(s.source, "printf '# more\n' > /etc/nginx/conf.d/new.conf; printf 'server { listen 80; root /var/www/html; }' > /etc/nginx/sites-available/default; chmod 700 /etc/nginx/snippets")
	capture()
	s.on(s.source, "touch /var/www/html/third")
	capture()

	out := s.on(s.source, "srvd list web")
	t.Log("\n" + out)
	if got := strings.Count(out, "\nweb "); got != 3 || strings.Index(out, "web      3 ") > strings.Index(out, "web      1 ") {
		t.Errorf("%d snapshots are listed:\n%s", got, out)
	}
	if got := s.on(s.standby, "srvfs list "+s.source.Addr+"/web"); strings.Count(got, "\nweb ") != 3 {
		t.Errorf("the source offers\n%s", got)
	}
	const changed = "/etc/nginx/conf.d/new.conf|/etc/nginx/sites-available/default|/etc/nginx/snippets|/var/www/html/index.html"
	same := func(what, out string) {
		t.Helper()
		var paths []string
		for line := range strings.Lines(out) {
			if i := strings.IndexByte(line, '/'); i > 0 {
				paths = append(paths, strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]))
			}
		}
		if got := strings.Join(paths, "|"); got != changed || !strings.Contains(out, "mode 755 -> 700") || !strings.Contains(out, "content 6 B -> 7 B") || !strings.Contains(out, "1 added, 0 removed, 3 changed") {
			t.Errorf("%s:\n%s", what, out)
		}
	}
	same("srvd diff", s.on(s.source, "srvd diff web@1 web@2"))
	t.Log("\n" + s.on(s.source, "srvd diff web@1"))
	same("srvfs diff", s.on(s.standby, "srvfs diff "+s.source.Addr+"/web@1 web@2"))
	if got := s.on(s.standby, "srvfs diff "+s.source.Addr+"/web@2"); !strings.Contains(got, "/var/www/html/third") || !strings.Contains(got, "1 added, 0 removed, 0 changed") {
		t.Errorf("to the newest:\n%s", got)
	}
	if got := s.on(s.source, "srvd show web@1 --summary"); !strings.Contains(got, "snapshot 1 of") {
		t.Errorf("srvd show: %s", got)
	}
	if got := s.on(s.source, "srvd why web@3 /var/www/html/third; ! srvd why web@2 /var/www/html/third 2>&1"); !strings.Contains(got, "no such path") {
		t.Errorf("srvd why: %s", got)
	}

	// An earlier one is what it was; what nobody has any more is an error, and no lie.
	s.on(s.standby, "srvfs mount "+s.source.Addr+"/web@"+between+" /mnt/a && srvfs mount "+s.source.Addr+"/web@2 /mnt/b")
	if got := s.on(s.standby, "cat /mnt/a/var/www/html/index.html /mnt/b/var/www/html/index.html; ls /mnt/b/var/www/html"); got != "first\nsecond\nindex.html\nindex.nginx-debian.html\n" {
		t.Errorf("the views show %q", got)
	}
	if got := s.on(s.standby, "cat /mnt/a/etc/nginx/sites-available/default 2>&1 || true"); !strings.Contains(got, "Stale file handle") {
		t.Errorf("a file that was replaced: %q", got)
	}
	s.on(s.standby, "srvfs umount /mnt/a && srvfs umount /mnt/b")
	s.fails(s.standby, 3, "those that are kept are 3, 2, 1", "srvfs mount "+s.source.Addr+"/web@7 /mnt/a")
	s.fails(s.standby, 1, "the number of a snapshot, or a moment", "srvfs mount "+s.source.Addr+"/web@never /mnt/a")
	s.fails(s.source, 2, "web is the newest snapshot: name the one", "srvd diff web")
	s.fails(s.standby, 2, "is the newest snapshot: name the one", "srvfs diff "+s.source.Addr+"/web")
	s.fails(s.source, 3, "snapshot web@1971", "srvd show web@1971-02-03")

	// A service is run from one, and moved to another.
	s.on(s.standby, "srvfs run "+s.source.Addr+"/web@2 && srvfs prefetch web")
	if got := s.get(s.standby, "/"); got != "second\n" {
		t.Errorf("it serves %q", got)
	}
	s.on(s.standby, "srvfs stop web")
	s.fails(s.standby, 1, "stands on snapshot 2", "srvfs run web@3")
	s.on(s.standby, "srvfs run web@3 --discard && srvfs prefetch web && srvfs stop web")
	s.lose()
	s.on(s.standby, "srvfs mount "+s.source.Addr+"/web@2 /mnt/b")
	if got := s.on(s.standby, "cat /mnt/b/var/www/html/index.html; srvfs umount /mnt/b"); got != "second\n" {
		t.Errorf("without the source: %q", got)
	}
	if got := s.on(s.standby, "srvfs diff web@2 web@3"); !strings.Contains(got, "/var/www/html/third") {
		t.Errorf("without the source:\n%s", got)
	}
	s.on(s.standby, "srvfs run web@2 --discard")
	if got := s.get(s.standby, "/"); got != "second\n" {
		t.Errorf("without the source it serves %q", got)
	}
	if got := s.on(s.standby, "srvfs collect"); !strings.HasSuffix(got, " freed\n") {
		t.Errorf("srvfs collect: %q", got)
	}
	s.on(s.standby, "srvfs remove web")
	s.noResidue(s.standby)
}

// now returns a moment that is after all that was done, as it is written on a command line.
func (s *site) now() string {
	var list []struct{ Created time.Time }
	s.check(json.Unmarshal([]byte(s.on(s.source, "srvd list --json")), &list))
	return list[0].Created.Format(time.RFC3339Nano)
}
