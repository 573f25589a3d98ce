package trace

import (
	"bytes"
	"path"
	"strconv"
	"strings"
	"testing"
)

func TestJoin(t *testing.T) {
	for _, test := range []struct {
		root, base, raw, want string
		slash                 bool
	}{
		{"/", "/", "/etc/hosts", "/etc/hosts", false},
		{"/", "/etc", "hosts", "/etc/hosts", false},
		{"/", "/", "hosts", "/hosts", false},
		{"/", "/etc", "", "/etc", false},
		{"/", "/etc", ".", "/etc", true},
		{"/", "/", ".", "/", true},
		{"/", "/", "/", "/", true},
		{"/", "/etc", "//usr///lib/./x", "/usr/lib/x", false},
		{"/", "/etc", "/usr/lib/", "/usr/lib", true},
		{"/", "/etc", "/usr/lib/.", "/usr/lib", true},
		{"/", "/", "..", "/", true},
		{"/", "/a/b/c", "../../x", "/a/x", false},
		{"/", "/a", "../../../x", "/x", false},
		{"/", "/a", "/../../x", "/x", false},
		// After a name, ".." is for who knows whether it is a link.
		{"/", "/a", "l/../x", "/a/l/../x", false},
		{"/", "/a", "../l/../../x", "/l/../../x", false},
		{"/", "/a", "/l/..", "/l/..", true},
		// A process in a chroot.
		{"/jail", "/jail", "/etc/hosts", "/jail/etc/hosts", false},
		{"/jail", "/jail/etc", "hosts", "/jail/etc/hosts", false},
		{"/jail", "/jail/etc", "../../../x", "/jail/x", false},
		{"/jail", "/jail", "/..", "/jail", true},
		{"/jail", "/jail", "/", "/jail", true},
		// One that kept a directory from outside.
		{"/jail", "/", "etc", "/etc", false},
		{"/jail", "/jailer/x", "../../y", "/y", false},
		{"/jail", "/other", "/x", "/jail/x", false},
		{"/", "/", "a\nb\xff", "/a\nb\xff", false},
		{"/", "/", "...", "/...", false},
	} {
		got, slash := join(nil, test.root, []byte(test.base), []byte(test.raw))
		if string(got) != test.want || slash != test.slash {
			t.Errorf("join(%q, %q, %q) = %q, %v; want %q, %v",
				test.root, test.base, test.raw, got, slash, test.want, test.slash)
		}
	}
}

func TestParseLink(t *testing.T) {
	for _, test := range []struct {
		text, home, want string
		suffixed, ok     bool
	}{
		{"/etc", "/", "/etc", false, true},
		{"/", "/", "/", false, true},
		{"/x (deleted)", "/", "/x (deleted)", true, true},
		{"/ (deleted)", "/", "/ (deleted)", false, true}, // a name of nothing else is a name
		{"(unreachable)/x", "/", "", false, false},
		{"socket:[4711]", "/", "", false, false},
		{"anon_inode:[eventpoll]", "/", "", false, false},
		{"", "/", "", false, false},
		{"/srv/root/etc", "/srv/root", "/etc", false, true},
		{"/srv/root", "/srv/root", "/", false, true},
		{"/srv/rooted", "/srv/root", "", false, false},
		{"/srv/root (deleted)", "/srv/root", "", false, false},
	} {
		got, suffixed, ok := parseLink([]byte(test.text), test.home)
		if string(got) != test.want || suffixed != test.suffixed || ok != test.ok {
			t.Errorf("parseLink(%q, %q) = %q, %v, %v", test.text, test.home, got, suffixed, ok)
		}
	}
}

func TestParseTgid(t *testing.T) {
	for text, want := range map[string]int{
		"Name:\tx\nUmask:\t0022\nState:\tR\nTgid:\t4711\nNgid:\t0\n": 4711,
		"Name:\tTgid:\t1\nTgid:\t2\n":                                2,
		"Name:\tx\nTgid:\t47":                                        0,
		"Name:\tx\nTgid:\t99999999999\n":                             0,
		"Name:\tx\nTgid:\t-1\n":                                      0,
		"":                                                           0,
	} {
		if got := parseTgid([]byte(text)); got != want {
			t.Errorf("parseTgid(%q) = %d, want %d", text, got, want)
		}
	}
}

// clean makes a path as the kernel gives it: absolute and canonical.
func clean(s string) string { return path.Clean("/" + strings.ReplaceAll(s, "\x00", "")) }

func FuzzJoin(f *testing.F) {
	for _, s := range [][3]string{
		{"/", "/etc", "../x/./y//z/"}, {"/jail", "/jail/a/b", "../../../../x"}, {"/jail", "/", "a/.."},
		{"/", "/", "//"}, {"/a b", "/a b/c", "..../.../../.. "}, {"/", "/\xff", "\xfe\n"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, root, base, raw string) {
		root, base = clean(root), clean(base)
		prefix := []byte("before")
		full, slash := join(prefix, root, []byte(base), []byte(raw))
		if !bytes.HasPrefix(full, []byte("before")) {
			t.Fatalf("lost what stood before: %q", full)
		}
		got := string(full[len("before"):])
		if got == "" || got[0] != '/' || strings.Contains(got, "//") || strings.Contains(got+"/", "/./") {
			t.Fatalf("not clean: %q", got)
		}
		if got != "/" && strings.HasSuffix(got, "/") || strings.HasPrefix(got+"/", "/../") {
			t.Fatalf("not clean: %q", got)
		}
		absolute := strings.HasPrefix(raw, "/")
		from := base
		if absolute {
			from = root
		}
		if within([]byte(from), root) && !within(full[len("before"):], root) {
			t.Fatalf("%q is outside of the root %q", got, root)
		}
		// In a tree without symbolic links every way to resolve ".." agrees,
		// as long as it does not meet the root of a chroot.
		if root == "/" || !within([]byte(from), root) {
			if want := path.Clean(from + "/" + raw); path.Clean(got) != want {
				t.Fatalf("join(%q, %q, %q) = %q, which is not %q", root, base, raw, got, want)
			}
		}
		if again, _ := join(nil, "/", []byte("/"), []byte(got)); string(again) != got {
			t.Fatalf("%q becomes %q the second time", got, again)
		}
		if i := strings.LastIndexByte(raw, '/'); i >= 0 || raw == "." || raw == ".." {
			end := raw[i+1:]
			if want := end == "" || end == "." || end == ".."; slash != want {
				t.Fatalf("%q: slash %v", raw, slash)
			}
		}
	})
}

func FuzzProcText(f *testing.F) {
	for _, s := range []string{
		"/etc (deleted)", "(unreachable)/", "/srv/root/x", "socket:[1]", "Name:\tx\nTgid:\t12\n", "\nTgid:9", " (deleted)",
		"/ (deleted)", "/\xff\n (deleted)",
	} {
		f.Add([]byte(s), "/srv/root")
	}
	f.Fuzz(func(t *testing.T, text []byte, home string) {
		home = clean(home)
		for _, home := range []string{"/", home} {
			p, suffixed, ok := parseLink(text, home)
			if ok && (len(p) == 0 || p[0] != '/') {
				t.Fatalf("parseLink(%q, %q) = %q", text, home, p)
			}
			if suffixed && (!ok || len(p) <= 1+len(deletedSuffix)) {
				t.Fatalf("parseLink(%q, %q): nothing before the suffix of %q", text, home, p)
			}
		}
		if n := parseTgid(text); n < 0 || n > 0 && !bytes.Contains(text, []byte(strconv.Itoa(n))) {
			t.Fatalf("parseTgid(%q) = %d", text, n)
		}
	})
}
