package capture

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"

	"srvfs/manifest"
)

// Of what a standby reports only what is the service's is noted, and only of that
// is it told that it exists.
func TestMissed(t *testing.T) {
	root := t.TempDir()
	lib := must(OpenLibrary(t.TempDir()))(t)
	for _, p := range []string{"/srv/web/page", "/srv/web/new", "/srv/web/tls.key", "/srv/web/skipped", "/opt/outside", "/etc/shadow", "/var/log/web/error.log"} {
		write(t, root+p, p, 0o644)
	}
	check(t, os.Symlink("/etc/shadow", root+"/srv/web/innocent"))
	check(t, os.Symlink("/srv/web/new", root+"/opt/link"))
	s := scope{Folders: []string{"/srv/web"}, Exclude: []string{"/srv/web/skipped"}}
	publishScoped(t, lib, "web", root, s)
	paths := []string{"/srv/web/new", "/srv/web/absent", "/srv/web/tls.key", "/srv/web/skipped", "/srv/web/innocent", "/opt/outside", "/opt/link", "/etc/shadow", "/var/log/web/error.log", "/", "/proc/self/status", "relative", "/srv/../etc/shadow"}
	got, err := lib.Missed(t.Context(), "web", "beta", paths)
	check(t, err)
	for i, p := range paths {
		want := manifest.VerdictAbsent
		if p == "/srv/web/new" || p == "/opt/link" {
			want = manifest.VerdictNoted
		}
		if got[i] != want {
			t.Errorf("%s: %v, want %v", p, got[i], want)
		}
	}
	list := func() map[string]manifest.Verdict {
		all, err := lib.Misses("web")
		check(t, err)
		m := map[string]manifest.Verdict{}
		for _, v := range all {
			if m[v.Path] = v.Verdict; v.Standby != "beta" || v.Time.IsZero() {
				t.Errorf("%+v", v)
			}
		}
		return m
	}
	noted := list()
	for p, want := range map[string]manifest.Verdict{
		"/srv/web/new": manifest.VerdictNoted, "/opt/outside": manifest.VerdictOutside, "/etc/shadow": manifest.VerdictDenied,
		"/srv/web/tls.key": manifest.VerdictDenied, "/srv/web/skipped": manifest.VerdictDenied, "/var/log/web/error.log": manifest.VerdictDenied,
	} {
		if noted[p] != want {
			t.Errorf("%s is listed as %v, want %v", p, noted[p], want)
		}
	}
	if len(noted) != 6 {
		t.Errorf("listed: %v", noted)
	}
	// With --learn what is outside is learned too, and secrets still are not.
	s.Learn = true
	publishScoped(t, lib, "web", root, s)
	got, err = lib.Missed(t.Context(), "web", "beta", []string{"/opt/outside", "/etc/shadow"})
	if err != nil || !slices.Equal(got, []manifest.Verdict{manifest.VerdictNoted, manifest.VerdictAbsent}) || list()["/opt/outside"] != manifest.VerdictNoted {
		t.Errorf("%v, %v; %v", got, err, list())
	}
	if _, err := lib.Missed(t.Context(), "nosuch", "beta", paths); !errors.Is(err, manifest.ErrNotFound) {
		t.Errorf("of an unknown service: %v", err)
	}
	if _, err := lib.Missed(t.Context(), "web", "beta", make([]string, manifest.MaxMisses+1)); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
	// A damaged file costs what was in it, and no report.
	check(t, os.WriteFile(lib.missesFile("web"), []byte("{"), 0o600))
	if _, err := lib.Misses("web"); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("damaged: %v", err)
	}
	if _, err := lib.Missed(t.Context(), "web", "beta", []string{"/srv/web/new"}); err != nil || len(list()) != 1 {
		t.Errorf("after the damage: %v, %v", err, list())
	}
	check(t, lib.Remove("web"))
	if all, err := lib.Misses("web"); err != nil || len(all) != 0 {
		t.Errorf("misses of a service that was removed: %v, %v", all, err)
	}
}

func FuzzDecodeMisses(f *testing.F) {
	b, _ := json.Marshal([]Miss{{Path: "/a", Standby: "b", Verdict: manifest.VerdictNoted}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := decodeMisses(b); err != nil && !errors.Is(err, manifest.ErrInvalid) {
			t.Fatal(err)
		}
		if _, err := decodeScope(b); err != nil && !errors.Is(err, manifest.ErrInvalid) {
			t.Fatal(err)
		}
	})
}
