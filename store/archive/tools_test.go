package archive

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/bcrypt"

	"srvfs/manifest"
	"srvfs/manifest/origintest"
)

// run runs a program of the distribution, and returns what it wrote.
func run(t testing.TB, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// registryServer starts the distribution's registry, with a login if htpasswd is not empty.
// It returns its address and what ends it.
func registryServer(t testing.TB, htpasswd string) (addr string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr = l.Addr().String()
	must(t, l.Close())
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: %s\n", dir, addr)
	if htpasswd != "" {
		write(t, filepath.Join(dir, "htpasswd"), htpasswd)
		config += fmt.Sprintf("auth:\n  htpasswd:\n    realm: test\n    path: %s\n", filepath.Join(dir, "htpasswd"))
	}
	write(t, filepath.Join(dir, "config.yml"), config)
	c := exec.Command("docker-registry", "serve", filepath.Join(dir, "config.yml"))
	var log bytes.Buffer
	c.Stdout, c.Stderr = &log, &log
	must(t, c.Start())
	ended := false
	stop = func() {
		if !ended {
			ended = true
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}
	t.Cleanup(stop)
	// Until it answers, in one way or another.
	deadline := time.Now().Add(20 * time.Second)
	for {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
			return addr, stop
		}
		if time.Now().After(deadline) {
			stop()
			t.Fatalf("the registry does not answer: %v\n%s", err, log.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func unpacked(t *testing.T, dest, tag string, want *manifest.Snapshot, src disk) {
	t.Helper()
	compareTrees(t, umoci(t, dest, tag), want, src)
}

// umoci unpacks an image and returns its root folder. The umoci of Debian 12 knows no
// zstd, so skopeo compresses the layers anew for it.
func umoci(t *testing.T, dest, tag string) string {
	t.Helper()
	dir := t.TempDir()
	gzip, bundle := filepath.Join(dir, "gzip"), filepath.Join(dir, "bundle")
	run(t, "skopeo", "copy", "--dest-compress", "--dest-compress-format=gzip", "oci:"+dest+":"+tag, "oci:"+gzip+":it")
	run(t, "umoci", "unpack", "--image", gzip+":it", bundle)
	return filepath.Join(bundle, "rootfs")
}

// compareTrees fails the test where a folder differs from a snapshot.
func compareTrees(t *testing.T, dir string, want *manifest.Snapshot, src disk) {
	t.Helper()
	got, gotSrc := scan(t, dir, 9)
	if got.Root.Equal(&want.Root) {
		return
	}
	t.Errorf("%s: the root is %+v, not %+v", dir, got.Root, want.Root)
	must(t, changes(t.Context(), src, gotSrc, want, got, func(c change) error {
		t.Errorf("%s differs: gone %v, %+v", c.path, c.gone, c.entry)
		return nil
	}))
}

// umoci makes of an archive what was captured, to the last attribute, after each export.
func TestUmoci(t *testing.T) {
	dest, dir := filepath.Join(t.TempDir(), "layout"), everything(t)
	exportDir(t, dest, dir, 1, Options{})
	one, oneSrc := scan(t, dir, 1)
	unpacked(t, dest, "latest", one, oneSrc)
	edit(t, dir)
	exportDir(t, dest, dir, 2, Options{})
	two, twoSrc := scan(t, dir, 2)
	unpacked(t, dest, "latest", two, twoSrc)
	unpacked(t, dest, "2", two, twoSrc)
	if _, err := os.Stat(filepath.Join(dir, "etc/web/gone")); err == nil {
		t.Error("nothing was removed")
	}
	// The older image is there as it was; of its sources some have changed.
	got, _ := scan(t, umoci(t, dest, "1"), 1)
	if !got.Root.Equal(&one.Root) {
		t.Error("the image of the first export has changed")
	}
}

// skopeo reads both kinds, and what it copies to a registry can be mounted from there.
func TestSkopeo(t *testing.T) {
	addr, stop := registryServer(t, "")
	base, dir := t.TempDir(), everything(t)
	for kind, name := range map[string]string{"oci": "layout", "oci-archive": "file.tar"} {
		dest := filepath.Join(base, name)
		exportDir(t, dest, dir, 1, Options{})
		var image struct {
			Labels map[string]string
			Layers []string
			Env    []string
		}
		must(t, json.Unmarshal([]byte(run(t, "skopeo", "inspect", kind+":"+dest+":latest")), &image))
		if image.Labels[noteService] != "web" || len(image.Layers) != 1 || len(image.Env) != 1 {
			t.Errorf("%s: %+v", dest, image)
		}
		to := "docker://" + addr + "/" + strings.TrimSuffix(name, ".tar") + ":v1"
		run(t, "skopeo", "copy", "--dest-tls-verify=false", kind+":"+dest+":latest", to)
		if _, err := Open(t.Context(), to, OpenOptions{}); !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), "not one of srvfs") {
			t.Errorf("an image without its artefact: %v", err)
		}
		run(t, "skopeo", "copy", "--dest-tls-verify=false", kind+":"+dest+":latest-snapshot", to+"-snapshot")
		a := open(t, to, OpenOptions{})
		s, _ := scan(t, dir, 1)
		if checkout(t, a, manifest.Ref{}) != s.Root.Digest {
			t.Error("another tree")
		}
		if kind == "oci" {
			continue
		}
		stop()
		s.Root.Digest = manifest.Digest{}
		if _, err := a.Fetch(t.Context(), manifest.Sum([]byte("content of srv/a")), 0, 3); !errors.Is(err, manifest.ErrUnavailable) {
			t.Errorf("the registry has gone: %v", err)
		}
		if _, err := Open(t.Context(), to, OpenOptions{}); !errors.Is(err, manifest.ErrUnavailable) {
			t.Errorf("open, the registry has gone: %v", err)
		}
	}
}

// An image that somebody put beside ours stays there.
func TestNeighbour(t *testing.T) {
	base, dir := t.TempDir(), everything(t)
	dest, other := filepath.Join(base, "layout"), filepath.Join(base, "other")
	exportDir(t, other, contentsDir(t), 1, Options{})
	exportDir(t, dest, dir, 1, Options{})
	run(t, "skopeo", "copy", "oci:"+other+":latest", "oci:"+dest+":theirs")
	edit(t, dir)
	exportDir(t, dest, dir, 2, Options{})
	run(t, "skopeo", "copy", "oci:"+dest+":theirs", "oci:"+filepath.Join(base, "copied")+":it")
	s, src := scan(t, dir, 3)
	if _, err := Write(t.Context(), dest, s, src, Options{Compact: true}); !errors.Is(err, manifest.ErrInvalid) || !strings.Contains(err.Error(), "theirs") {
		t.Errorf("compact: %v", err)
	}
	run(t, "skopeo", "inspect", "oci:"+dest+":theirs")
	checkout(t, open(t, dest, OpenOptions{}), manifest.Ref{Sequence: 1})
}

// A registry is a place for an archive like any other.
func TestRegistry(t *testing.T) {
	addr, _ := registryServer(t, "")
	to := "docker://" + addr + "/house/web:stable"
	origin := contentsDir(t)
	exportDir(t, to+"-contents", origin, 1, Options{})
	origintest.Run(t, origintest.World{Origin: open(t, to+"-contents", OpenOptions{}), Has: origintest.Contents()})
	if _, err := Open(t.Context(), to, OpenOptions{}); !errors.Is(err, manifest.ErrNotFound) {
		t.Errorf("an unknown tag: %v", err)
	}
	dir := everything(t)
	exportDir(t, to, dir, 1, Options{})
	one, _ := scan(t, dir, 1)
	if w := exportDir(t, to, dir, 2, Options{}); !w.Unchanged {
		t.Errorf("again: %+v", w)
	}
	edit(t, dir)
	if w := exportDir(t, to, dir, 3, Options{}); w.Layers != 2 {
		t.Errorf("%+v", w)
	}
	two, twoSrc := scan(t, dir, 3)
	a := open(t, to, OpenOptions{})
	if checkout(t, a, manifest.Ref{}) != two.Root.Digest || checkout(t, a, manifest.Ref{Sequence: 1}) != one.Root.Digest {
		t.Error("another tree")
	}
	if old := open(t, to+"-1", OpenOptions{}); checkout(t, old, manifest.Ref{}) != one.Root.Digest {
		t.Error("another tree under the older tag")
	}
	layout := filepath.Join(t.TempDir(), "layout")
	run(t, "skopeo", "copy", "--src-tls-verify=false", to, "oci:"+layout+":x")
	unpacked(t, layout, "x", two, twoSrc)
	if w := exportDir(t, to, dir, 4, Options{Compact: true}); w.Layers != 1 {
		t.Errorf("compact: %+v", w)
	}
	if a := open(t, to, OpenOptions{}); len(a.Snapshots()) != 1 || checkout(t, a, manifest.Ref{}) != two.Root.Digest {
		t.Error("compact: another tree")
	}
}

// A registry that wants a login is named, with what to do.
func TestRegistryLogin(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	must(t, err)
	addr, _ := registryServer(t, "user:"+string(hash)+"\n")
	to := "docker://" + addr + "/web:v1"
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", home)
	t.Setenv("XDG_RUNTIME_DIR", home)
	_, err = Open(t.Context(), to, OpenOptions{})
	if !errors.Is(err, manifest.ErrDenied) || !strings.Contains(err.Error(), "podman login "+addr) {
		t.Errorf("open: %v", err)
	}
	s, src := scan(t, contentsDir(t), 1)
	if _, err = Write(t.Context(), to, s, src, Options{}); !errors.Is(err, manifest.ErrDenied) {
		t.Errorf("export: %v", err)
	}
	login := func(password string) {
		auth := base64.StdEncoding.EncodeToString([]byte("user:" + password))
		write(t, filepath.Join(home, "config.json"), fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, addr, auth))
	}
	login("wrong")
	if _, err = Write(t.Context(), to, s, src, Options{}); !errors.Is(err, manifest.ErrDenied) {
		t.Errorf("export with a wrong password: %v", err)
	}
	login("secret")
	_, err = Write(t.Context(), to, s, src, Options{})
	must(t, err)
	if checkout(t, open(t, to, OpenOptions{}), manifest.Ref{}) != s.Root.Digest {
		t.Error("another tree")
	}
}

// encryptionKey writes an identity file and returns it and the recipient.
func encryptionKey(t testing.TB) (file, recipient string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	must(t, err)
	file = filepath.Join(t.TempDir(), "key.txt")
	write(t, file, id.String()+"\n")
	return file, id.Recipient().String()
}

// On a web server, encrypted or not, a file is read by range.
func TestWeb(t *testing.T) {
	dir := t.TempDir()
	key, to := encryptionKey(t)
	exportDir(t, filepath.Join(dir, "plain.tar"), contentsDir(t), 1, Options{})
	exportDir(t, filepath.Join(dir, "sealed.tar"), contentsDir(t), 1, Options{Recipients: []string{to}})
	files := http.FileServer(http.Dir(dir))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/whole.tar":
			http.ServeFile(noRanges{w}, r, filepath.Join(dir, "plain.tar"))
			return
		case "/secret.tar":
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	for name, o := range map[string]OpenOptions{"/plain.tar": {}, "/sealed.tar": {Identity: key}} {
		t.Run(name[1:], func(t *testing.T) {
			origintest.Run(t, origintest.World{Origin: open(t, s.URL+name, o), Has: origintest.Contents()})
		})
	}
	for name, want := range map[string]error{"/missing.tar": manifest.ErrNotFound, "/secret.tar": manifest.ErrDenied, "/whole.tar": manifest.ErrInvalid, "/sealed.tar": manifest.ErrDenied} {
		if _, err := Open(t.Context(), s.URL+name, OpenOptions{}); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Replaced while it is read.
	a := open(t, s.URL+"/plain.tar", OpenOptions{})
	exportDir(t, filepath.Join(dir, "plain.tar"), everything(t), 2, Options{})
	if _, err := a.Fetch(t.Context(), manifest.Sum(largest()), 0, 10); !errors.Is(err, manifest.ErrStale) {
		t.Errorf("a file that was replaced: %v", err)
	}
	s.Close()
	if _, err := a.Fetch(t.Context(), manifest.Sum(largest()), 0, 10); !errors.Is(err, manifest.ErrUnavailable) {
		t.Errorf("the server has gone: %v", err)
	}
}

func largest() (b []byte) {
	for _, c := range origintest.Contents() {
		if len(c) > len(b) {
			b = c
		}
	}
	return b
}

// noRanges hides from http.ServeFile's client that there are any.
type noRanges struct{ http.ResponseWriter }

func (w noRanges) WriteHeader(code int) {
	w.Header().Del("Accept-Ranges")
	w.Header().Del("Content-Range")
	if code == http.StatusPartialContent {
		code = http.StatusOK
	}
	w.ResponseWriter.WriteHeader(code)
}

// An encrypted archive opens for those that it was written for, who can add to it.
func TestEncrypted(t *testing.T) {
	dest, dir := filepath.Join(t.TempDir(), "a.tar"), everything(t)
	key, to := encryptionKey(t)
	other, _ := encryptionKey(t)
	o := Options{Recipients: []string{to}}
	exportDir(t, dest, dir, 1, o)
	b, err := os.ReadFile(dest)
	must(t, err)
	if bytes.Contains(b, []byte("index.json")) || bytes.Contains(b, []byte("content of")) {
		t.Error("it is not encrypted")
	}
	for identity, want := range map[string]error{"": manifest.ErrDenied, other: manifest.ErrDenied} {
		if _, err := Open(t.Context(), dest, OpenOptions{Identity: identity}); !errors.Is(err, want) {
			t.Errorf("with the identity %q: %v", identity, err)
		}
	}
	edit(t, dir)
	s, src := scan(t, dir, 2)
	if _, err := Write(t.Context(), dest, s, src, o); !errors.Is(err, manifest.ErrDenied) || !strings.Contains(err.Error(), "--identity") {
		t.Errorf("add without the identity: %v", err)
	}
	if _, err := Write(t.Context(), dest, s, src, Options{Identity: key}); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("add without a recipient: %v", err)
	}
	o.Identity = key
	if w := exportDir(t, dest, dir, 2, o); w.Layers != 2 {
		t.Errorf("%+v", w)
	}
	a := open(t, dest, OpenOptions{Identity: key})
	if checkout(t, a, manifest.Ref{}) != s.Root.Digest || len(a.Snapshots()) != 2 {
		t.Error("another tree")
	}
	checkout(t, a, manifest.Ref{Sequence: 1})
	whole, err := os.ReadFile(dest)
	must(t, err)
	for _, bad := range [][]byte{whole[:len(whole)-100], whole[:len(whole)/2], flip(whole, len(whole)-20), flip(whole, 150)} {
		must(t, os.WriteFile(dest, bad, 0o644))
		if _, err := Open(t.Context(), dest, OpenOptions{Identity: key}); !errors.Is(err, manifest.ErrCorrupt) {
			t.Errorf("damaged: %v", err)
		}
	}
}
