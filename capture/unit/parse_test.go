package unit

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"srvfs/manifest"
)

func TestParseUnit(t *testing.T) {
	text := "\ufeffA=before\r\n[S]\n ; c\nK = v w \\\n#in\n;in\n  more\\\n\n[T] \nX=\\\\\nY=a\\"
	all, err := parseUnit("u", text)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range all {
		got = append(got, fmt.Sprintf("%d [%s] %s=%q", a.line, a.section, a.key, a.value))
	}
	want := []string{`4 [S] K="v w    more"`, `10 [T] X="\\\\"`, `11 [T] Y="a"`}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestParseEnvFile has the cases of systemd.exec(5).
func TestParseEnvFile(t *testing.T) {
	for text, want := range map[string]string{
		"A=b\n":                      "A=b",
		" A = b c  \n":               "A=b c",
		"A=\"b c\" d\n":              "A=b cd",
		"A='b\\n\"$x'\n":             "A=b\\n\"$x",
		"A=\"b\\\"\\n\\$\\\nc\"\n":   "A=b\"\\n$c",
		"A=b\\\nc\\ \n":              "A=bc ",
		"A=x'y'\n":                   "A=x'y'",
		"A='two\nlines'\nB=c":        "A=two\nlines|B=c",
		"# A=1\\\nB=2\n; C=3\nD=\n":  "D=",
		"export X=1\n1A=2\nA B\nC=d": "C=d",
		"A=b\r\nC=\"d":               "A=b|C=d",
		"A=\xff\nB=c":                "B=c",
	} {
		var got []string
		for _, v := range parseEnvFile(text) {
			got = append(got, v.name+"="+v.value)
		}
		if s := strings.Join(got, "|"); s != want {
			t.Errorf("%q: %q, want %q", text, s, want)
		}
	}
}

func TestParseSpan(t *testing.T) {
	for s, want := range map[string]time.Duration{"5": 5 * time.Second, "1min 30s": 90 * time.Second, "1.5h": 90 * time.Minute, "2h30min": 150 * time.Minute, "500ms": 500 * time.Millisecond, "infinity": forever, "0": forever, "9999999y": forever, "": -1, "x": -1, "5 parsecs": -1, "1.2.3s": -1, "-5": -1} {
		got, err := parseSpan(s)
		if want < 0 != (err != nil) || err == nil && got != int64(want) {
			t.Errorf("%q: %v %v, want %v", s, time.Duration(got), err, want)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"nginx", "nginx-debug", "named", "bind9", "postgresql", "ssh", "a"}
	for want, near := range map[string]string{"nginz": "nginx", "ngnix": "nginx", "nginx-": "nginx nginx-debug", "sshd": "ssh", "postgres": "postgresql", "bind": "bind9", "zzz": "", "b": "a"} {
		if got := strings.Join(nearest(want, names), " "); got != near {
			t.Errorf("%s: %q, want %q", want, got, near)
		}
	}
}

func FuzzUnit(f *testing.F) {
	f.Add("[Unit]\nDescription=x\n[Service]\nType=forking\nExecStart=-/bin/true 'a b' $X ; /bin/true \\\n c\nUser=www\nEnvironment=\"A=%i\"\nRuntimeDirectory=a/b\nTimeoutSec=5min\n")
	f.Add("[Service]\nExecStop=/bin/kill -s QUIT $MAINPID\nDynamicUser=1\nKillSignal=RTMIN+1\nWorkingDirectory=~\nEnvironmentFile=-/etc/*\nPIDFile=%t/x\nUMask=7\n")
	root := world(f, nil)
	f.Fuzz(func(t *testing.T, s string) {
		all, err := parseUnit("/u", s)
		if err != nil {
			if !errors.Is(err, manifest.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		tr := &translator{root: root, text: &text{name: "a-b@c.service", path: "/u", all: all}}
		u, err := tr.translate()
		if err != nil {
			if !errors.Is(err, manifest.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		for _, c := range slices.Concat(u.Pre, u.Start, u.Post, u.Stop) {
			if len(c.Argv) == 0 || !path.IsAbs(c.Argv[0]) || strings.Contains(strings.Join(c.Argv, ""), "\x00") {
				t.Fatalf("%q", c.Argv)
			}
		}
		for _, d := range u.Folders {
			if !manifest.ValidPath(d.Path) {
				t.Fatalf("%q", d.Path)
			}
		}
	})
}

func FuzzWords(f *testing.F) {
	f.Add(`a "b c" 'd'\x41 \u00e4 $X ${Y}z $$`)
	f.Fuzz(func(t *testing.T, s string) {
		words, err := splitWords(s)
		if err != nil {
			return
		}
		for _, w := range words {
			expandArgument(w, func(string) (string, bool) { return s, true }, len(s)%2 == 0)
		}
	})
}

func FuzzEnvFile(f *testing.F) {
	f.Add("A=b\nB=\"c\\\"d\"\n# x\\\nC='e\nf' g\\ \n")
	f.Fuzz(func(t *testing.T, s string) {
		for _, v := range parseEnvFile(s) {
			if !isName(v.name) || strings.Contains(v.value, "\x00") {
				t.Fatalf("%q", v)
			}
		}
	})
}

func FuzzAccounts(f *testing.F) {
	f.Add(passwd, groups)
	f.Fuzz(func(t *testing.T, p, g string) {
		a := accounts{users: parsePasswd(p), groups: parseGroup(g)}
		for _, u := range a.users {
			if strings.ContainsAny(u.name, ":\n/") || len(a.memberships(u.name, u.gid)) == 0 {
				t.Fatalf("%+v", u)
			}
		}
	})
}

func FuzzScript(f *testing.F) {
	f.Add("#!/bin/sh\n# pidfile: /run/x\nNAME=a\nPIDFILE=\"/run/${NAME}.pid\"\n### BEGIN INIT INFO\n# Description: d\n### END INIT INFO\n")
	f.Fuzz(func(t *testing.T, s string) {
		if h := parseScript(s); h.pidFile != "" && !path.IsAbs(h.pidFile) {
			t.Fatal(h)
		}
	})
}

func FuzzSpan(f *testing.F) {
	f.Add("1min 30s")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := parseSpan(s); err == nil && d < 0 {
			t.Fatal(d)
		}
	})
}
