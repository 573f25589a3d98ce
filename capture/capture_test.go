package capture

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

var serverDir string // removed by TestMain

var builtServer = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "srvfs-capture-server-")
	if err != nil {
		return "", err
	}
	serverDir = dir
	name := filepath.Join(dir, "server")
	cmd := exec.Command("go", "build", "-o", name, "./testdata/server")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return name, nil
})

// house makes a small root with a static server, its unit and its files.
func house(t *testing.T, flags string) Options {
	t.Helper()
	root := t.TempDir()
	at := func(p string) string { return filepath.Join(root, p) }
	server := must(os.ReadFile(must(builtServer())(t)))(t)
	write(t, at("usr/sbin/webd"), string(server), 0o755)
	write(t, at("etc/web/page"), "hello", 0o640)
	write(t, at("etc/web/unused"), "not read by anybody", 0o644)
	write(t, at("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:990:991::/nowhere:/bin/false\n", 0o644)
	write(t, at("etc/group"), "root:x:0:\nweb:x:991:\nextra:x:992:web\n", 0o644)
	write(t, at("etc/shadow"), "root:*:1:0:99999:7:::\n", 0o600)
	write(t, at("hint"), "", 0o644)
	write(t, at("spare/config"), "spare", 0o644)
	write(t, at("etc/systemd/system/web.service"), "[Service]\nType=notify\nExecStart=/usr/sbin/webd "+flags+"\nRuntimeDirectory=web\n", 0o644)
	for _, dir := range []string{"proc", "sys", "dev", "run/web", "var/tmp", "var/log/web", "tmp", "srv/other"} {
		check(t, os.MkdirAll(at(dir), 0o755))
	}
	check(t, os.Chmod(at("tmp"), 0o1777|fs.ModeSticky))
	check(t, unix.Chmod(at("tmp"), 0o1777))
	return Options{Name: "web", Units: []string{"web"}, Root: root, StateDir: t.TempDir(), Probes: []string{"http://127.0.0.1:8080/"}, StartTimeout: 60 * time.Second}
}

func entriesOf(t *testing.T, o Options) map[string]Entry {
	t.Helper()
	lib := must(OpenLibrary(o.StateDir))(t)
	all := map[string]Entry{}
	for e, err := range lib.Entries(manifest.Ref{Service: o.Name}) {
		check(t, err)
		all[e.Path] = e
	}
	return all
}

func TestCapture(t *testing.T) {
	o := house(t, "-lock /run/web/lock -look /srv/other/none/x")
	write(t, filepath.Join(o.Root, "run/web/lock"), "of the running instance", 0o644)
	before := listing(t, o.Root)
	var steps []string
	o.Progress = func(step string, _ time.Duration, _ string) { steps = append(steps, step) }
	r, err := Capture(t.Context(), o)
	check(t, err)
	if want := []string{"find", "trace", "close", "build", "verify", "publish"}; !slices.Equal(steps, want) {
		t.Errorf("steps %q", steps)
	}
	all := entriesOf(t, o)
	for p, class := range map[string]Class{
		"/usr/sbin/webd": ClassTraced, "/etc/web/page": ClassTraced, "/etc/web": ClassTraced, "/etc/web/unused": ClassRule,
		"/etc/passwd": ClassRule, "/tmp": ClassRule, "/run": ClassRule, "/etc/systemd/system/web.service": ClassRule,
	} {
		if e, ok := all[p]; !ok || e.Class() != class {
			t.Errorf("%s: in %v, reasons %v, want %v", p, ok, e.Reasons, class)
		}
	}
	if e := all["/srv/other"]; len(e.Reasons) == 0 || !strings.Contains(e.Reasons[0].Text, "/srv/other/none/x, which does not exist") {
		t.Errorf("the folder of a file that was looked for: %+v", e)
	}
	for _, p := range []string{"/etc/shadow", "/run/web", "/run/web/lock", "/spare/config"} {
		if e, ok := all[p]; ok {
			t.Errorf("%s is in: %v", p, e.Reasons)
		}
	}
	s := r.Snapshot
	if len(s.Profile) == 0 || s.Profile[0].Path != "/usr/sbin/webd" || !slices.ContainsFunc(s.Profile, func(touch manifest.Touch) bool {
		return touch.Path == "/etc/web/page" && touch.Content == manifest.Sum([]byte("hello")) && touch.Len == 5 && !touch.Write
	}) {
		t.Errorf("profile %+v", s.Profile)
	}
	if s.Metadata[0] != s.Root.Digest || r.Assumed || len(r.Learned) > 0 || s.Totals.Entries != uint64(len(all)) {
		t.Errorf("%+v, metadata %v", r, s.Metadata)
	}
	if r.Classes[ClassTraced].Files != 2 {
		t.Errorf("classes %v", r.Classes)
	}
	if after := listing(t, o.Root); after != before {
		t.Errorf("the source changed:\n%s\nwas\n%s", after, before)
	}
	mounts := string(must(os.ReadFile("/proc/self/mountinfo"))(t))
	if strings.Contains(mounts, "srvfs") && strings.Contains(mounts, o.StateDir) {
		t.Errorf("a mount is left: %s", mounts)
	}

	// An unchanged source gives the same root; its files are not read again.
	again, err := Capture(t.Context(), o)
	check(t, err)
	if again.Snapshot.Root.Digest != s.Root.Digest || again.Sequence != r.Sequence+1 {
		t.Errorf("snapshot %d has root %v, snapshot %d %v", r.Sequence, s.Root.Digest, again.Sequence, again.Snapshot.Root.Digest)
	}
}

// listing is everything about a tree that a disturbed source would show.
func listing(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	check(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintf(&b, "%s %v %d %v\n", p, info.Mode(), info.Size(), info.ModTime())
		}
		return err
	}))
	return b.String()
}

