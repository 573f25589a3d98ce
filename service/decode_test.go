package service

import (
	"errors"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

func TestDecodeNotice(t *testing.T) {
	for message, want := range map[string]notice{
		"READY=1":                           {ready: true},
		"STATUS=a=b\nREADY=1\nMAINPID=42\n": {ready: true, mainPID: 42, status: "a=b"},
		"READY=0\nMAINPID=-3\nMAINPID=x":    {},
		"STATUS=\x1b[2J\n":                  {status: "?[2J"},
		"BARRIER=1":                         {},
		"":                                  {},
	} {
		if got := decodeNotice([]byte(message)); got != want {
			t.Errorf("%q: %+v", message, got)
		}
	}
}

func FuzzDecodeNotice(f *testing.F) {
	f.Add([]byte("READY=1\nMAINPID=1\nSTATUS=x\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := decodeNotice(b); n.mainPID < 0 || strings.ContainsAny(n.status, "\n\x1b\x00") {
			t.Fatalf("%q: %+v", b, n)
		}
	})
}

func TestParsePID(t *testing.T) {
	for in, want := range map[string]int{"12": 12, "12\n": 12, " 7 rest": 7} {
		if got, err := parsePID("x", []byte(in)); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"-1", "0", "abc", "\x00\x00", "99999999999999999999"} {
		if _, err := parsePID("x", []byte(in)); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", in, err)
		}
	}
	if _, err := parsePID("x", []byte(" \n")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty: %v", err)
	}
}

func FuzzParsePID(f *testing.F) {
	f.Add([]byte("12\n"))
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if pid, err := parsePID("x", b); (err == nil) != (pid > 0) {
			t.Fatalf("%q: %d, %v", b, pid, err)
		}
	})
}

// Pid files are written by the service: nothing leads to a file that is not
// its own.
func TestReadPIDFileStaysInside(t *testing.T) {
	d := &dir{path: t.TempDir()}
	for _, name := range []string{runName, upperName} {
		must(t, os.Mkdir(d.in(name), 0o755))
	}
	must(t, os.WriteFile(d.in("secret"), []byte("1"), 0o600))
	must(t, os.Symlink("../secret", d.in("run/link")))
	must(t, os.Symlink("/etc", d.in("run/etc")))
	must(t, unix.Mkfifo(d.in("run/fifo"), 0o600))
	must(t, os.WriteFile(d.in("run/long"), []byte(strings.Repeat("1", 1<<20)), 0o600))
	for _, p := range []string{"/run/link", "/run/etc/hostname", "/run/fifo", "/run/long", "/run/none", "/var/run", "/run/../secret", "/none"} {
		if pid, err := readPIDFile(d, p); err == nil {
			t.Errorf("%s: process %d", p, pid)
		}
	}
	must(t, os.WriteFile(d.in("run/good"), []byte("5"), 0o600))
	for _, p := range []string{"/run/good", "/var/run/good"} {
		if pid, err := readPIDFile(d, p); err != nil || pid != 5 {
			t.Errorf("%s: %d, %v", p, pid, err)
		}
	}
}

func TestParseStat(t *testing.T) {
	const good = "7 (a) b) (S 1) R 3 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0"
	if parent, start, state, err := parseStat(good); err != nil || parent != 3 || start != 4711 || state != 'R' {
		t.Errorf("%d %d %c %v", parent, start, state, err)
	}
	if p, err := identify(os.Getpid()); err != nil || !p.alive() {
		t.Errorf("%+v, %v", p, err)
	}
	if (process{PID: os.Getpid(), Start: 1}).alive() {
		t.Error("another process with our number counts as alive")
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("7 (a) b) R 3 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0")
	f.Add(")")
	f.Fuzz(func(t *testing.T, s string) { _, _, _, _ = parseStat(s) })
}

func TestRecordRoundTrip(t *testing.T) {
	d := &dir{path: t.TempDir()}
	if r, err := d.load(); err != nil || !reflect.DeepEqual(r, &record{}) {
		t.Errorf("nothing: %+v, %v", r, err)
	}
	want := &record{
		Name: "web", Root: manifest.Sum(nil).String(), Sequence: 3, Owner: process{1, 2}, Init: process{3, 4}, Mark: newMark("web"),
		Since: time.Unix(1, 2).UTC(), Ready: time.Unix(3, 0).UTC(), Units: []UnitState{{Name: "a", PID: 9}},
	}
	must(t, d.save(want))
	if got, err := d.load(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v (%v)", got, want, err)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(`{"name":"web","root":"sha256:00","init":{"pid":-1}}`))
	f.Add([]byte(`{"name":"web","mark":"srvfs-web-0011223344556677","units":[{"name":"a","pid":3}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil && !errors.Is(err, manifest.ErrInvalid) {
			t.Fatal(err)
		}
		if err == nil && (r.Init.PID < 0 || r.Mark != "" && !validMark(r.Mark)) {
			t.Fatalf("%+v", r)
		}
	})
}

func TestLastLines(t *testing.T) {
	if got := lastLines("a\nb\x1b\nc\xff\td\n\n", 2); got != "b?\nc?\td" {
		t.Errorf("%q", got)
	}
}

func TestLogTurns(t *testing.T) {
	d := &dir{path: t.TempDir()}
	must(t, os.WriteFile(d.in(logName), []byte("old\n"), 0o600))
	l, err := openLog(d)
	must(t, err)
	if _, err := l.WriteString("new\n"); err != nil {
		t.Fatal(err)
	}
	if got := l.tail(); got != "new" {
		t.Errorf("tail %q", got)
	}
	must(t, l.Truncate(maxLog+1))
	must(t, l.Close())
	l, err = openLog(d)
	must(t, err)
	defer func() { must(t, l.Close()) }()
	if info, err := os.Stat(d.in(oldLog)); err != nil || info.Size() != maxLog+1 {
		t.Errorf("%v, %v", info, err)
	}
	if got := l.tail(); got != "" {
		t.Errorf("tail of a new log %q", got)
	}
}
