package capture

import (
	"strings"
	"testing"

	"srvfs/manifest"
)

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, yes, no string // paths separated by spaces
	}{
		{"/etc/nginx", "/etc/nginx /etc/nginx/conf.d/x", "/etc /etc/nginx2 /srv/etc/nginx"},
		{"/etc/*", "/etc/a /etc/a/b", "/etc /usr/a"},
		{"/etc/**", "/etc /etc/a", "/usr"},
		{"/usr/lib/*/perl", "/usr/lib/x86/perl /usr/lib/x86/perl/5", "/usr/lib/perl /usr/lib/a/b/perl"},
		{"/usr/**/libpam.so*", "/usr/lib/a/libpam.so.0 /usr/libpam.so /usr/lib/libpam.so/x", "/usr/lib/libpam /lib/libpam.so"},
		{"*.bak", "/a.bak /x/a.bak /x/.bak /x.bak/y", "/a.bak2 /bak"},
		{"/var/lib/py?hon*", "/var/lib/python3", "/var/lib/pyhon /var/lib/pyt/hon"},
		{"/a*b*c", "/abc /axxbyyc /abcc", "/ab /abd"},
		{"/x/", "/x /x/y", "/xy"},
		{"/", "/ /a", ""},
		{"[a]", "/[a]", "/a"},
	} {
		p := must(ParsePattern(c.pattern))(t)
		for _, s := range strings.Fields(c.yes) {
			if !p.Match(s) {
				t.Errorf("%s does not match %s", c.pattern, s)
			}
		}
		for _, s := range strings.Fields(c.no) {
			if p.Match(s) {
				t.Errorf("%s matches %s", c.pattern, s)
			}
		}
	}
	for _, bad := range []string{"", "a/b", "./a", strings.Repeat("x", 5000)} {
		_, err := ParsePattern(bad)
		wantErr(t, err, manifest.ErrInvalid)
	}
	if !literal("/a*").Match("/a*/b") || literal("/a*").Match("/ab") {
		t.Error("a literal is taken as a pattern")
	}
	if dir, ok := firstMatch(mustPatterns("/srv/*"), "/srv/www/html/index.html"); dir != "/srv/www" || !ok {
		t.Errorf("first match %q", dir)
	}
}

// FuzzPattern: whatever is parsed terminates quickly, and matches what is below
// what it matches.
func FuzzPattern(f *testing.F) {
	f.Add("/usr/**/a*b?c/**", "/usr/x/a1b2c/d")
	f.Add("**", "/")
	f.Fuzz(func(t *testing.T, pattern, p string) {
		if len(pattern) > 100 || len(p) > 200 || strings.Count(pattern, "**") > 4 {
			return
		}
		parsed, err := ParsePattern(pattern)
		if err != nil || !manifest.ValidPath(p) || p == "/" {
			return
		}
		if parsed.Match(p) && !parsed.Match(p+"/below") {
			t.Fatalf("%q matches %q and not what is below", pattern, p)
		}
	})
}