func TestVerificationLearns(t *testing.T) {
	o := house(t, "-hint hint -spare /spare/config")
	r, err := Capture(t.Context(), o)
	check(t, err)
	if want := []string{"/spare", "/spare/config"}; !slices.Equal(r.Learned, want) {
		t.Errorf("learned %q", r.Learned)
	}
	if e := entriesOf(t, o)["/spare/config"]; len(e.Reasons) == 0 || e.Class() != ClassTraced {
		t.Errorf("entry %+v", e)
	}
}

func TestCaptureErrors(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(o *Options)
		is     error
		says   []string
	}{
		{"no name", func(o *Options) { o.Name = "a/b" }, manifest.ErrInvalid, []string{"service name"}},
		{"no start", func(o *Options) { o.Units = nil }, manifest.ErrInvalid, []string{"command"}},
		{"two starts", func(o *Options) { o.Exec = []string{"/bin/x"} }, manifest.ErrInvalid, nil},
		{"no root", func(o *Options) { o.Root += "/none" }, manifest.ErrNotFound, []string{"/none"}},
		{"no unit", func(o *Options) { o.Units = []string{"wab"} }, manifest.ErrNotFound, []string{"wab", "web"}},
		{"no package", func(o *Options) { o.Packages = []string{"nginx"} }, manifest.ErrNotFound, []string{"nginx"}},
		{"no path", func(o *Options) { o.Include = []string{"/srv/none"} }, manifest.ErrNotFound, []string{"/srv/none"}},
		{"relative path", func(o *Options) { o.Include = []string{"srv"} }, manifest.ErrInvalid, []string{"srv"}},
		{"bad pattern", func(o *Options) { o.Exclude = []string{"a/b"} }, manifest.ErrInvalid, []string{"--exclude"}},
		{"excluded", func(o *Options) {
			o.Exclude = []string{"/etc/web/p*"}
			o.StartTimeout = 2 * time.Second
		}, nil, []string{"from the snapshot", "http://127.0.0.1:8080/", "left out", "/etc/web/page"}},
		{"probe fails", func(o *Options) {
			o.Probes = []string{"http://127.0.0.1:8081/"}
			o.StartTimeout = time.Second
		}, nil, []string{"in the sandbox", "8081"}},
		{"does not start", func(o *Options) {
			name := filepath.Join(o.Root, "etc/systemd/system/web.service")
			b, _ := os.ReadFile(name)
			_ = os.WriteFile(name, bytes.ReplaceAll(b, []byte("webd "), []byte("webd -fail ")), 0o644)
		}, nil, []string{"did not start", "the configuration makes no sense"}},
		{"memory is bounded", func(o *Options) {
			name := filepath.Join(o.Root, "etc/systemd/system/web.service")
			b, _ := os.ReadFile(name)
			_ = os.WriteFile(name, bytes.ReplaceAll(b, []byte("webd "), []byte("webd -grow /grown ")), 0o644)
			o.Scratch = 512 << 10
		}, nil, []string{"no space left on device"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := house(t, "")
			c.change(&o)
			_, err := Capture(t.Context(), o)
			if err == nil {
				t.Fatal("no error")
			}
			if c.is != nil {
				wantErr(t, err, c.is)
			}
			wantErr(t, err, err, c.says...)
			if lib := must(OpenLibrary(o.StateDir))(t); len(must(lib.List())(t)) != 0 {
				t.Error("something was published")
			}
		})
	}
}

