package capture

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"srvfs/capture/dpkg"
	"srvfs/capture/pkgdb"
	"srvfs/capture/proc"
	"srvfs/capture/rootfs"
	"srvfs/capture/rpmdb"
	"srvfs/capture/rpmfile"
	"srvfs/capture/unit"
	"srvfs/manifest"
)

// A service is what the first step learns.
type service struct {
	units []*manifest.Unit
	infos []unit.Info
	pid   int      // of the running instance, if the administrator named it
	db    pkgdb.DB // nil if the root has none
	// own are the packages that the service is installed from, and needed those
	// with all that they depend on, by ID.
	own    map[string]string // ID -> why
	needed map[string]string
	// names are the packages that the administrator named, and files the package
	// files.
	names []string
	files []*rpmfile.Package
}

// find reads the units and the package files that the administrator named.
func find(o *Options, root *rootfs.Root) (*service, []string, error) {
	s := &service{pid: o.PID, own: map[string]string{}, needed: map[string]string{}}
	var warnings []string
	add := func(u *manifest.Unit, info unit.Info, err error) error {
		if err != nil {
			return err
		}
		s.units, s.infos = append(s.units, u), append(s.infos, info)
		for _, what := range info.Ignored {
			o.Log.Info("capture: not carried over", "unit", info.Name, "setting", what)
		}
		if len(info.Ignored) > 0 {
			warnings = append(warnings, fmt.Sprintf("%s: not carried over: %s", info.Name, few(info.Ignored)))
		}
		return nil
	}
	var err error
	switch {
	case len(o.Exec) > 0:
		err = add(unit.FromExec(root, o.Exec))
	case o.Init != "":
		err = add(unit.FromInit(root, o.Init))
	case o.PID != 0:
		err = addProcess(root, o.PID, add)
	}
	for _, name := range o.Units {
		if err == nil {
			err = addUnit(root, name, add)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	for _, p := range o.Packages {
		if !strings.HasSuffix(p, ".rpm") {
			s.names = append(s.names, p)
			continue
		}
		f, err := rpmfile.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", err, manifest.ErrNotFound)
		}
		if err != nil {
			return nil, nil, err
		}
		s.files = append(s.files, f)
	}
	return s, warnings, nil
}

// socketHint says, of a service that did not work, what else its units may count on.
func (s *service) socketHint() string {
	for _, info := range s.infos {
		if len(info.Sockets) > 0 {
			return fmt.Sprintf("; systemd can pass %s the sockets of %s, which is not enabled on the source: --unit %s does", info.Name, strings.Join(info.Sockets, ", "), info.Sockets[0])
		}
	}
	return ""
}

// packages reads the package database: which packages own the service, and what
// those need.
func (s *service) packages(root *rootfs.Root) (warnings []string, err error) {
	s.db, err = pkgdb.Open(root, dpkg.Open, rpmdb.Open)
	if errors.Is(err, pkgdb.ErrNone) {
		if len(s.names) > 0 {
			return nil, fmt.Errorf("package %s: %w: %w", s.names[0], err, manifest.ErrNotFound)
		}
		return []string{"no package database: only what the service used, and what it needs, is captured; see --include"}, nil
	}
	if errors.Is(err, pkgdb.ErrCorrupt) {
		err = fmt.Errorf("%w: let its own tools repair it (dpkg --audit, rpm --rebuilddb): %w", err, manifest.ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	for i, u := range s.units {
		// Programs of the other commands are tools: their packages go in, since
		// they are used, but not all that those depend on.
		for _, c := range u.Start {
			err = errors.Join(err, s.owner(root, c.Argv[0]))
		}
		for _, f := range s.infos[i].Files {
			err = errors.Join(err, s.owner(root, f))
		}
	}
	if err != nil {
		return nil, err
	}
	for _, name := range s.names {
		p, ok := s.db.Package(name)
		if !ok {
			return nil, fmt.Errorf("package %s: not installed in %s: %w%s", name, root, manifest.ErrNotFound, similar(name, s.db.Packages()))
		}
		s.own[p.ID] = "named by the administrator"
	}
	members, missing := pkgdb.Closure(s.db, slices.Sorted(maps.Keys(s.own)))
	for _, m := range members {
		if m.By == "" {
			s.needed[m.ID] = s.own[m.ID]
		} else {
			s.needed[m.ID] = "needed by " + m.By
		}
	}
	for _, m := range missing {
		warnings = append(warnings, "not installed: "+m.String())
	}
	return warnings, nil
}

// addUnit adds the systemd unit called name, or in its place the instances that
// it stands for.
func addUnit(root *rootfs.Root, name string, add func(*manifest.Unit, unit.Info, error) error) error {
	u, info, err := unit.FromUnit(root, name)
	if err != nil || len(info.Instances) == 0 {
		return add(u, info, err)
	}
	for _, instance := range info.Instances {
		if strings.Contains(instance, "@.") {
			// Which instances there are is decided by a generator when the host
			// starts. An init script, if there is one, decides it for itself.
			if u, info, err := unit.FromInit(root, strings.TrimSuffix(info.Name, ".service")); err == nil {
				return add(u, info, nil)
			}
			return fmt.Errorf("unit %s does nothing itself and stands for instances of %s: name the instance, as in --unit %s: %w",
				info.Name, instance, strings.Replace(instance, "@.", "@NAME.", 1), manifest.ErrInvalid)
		}
		if err := add(unit.FromUnit(root, instance)); err != nil {
			return fmt.Errorf("instance %s of unit %s: %w", instance, info.Name, err)
		}
	}
	return nil
}

// addProcess adds the unit that a running process belongs to, or else what starts
// such a process again.
func addProcess(root *rootfs.Root, pid int, add func(*manifest.Unit, unit.Info, error) error) error {
	f, err := proc.InspectIn(root, pid)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("process %d: there is none with a program (a kernel thread has none): %w", pid, manifest.ErrNotFound)
	case err != nil:
		return err
	case f.Root == "":
		return fmt.Errorf("process %d is not in %s: give its root with --root /proc/%d/root: %w", pid, root, pid, manifest.ErrInvalid)
	case f.Root != "/":
		return fmt.Errorf("process %d has the root %s: give it with --root %s: %w", pid, f.Root, root.Host(f.Root), manifest.ErrInvalid)
	}
	if name := proc.UnitOf(pid); name != "" {
		if u, info, err := unit.FromUnit(root, name); err == nil && len(info.Instances) == 0 {
			return add(u, info, nil)
		}
	}
	return add(unit.FromProcess(root, unit.Process{
		PID: pid, Exe: f.Exe, Argv: f.Argv, Env: f.Env, Dir: f.Cwd, UID: f.UID, GID: f.GID, Groups: f.Groups, Umask: f.Umask,
	}))
}

// goesIntoBackground makes a unit that was seen as a running process only, and did
// not start as one that stays in the foreground, into a daemon. Nothing in /proc tells
// the two apart. It reports whether that is worth another try.
func (s *service) goesIntoBackground() bool {
	if len(s.units) != 1 || s.units[0].Kind != manifest.Simple {
		return false
	}
	s.units[0].Kind = manifest.Forking
	return true
}

// owner notes the packages that own the path, by any of its names.
func (s *service) owner(root *rootfs.Root, p string) error {
	canonical, links, err := root.Resolve(p)
	if err != nil {
		canonical = ""
	}
	for _, name := range append(append([]string{p}, links...), canonical) {
		if name == "" || name != p && path.Base(name) != path.Base(p) && name != canonical {
			continue // a link on the way, such as /bin, belongs to others
		}
		ids, err := s.db.Owner(name)
		if err != nil {
			return fmt.Errorf("owner of %s: %w", name, err)
		}
		for _, id := range ids {
			if _, ok := s.own[id]; !ok {
				s.own[id] = "owns " + name
			}
		}
	}
	return nil
}

// similar returns names like the one that was not found, for people.
func similar(name string, all []string) string {
	var near []string
	for _, n := range all {
		if len(name) > 2 && (strings.Contains(n, name) || strings.Contains(name, n) && len(n) > 2) && len(near) < 5 {
			near = append(near, n)
		}
	}
	if len(near) == 0 {
		return ""
	}
	return "; there are " + strings.Join(near, ", ")
}

// packages adds the files of the needed packages, and the configuration folders
// of those that the service is installed from.
func (c *closure) packages(s *service) error {
	for _, f := range s.files {
		c.addPackageFiles(f.Files, Reason{ClassPackage, "package file " + f.Name + ", named by the administrator"})
	}
	if s.db == nil {
		return nil
	}
	for id, why := range s.needed {
		if err := c.addPackage(s.db, id, why); err != nil {
			return err
		}
	}
	for id := range s.own {
		files, err := s.db.Files(id)
		if err != nil {
			return err
		}
		for _, f := range files {
			if dir, ok := firstMatch(configFolders, f); ok && dir != f {
				c.used[f] = true // its folder is the service's own
			}
		}
	}
	return nil
}

var configFolders = mustPatterns("/etc/*")

// addPackage adds the files of one package. Those that do not exist any more
// were removed by the administrator or never unpacked.
func (c *closure) addPackage(db pkgdb.DB, id, why string) error {
	files, err := db.Files(id)
	if err != nil {
		return fmt.Errorf("package %s: %w", id, err)
	}
	version := ""
	if p, ok := db.Package(id); ok {
		version = " " + p.Version
	}
	c.addPackageFiles(files, Reason{ClassPackage, "package " + id + version + ", " + why})
	return nil
}

// addPackageFiles adds those of a package's files that are in the root.
func (c *closure) addPackageFiles(files []string, r Reason) {
	for _, f := range files {
		if matchAny(unwanted, f) {
			continue
		}
		if _, info, ok := c.addIn(c.root, "", f, r, false); ok && info.Mode()&fs.ModeSymlink != 0 {
			c.add(f, r) // and what it leads to
		}
	}
}

// usedPackages adds the whole of every package of which the service used a
// file: a run-time of which only the touched part came along breaks as soon as
// another part is asked for.
func (c *closure) usedPackages(s *service) error {
	if s.db == nil {
		return nil
	}
	for p := range c.used {
		if c.asked[p] {
			continue
		}
		c.asked[p] = true
		info, err := c.root.Lstat(p)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		ids, err := s.db.Owner(p)
		if err != nil {
			return fmt.Errorf("owner of %s: %w", p, err)
		}
		for _, id := range ids {
			if _, ok := s.needed[id]; ok || c.whole[id] {
				continue
			}
			c.whole[id] = true
			if err := c.addPackage(s.db, id, "of which it used "+p); err != nil {
				return err
			}
		}
	}
	return nil
}

// includePath checks what the administrator named.
func includePath(p string) (string, error) {
	if !filepath.IsAbs(p) {
		return "", fmt.Errorf("--include %q: not an absolute path in the service's root: %w", p, manifest.ErrInvalid)
	}
	return filepath.Clean(p), nil
}
