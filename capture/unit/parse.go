package unit

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"srvfs/manifest"
)

// An assignment is one "Key=value" of a unit file.
type assignment struct {
	section, key, value string
	file                string
	line                int
}

// errorf returns an error that says where a is, and wraps
// manifest.ErrInvalid.
func (a assignment) errorf(format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s=: %s: %w", a.file, a.line, a.key, fmt.Sprintf(format, args...), manifest.ErrInvalid)
}

// parseUnit reads a unit file as systemd.syntax(7) says: what systemd itself
// passes over with a warning (lines without "=", or before the first section) is
// passed over. (The parser of go-systemd refuses these, and lines longer than
// 2048 bytes, and keeps comments within continued lines.)
func parseUnit(file, text string) ([]assignment, error) {
	var all []assignment
	section := ""
	line := 0
	bad := func(what string) ([]assignment, error) {
		return nil, fmt.Errorf("%s:%d: %s: %w", file, line, what, manifest.ErrInvalid)
	}
	text = strings.TrimPrefix(text, "\ufeff")
	for text != "" {
		var l string
		l, text, _ = strings.Cut(text, "\n")
		line++
		first := line
		l = strings.TrimLeft(strings.TrimSuffix(l, "\r"), " \t")
		if l == "" || l[0] == '#' || l[0] == ';' {
			continue
		}
		if continued(l) { // each backslash-newline is a space; comments in between go
			var b strings.Builder
			for more := true; more; {
				more = continued(l)
				if more {
					l = l[:len(l)-1] + " "
				}
				b.WriteString(l)
				for more {
					if text == "" {
						more = false
						break
					}
					l, text, _ = strings.Cut(text, "\n")
					line++
					l = strings.TrimSuffix(l, "\r")
					if t := strings.TrimLeft(l, " \t"); t == "" || t[0] != '#' && t[0] != ';' {
						break
					}
				}
			}
			l = b.String()
		}
		l = strings.TrimSpace(l)
		if strings.IndexByte(l, 0) >= 0 {
			return bad("NUL byte")
		}
		if l != "" && l[0] == '[' {
			if len(l) < 3 || l[len(l)-1] != ']' {
				return bad(fmt.Sprintf("%.80q is no section", l))
			}
			section = l[1 : len(l)-1]
			continue
		}
		key, value, ok := strings.Cut(l, "=")
		key = strings.TrimRight(key, " \t")
		if !ok || key == "" || section == "" || !utf8.ValidString(l) {
			continue
		}
		all = append(all, assignment{section: section, key: key, value: strings.TrimLeft(value, " \t"), file: file, line: first})
	}
	return all, nil
}

// continued reports whether a line ends in an odd number of backslashes.
func continued(l string) bool {
	n := len(l) - len(strings.TrimRight(l, `\`))
	return n%2 == 1
}

// parseBool reads systemd's booleans.
func parseBool(s string) (v, ok bool) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	}
	return false, false
}