func TestIncludeAndExclude(t *testing.T) {
	o := house(t, "")
	write(t, filepath.Join(o.Root, "srv/site/a/index"), "a", 0o644)
	write(t, filepath.Join(o.Root, "srv/site/a/old.bak"), "b", 0o644)
	write(t, filepath.Join(o.Root, "srv/site/secret.key"), "k", 0o600)
	o.Include, o.Exclude = []string{"/srv/site", "/etc/shadow"}, []string{"*.bak", "/etc/web/unused"}
	must(Capture(t.Context(), o))(t)
	all := entriesOf(t, o)
	for _, p := range []string{"/srv/site/a/index", "/srv/site/secret.key", "/etc/shadow"} {
		if e, ok := all[p]; !ok || e.Class() != ClassUser || e.Secret == strings.HasSuffix(p, "index") {
			t.Errorf("%s: %+v", p, e)
		}
	}
	for _, p := range []string{"/srv/site/a/old.bak", "/etc/web/unused"} {
		if _, ok := all[p]; ok {
			t.Errorf("%s is in", p)
		}
	}
}

func TestWithoutProbeHealthIsAssumed(t *testing.T) {
	o := house(t, "")
	o.Probes = nil
	r, err := Capture(t.Context(), o)
	check(t, err)
	if !r.Assumed {
		t.Error("not said to be assumed")
	}
	if _, ok := entriesOf(t, o)["/etc/web/page"]; ok {
		t.Error("a file is in that only an answer would have opened; then this test proves nothing")
	}
}

// perlServer needs nothing but Debian's perl-base, and loads a module only when
// it is asked.
const perlServer = `#!/usr/bin/perl
use strict;
use IO::Socket::INET;
my $l = IO::Socket::INET->new(LocalAddr => "127.0.0.1:8089", Listen => 5, ReuseAddr => 1) or die "listen: $!";
while (my $c = $l->accept) {
	my ($path) = (<$c> // "") =~ m{^GET /(\S+) };
	while (defined(my $line = <$c>)) { last if $line =~ /^\r?$/ }
	require File::Spec;
	open(my $f, "<", File::Spec->catfile(".", $path)) or next;
	my $body = join "", <$f>;
	print $c "HTTP/1.0 200 OK\r\nContent-Length: ", length $body, "\r\n\r\n", $body;
	close $c;
}
`

// A service of this machine's own: a script with an interpreter, modules that
// are loaded late, and a data folder.
func TestCaptureFromThisHost(t *testing.T) {
	data := must(os.MkdirTemp("/srv", "srvfs-capture-"))(t)
	t.Cleanup(func() { _ = os.RemoveAll(data) })
	write(t, data+"/index.html", "from perl", 0o644)
	write(t, data+"/deep/never-opened", "data", 0o644)
	dir := must(os.MkdirTemp("/usr/local/bin", "srvfs-capture-"))(t)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	write(t, dir+"/start", "#!/bin/sh\ncd \"$1\" && exec "+dir+"/serve\n", 0o755)
	write(t, dir+"/serve", perlServer, 0o755)
	o := Options{Name: "perl", Exec: []string{dir + "/start", data}, StateDir: t.TempDir(), Probes: []string{"http://127.0.0.1:8089/index.html"}}
	r, err := Capture(t.Context(), o)
	check(t, err)
	all := entriesOf(t, o)
	sh := must(filepath.EvalSymlinks("/bin/sh"))(t)
	perl := must(filepath.EvalSymlinks("/usr/bin/perl"))(t)
	for _, p := range []string{dir + "/start", dir + "/serve", sh, perl, data + "/index.html", data + "/deep/never-opened", "/etc/passwd", "/etc/ld.so.cache"} {
		if _, ok := all[p]; !ok {
			t.Errorf("%s is not in", p)
		}
	}
	if e := all[data+"/deep/never-opened"]; len(e.Reasons) == 0 || e.Class() != ClassData || !strings.Contains(e.Reasons[0].Text, "data folder") {
		t.Errorf("data: %+v", e)
	}
	for p := range all {
		if matchAny(secret, p) || isPseudo(p) && !slices.Contains(pseudo, p) || inside(p, o.StateDir) {
			t.Errorf("%s is in: %v", p, all[p].Reasons)
		}
	}
	if len(r.Snapshot.Profile) < 20 {
		t.Errorf("a profile of %d files", len(r.Snapshot.Profile))
	}
}

// A service that waits for ever when a file is missing must not make the
// verification wait as long.
func TestVerificationGivesUpEarly(t *testing.T) {
	o := house(t, "-hint hint -spare /spare/config -wait")
	o.StartTimeout = time.Minute
	start := time.Now()
	r, err := Capture(t.Context(), o)
	check(t, err)
	if len(r.Learned) != 2 || time.Since(start) > o.StartTimeout/2 {
		t.Errorf("learned %q in %v", r.Learned, time.Since(start))
	}
}
