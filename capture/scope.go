package capture

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"srvfs/capture/dpkg"
	"srvfs/capture/pkgdb"
	"srvfs/capture/rootfs"
	"srvfs/capture/rpmdb"
	"srvfs/manifest"
)

// A scope says what a service may learn from its standbys beyond what its
// snapshot holds: a program there that looks in vain for a path which exists on
// the source has shown what the capture did not see. It is kept beside the snapshot.
type scope struct {
	// Packages are the IDs of the packages that are in, of which some files may
	// have stayed out; Folders those that are in with all that is below them.
	Packages []string `json:"packages"`
	Folders  []string `json:"folders"`
	Exclude  []string `json:"exclude"` // the administrator's patterns
	// Learn: any path, wherever it is.
	Learn bool `json:"learn"`
	// Mounts are where file systems were mounted that files of the snapshot lie on, in
	// the root; "/" if the root itself was such a place.
	Mounts []string `json:"mounts,omitempty"`
	// Hooks: the administrator has commands that make the data hold still.
	Hooks bool `json:"hooks,omitempty"`
	// Recipe is what the capture was asked for, nil if it can't be made again; Found what
	// its first step found (see service.mark), and Defined the files where that was read.
	Recipe  *Options `json:"recipe,omitempty"`
	Found   string   `json:"found,omitempty"`
	Defined []string `json:"defined,omitempty"`
}

// maxScope bounds the file.
const maxScope = 16 << 20

// scope returns what the capture has found to be the service's.
func (c *capturing) scope() ([]byte, error) {
	s := scope{Exclude: c.Exclude, Learn: c.Learn, Hooks: c.Freeze != "", Packages: slices.Sorted(maps.Keys(c.service.needed)), Recipe: c.recipe(), Found: c.service.mark()}
	for _, info := range c.service.infos {
		s.Defined = append(s.Defined, info.Files...)
	}
	for _, m := range c.mounts {
		if m.real && (m.path != "/" || mountedAt(c.Root)) && slices.ContainsFunc(c.tree.nodes, func(n *node) bool { return n.path != m.path && inside(n.path, m.path) }) {
			s.Mounts = append(s.Mounts, m.path)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.closure.whole)) {
		if c.service.needed[id] == "" {
			s.Packages = append(s.Packages, id)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(c.closure.trees)) {
		if n := len(s.Folders); n == 0 || !inside(dir, s.Folders[n-1]) {
			s.Folders = append(s.Folders, dir)
		}
	}
	return json.Marshal(s)
}

// scope reads that of a snapshot. One of an earlier version of this program has
// none: then nothing is learned.
func (l *Library) scope(p Published) (*scope, error) {
	b, err := os.ReadFile(filepath.Join(l.folder(p), "scope"))
	if errors.Is(err, fs.ErrNotExist) {
		return &scope{}, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeScope(b)
}

func decodeScope(b []byte) (*scope, error) {
	s := &scope{}
	if len(b) > maxScope {
		return nil, fmt.Errorf("scope of %d bytes: %w", len(b), manifest.ErrInvalid)
	}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("scope: %w: %w", err, manifest.ErrInvalid)
	}
	return s, nil
}

// whole reports whether a path is, or lies in, a folder that was taken with all that is
// in it.
func (s *scope) whole(p string) bool {
	return slices.ContainsFunc(s.Folders, func(dir string) bool { return inside(p, dir) })
}

// A judge decides what of a root may be learned.
type judge struct {
	*scope
	root    *rootfs.Root
	exclude []Pattern
	db      pkgdb.DB // opened when it is first needed
	opened  bool
}

func newJudge(s *scope, root *rootfs.Root) (*judge, error) {
	j := &judge{scope: s, root: root}
	for _, text := range s.Exclude {
		p, err := ParsePattern(text)
		if err != nil {
			return nil, err
		}
		j.exclude = append(j.exclude, p)
	}
	return j, nil
}

// find returns what the path leads to, over which symlinks; or nil.
func (j *judge) find(p string) (fs.FileInfo, string, []string) {
	canonical, links, err := j.root.Resolve(p)
	if err == nil {
		if info, err := j.root.Lstat(canonical); err == nil {
			return info, canonical, links
		}
	}
	return nil, "", nil
}

// verdict decides on one path. What is secret or excluded is never learned, and
// of what is outside nobody is told whether it exists; canonical is the
// path without symlinks if there is something.
func (j *judge) verdict(p string) (v manifest.Verdict, canonical string, err error) {
	if !manifest.ValidPath(p) || isPseudo(p) || p == "/" {
		return manifest.VerdictAbsent, "", nil
	}
	info, canonical, links := j.find(p)
	if info == nil || info.Mode()&(fs.ModeSocket|fs.ModeNamedPipe) != 0 || isPseudo(canonical) {
		return manifest.VerdictAbsent, "", nil // the service makes its own
	}
	for _, name := range append(append([]string{p}, links...), canonical) {
		if matchAny(secret, name) || matchAny(key, name) || matchAny(j.exclude, name) || matchAny(logs, name) {
			return manifest.VerdictDenied, canonical, nil
		}
	}
	if j.Learn || j.whole(canonical) {
		return manifest.VerdictNoted, canonical, nil
	}
	if !j.opened {
		j.opened = true
		if j.db, err = pkgdb.Open(j.root, dpkg.Open, rpmdb.Open); err != nil && !errors.Is(err, pkgdb.ErrNone) {
			return 0, "", err
		}
	}
	if j.db == nil {
		return manifest.VerdictOutside, canonical, nil
	}
	for _, name := range []string{p, canonical} {
		owners, err := j.db.Owner(name)
		if err != nil {
			return 0, "", err
		}
		if slices.ContainsFunc(owners, func(id string) bool { return slices.Contains(j.Packages, id) }) {
			return manifest.VerdictNoted, canonical, nil
		}
	}
	return manifest.VerdictOutside, canonical, nil
}
