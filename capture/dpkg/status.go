package dpkg

import (
	"fmt"
	"strings"

	"srvfs/capture/pkgdb"
)

// maxPackages bounds what a hostile status file can make us remember.
const maxPackages = 1 << 18

// A conffile is one line of the field Conffiles.
type conffile struct {
	path, md5 string // md5 is empty if dpkg does not know it yet
	// removed: an earlier version of the package had it, and dpkg is to remove it.
	removed bool
}

// A stanza is what one paragraph of a status file says of a package.
type stanza struct {
	pkgdb.Package
	state     string // third word of Status; empty if there is no such field
	multiArch string // value of Multi-Arch
	conffiles []conffile
}

// parseStatus reads the paragraphs of a status file. name is for errors, which
// wrap pkgdb.ErrCorrupt.
func parseStatus(name, text string) ([]*stanza, error) {
	var all []*stanza
	cur := &stanza{}
	started, field, line := false, "", 0
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%s:%d: %s: %w", name, line, fmt.Sprintf(format, args...), pkgdb.ErrCorrupt)
	}
	finish := func() error {
		if !started {
			return nil
		}
		if cur.Name == "" {
			return bad("paragraph ends here without a Package field")
		}
		if len(all) == maxPackages {
			return bad("more than %d packages", maxPackages)
		}
		all = append(all, cur)
		cur, started, field = &stanza{}, false, ""
		return nil
	}
	for text != "" {
		var l string
		l, text, _ = strings.Cut(text, "\n")
		line++
		l = strings.TrimRight(l, " \t\r")
		if l == "" {
			if err := finish(); err != nil {
				return nil, err
			}
			continue
		}
		if l[0] == ' ' || l[0] == '\t' {
			if field == "" {
				return nil, bad("%.60q continues no field", l)
			}
			if field == "conffiles" {
				c, ok := parseConffile(l)
				if !ok {
					return nil, bad("conffile %.80q: want a path and a checksum", l)
				}
				cur.conffiles = append(cur.conffiles, c)
			}
			continue
		}
		key, value, ok := strings.Cut(l, ":")
		if !ok || key == "" || strings.ContainsAny(key, " \t\x00") {
			return nil, bad("%.60q is no field", l)
		}
		started = true
		field = strings.ToLower(key)
		if err := cur.set(field, strings.TrimSpace(value)); err != nil {
			return nil, bad("%s: %v", key, err)
		}
	}
	line++
	if err := finish(); err != nil {
		return nil, err
	}
	return all, nil
}

// set takes one field; those that nobody asks for are passed over.
func (s *stanza) set(field, value string) (err error) {
	switch field {
	case "package":
		if !validName(value) {
			return fmt.Errorf("%.80q is not a package name", value)
		}
		s.Name = strings.ToLower(value)
	case "status":
		words := strings.Fields(value)
		if len(words) != 3 {
			return fmt.Errorf("%.80q: want three words", value)
		}
		s.state = words[2]
	case "version":
		s.Version = value
	case "architecture":
		if !validName(value) {
			return fmt.Errorf("%.80q is not an architecture", value)
		}
		s.Arch = value
	case "multi-arch":
		s.multiArch = value
	case "essential":
		s.Essential = value == "yes"
	case "description":
		s.Summary = value
	case "depends", "pre-depends":
		var groups [][]pkgdb.Dependency
		groups, err = parseDepends(value)
		s.Depends = append(s.Depends, groups...)
	case "provides":
		var groups [][]pkgdb.Dependency
		groups, err = parseDepends(value)
		for _, g := range groups {
			s.Provides = append(s.Provides, g...)
		}
	}
	return err
}

// validName holds for package names and architectures: they become parts of
// file names.
func validName(s string) bool {
	if s == "" || len(s) > 200 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("+-._~", rune(c)) {
			return false
		}
	}
	return true
}

// parseConffile reads " /etc/nginx/nginx.conf 0123... [obsolete]".
func parseConffile(l string) (conffile, bool) {
	l = strings.TrimSpace(l)
	var c conffile
	for {
		rest, word, ok := cutLast(l)
		if !ok {
			return conffile{}, false
		}
		if word == "obsolete" || word == "remove-on-upgrade" {
			l = rest
			c.removed = c.removed || word == "remove-on-upgrade"
			continue
		}
		if rest == "" || rest[0] != '/' {
			return conffile{}, false
		}
		c.path = rest
		if isMD5(word) {
			c.md5 = word
		}
		return c, true
	}
}

func cutLast(s string) (rest, word string, ok bool) {
	i := strings.LastIndexByte(s, ' ')
	if i < 0 {
		return "", s, false
	}
	return strings.TrimRight(s[:i], " "), s[i+1:], true
}

func isMD5(s string) bool {
	if len(s) != 32 {
		return false
	}
	for i := range len(s) {
		if (s[i] < '0' || s[i] > '9') && (s[i] < 'a' || s[i] > 'f') {
			return false
		}
	}
	return true
}

// parseDepends reads "a (>= 1), b | c:any": groups of alternatives.
func parseDepends(s string) ([][]pkgdb.Dependency, error) {
	var groups [][]pkgdb.Dependency
	for s != "" {
		var one string
		one, s, _ = strings.Cut(s, ",")
		if strings.TrimSpace(one) == "" {
			continue
		}
		group := make([]pkgdb.Dependency, 0, 1+strings.Count(one, "|"))
		for more := true; more; {
			var alt string
			alt, one, more = strings.Cut(one, "|")
			d, err := parseDependency(strings.TrimSpace(alt))
			if err != nil {
				return nil, err
			}
			group = append(group, d)
		}
		groups = append(groups, group)
	}
	return groups, nil
}

func parseDependency(s string) (pkgdb.Dependency, error) {
	var d pkgdb.Dependency
	name, rest, versioned := strings.Cut(s, "(")
	d.Name, d.Arch, _ = strings.Cut(strings.TrimSpace(name), ":")
	if !validName(d.Name) || d.Arch != "" && !validName(d.Arch) {
		return d, fmt.Errorf("%.80q is not a dependency", s)
	}
	if !versioned {
		return d, nil
	}
	rest, ok := strings.CutSuffix(rest, ")")
	rest = strings.TrimSpace(rest)
	n := 0
	for n < len(rest) && strings.IndexByte("<=>", rest[n]) >= 0 {
		n++
	}
	d.Op, d.Version = rest[:n], strings.TrimSpace(rest[n:])
	switch d.Op {
	case "<": // as dpkg reads these old forms
		d.Op = "<="
	case ">":
		d.Op = ">="
	case "":
		d.Op = "="
	case "<<", "<=", "=", ">=", ">>":
	default:
		ok = false
	}
	if !ok || d.Version == "" {
		return d, fmt.Errorf("%.80q has a bad version", s)
	}
	return d, nil
}
