package dpkg

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"srvfs/capture/pkgdb"
)

// parseList cuts an info/*.list file into its paths, one on each line. The
// root is written "/.".
func parseList(name, text string) ([]string, error) {
	paths := make([]string, 0, strings.Count(text, "\n")+1)
	for line := 1; text != ""; line++ {
		var l string
		l, text, _ = strings.Cut(text, "\n")
		if l == "" || l[0] != '/' || strings.IndexByte(l, 0) >= 0 {
			return nil, fmt.Errorf("%s:%d: %.80q is not a path: %w", name, line, l, pkgdb.ErrCorrupt)
		}
		if l == "/." {
			l = "/"
		}
		paths = append(paths, l)
	}
	return paths, nil
}

// parseMD5Sums reads lines of "<32 digits>  usr/bin/dash" and calls yield with
// the digits and the path, made absolute.
func parseMD5Sums(name, text string, yield func(md5, path string)) error {
	for line := 1; text != ""; line++ {
		var l string
		l, text, _ = strings.Cut(text, "\n")
		if strings.TrimSpace(l) == "" {
			continue
		}
		escaped := l[0] == '\\' // md5sum(1) marks names with newlines or backslashes
		if escaped {
			l = l[1:]
		}
		if len(l) < 35 || !isMD5(l[:32]) || l[32] != ' ' || strings.IndexByte(l, 0) >= 0 {
			return fmt.Errorf("%s:%d: %.80q is not a checksum and a path: %w", name, line, l, pkgdb.ErrCorrupt)
		}
		p := l[33:]
		if p[0] == ' ' || p[0] == '*' {
			p = p[1:]
		}
		if escaped {
			p = strings.NewReplacer(`\\`, `\`, `\n`, "\n").Replace(p)
		}
		yield(l[:32], "/"+strings.TrimPrefix(strings.TrimPrefix(p, "./"), "/"))
	}
	return nil
}

// A diversion sends a path of every package but one elsewhere.
type diversion struct {
	to string
	by string // the package that is not affected; ":" is none
}

// parseDiversions reads triples of lines: from, to, package.
func parseDiversions(name, text string) (map[string]diversion, error) {
	if text == "" {
		return nil, nil
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines)%3 != 0 {
		return nil, fmt.Errorf("%s:%d: ends within a group of three lines: %w", name, len(lines), pkgdb.ErrCorrupt)
	}
	m := make(map[string]diversion, len(lines)/3)
	for i := 0; i < len(lines); i += 3 {
		from, to, by := lines[i], lines[i+1], lines[i+2]
		if !strings.HasPrefix(from, "/") || !strings.HasPrefix(to, "/") || by == "" || strings.IndexByte(from+to, 0) >= 0 {
			return nil, fmt.Errorf("%s:%d: %.80q to %.80q by %.80q is not a diversion: %w", name, i+1, from, to, by, pkgdb.ErrCorrupt)
		}
		m[from] = diversion{to: to, by: by}
	}
	return m, nil
}

// read returns a file of the database; a missing one is "", false.
func (db *database) read(name string, limit int64) (string, bool, error) {
	b, err := db.root.ReadFile(folder+name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("package database: %w", err)
	}
	return string(b), true, nil
}

// readInfo returns info/ID.ext. Old databases have no architecture in file
// names, so the bare name is tried too.
func (db *database) readInfo(p *pkg, ext string) (name, text string, err error) {
	names := []string{p.Name, p.Name + ":" + p.Arch}
	if p.multiArch == "same" {
		names[0], names[1] = names[1], names[0]
	}
	for _, n := range names {
		name = "info/" + n + ext
		if db.distroless {
			name = "status.d/" + n + ext
		}
		text, ok, err := db.read(name, maxInfo)
		if ok || err != nil {
			return folder + name, text, err
		}
	}
	return "", "", nil
}
