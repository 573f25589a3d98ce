package unit

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// searchPath is where systemd looks for units of the system, best first
// (systemd.unit(5)).
var searchPath = []string{
	"/etc/systemd/system.control",
	"/run/systemd/system.control",
	"/run/systemd/transient",
	"/run/systemd/generator.early",
	"/etc/systemd/system",
	"/etc/systemd/system.attached",
	"/run/systemd/system",
	"/run/systemd/system.attached",
	"/run/systemd/generator",
	"/usr/local/lib/systemd/system",
	"/usr/lib/systemd/system",
	"/lib/systemd/system",
	"/run/systemd/generator.late",
}

var errNoUnit = errors.New("no such unit")

// A text is a unit file with its drop-ins.
type text struct {
	name    string   // aliases resolved: "postgresql@15-main.service"
	aliases []string // other names that led here
	path    string   // of the unit file
	files   []string
	all     []assignment
}

// The types of units that are read.
const (
	serviceSuffix = ".service"
	socketSuffix  = ".socket"
)

// cutSuffix separates a unit's full name from its type.
func cutSuffix(full string) (base, suffix string) {
	if base, ok := strings.CutSuffix(full, socketSuffix); ok {
		return base, socketSuffix
	}
	return strings.TrimSuffix(full, serviceSuffix), serviceSuffix
}

// fullName checks a unit's name and adds ".service".
func fullName(name string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("unit %.200q: %s: %w", name, why, manifest.ErrInvalid)
	}
	for _, s := range []string{".target", ".timer", ".path", ".mount", ".automount", ".swap", ".slice", ".scope", ".device"} {
		if strings.HasSuffix(name, s) {
			return bad("only a .service, or a .socket that starts one, can be captured")
		}
	}
	base, suffix := cutSuffix(name)
	full := base + suffix
	if base == "" || len(full) > 255 || base[0] == '.' || strings.ContainsFunc(full, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(`:-_.\@`, r)
	}) || base[0] == '@' {
		return bad("not a unit's name")
	}
	return full, nil
}

// splitName cuts "foo@bar.service" into prefix and instance.
func splitName(full string) (prefix, instance string, isInstance bool) {
	base, _ := cutSuffix(full)
	return strings.Cut(base, "@")
}

// template returns "foo@.service" for "foo@bar.service", else "".
func template(full string) string {
	if p, i, ok := splitName(full); ok && i != "" {
		_, suffix := cutSuffix(full)
		return p + "@" + suffix
	}
	return ""
}

// load finds the unit and its drop-ins and reads them.
func load(root *rootfs.Root, name string) (*text, error) {
	t := &text{name: name}
	var err error
	if err = t.find(root); err != nil {
		return nil, err
	}
	if p, i, ok := splitName(t.name); ok && i == "" {
		return nil, fmt.Errorf("unit %s (%s) is a template: name an instance of it, as %s@INSTANCE: %w", t.name, root.Host(t.path), p, manifest.ErrInvalid)
	}
	for _, p := range append([]string{t.path}, t.dropIns(root)...) {
		b, err := root.ReadFile(p, maxUnitFile)
		if err != nil {
			return nil, fmt.Errorf("unit %s: %w", t.name, err)
		}
		some, err := parseUnit(root.Host(p), string(b))
		if err != nil {
			return nil, err
		}
		t.all = append(t.all, some...)
		t.files = append(t.files, p)
	}
	return t, nil
}

// find sets path, and follows aliases: a link to a unit of another name.
func (t *text) find(root *rootfs.Root) error {
	for range 8 {
		p := lookup(root, t.name)
		if p == "" {
			return errNoUnit
		}
		next, err := t.follow(root, p)
		if err != nil {
			return err
		}
		if next == "" {
			return nil
		}
		t.aliases = append(t.aliases, t.name)
		t.name = next
	}
	return fmt.Errorf("unit %s: too many aliases: %w", t.aliases[0], manifest.ErrInvalid)
}

// lookup returns the file of a unit, or of its template, in the search path.
func lookup(root *rootfs.Root, name string) string {
	for _, n := range []string{name, template(name)} {
		if n == "" {
			continue
		}
		for _, d := range searchPath {
			if _, err := root.Lstat(d + "/" + n); err == nil {
				return d + "/" + n
			}
		}
	}
	return ""
}

// follow looks at the unit file p. If it is an alias the name that it leads to
// is returned; else path is set.
func (t *text) follow(root *rootfs.Root, p string) (string, error) {
	for range rootfs.MaxLinks {
		info, err := root.Lstat(p)
		if errors.Is(err, fs.ErrNotExist) {
			return "", errNoUnit // a link to a unit that was removed
		}
		if err != nil {
			return "", fmt.Errorf("unit %s: %w", t.name, err)
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			if info.Size() == 0 && info.Mode().IsRegular() {
				return "", t.masked(root, p)
			}
			t.path = p
			return "", nil
		}
		target, err := root.Readlink(p)
		if err != nil {
			return "", fmt.Errorf("unit %s: %w", t.name, err)
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(p), target)
		}
		if target = path.Clean(target); target == "/dev/null" {
			return "", t.masked(root, p)
		}
		base := path.Base(target)
		_, suffix := cutSuffix(t.name)
		if base != t.name && base != template(t.name) && slices.Contains(searchPath, path.Dir(target)) {
			if bp, bi, ok := splitName(base); ok && bi == "" { // an alias of a template
				if _, i, ok := splitName(t.name); ok {
					base = bp + "@" + i + suffix
				}
			}
			if full, err := fullName(base); err == nil && full == base && full != t.name && strings.HasSuffix(full, suffix) {
				return base, nil
			}
		}
		p = target
	}
	return "", fmt.Errorf("unit %s: too many links: %w", t.name, manifest.ErrInvalid)
}

func (t *text) masked(root *rootfs.Root, p string) error {
	return fmt.Errorf("unit %s is masked by %s: %w", t.name, root.Host(p), manifest.ErrInvalid)
}

// dropIns returns the paths of all NAME.d/*.conf that apply, in the order in
// which they are read: by file name, whatever their folder. Of two with one name
// the folder that comes first counts.
func (t *text) dropIns(root *rootfs.Root) []string {
	var dirs []string
	for _, n := range append([]string{t.name}, t.aliases...) {
		for _, d := range searchPath {
			for _, n := range dropInNames(n) {
				dirs = append(dirs, d+"/"+n+".d")
			}
		}
	}
	_, suffix := cutSuffix(t.name)
	for _, d := range searchPath {
		dirs = append(dirs, d+"/"+suffix[1:]+".d")
	}
	byName := map[string]string{}
	var names []string
	for _, d := range dirs {
		entries, err := root.ReadDir(d)
		if err != nil {
			continue
		}
		for _, e := range entries {
			n := e.Name()
			if strings.HasSuffix(n, ".conf") && n[0] != '.' && byName[n] == "" {
				byName[n] = d + "/" + n
				names = append(names, n)
			}
		}
	}
	slices.Sort(names)
	var paths []string
	for _, n := range names {
		// An empty file, or a link to /dev/null, only hides the others of its name.
		if info, err := root.Stat(byName[n]); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
			paths = append(paths, byName[n])
		}
	}
	return paths
}

// dropInNames returns the names whose ".d" folders apply: of "a-b@i.service"
// these are a-b@i.service, a-b@.service and a-.service.
func dropInNames(full string) []string {
	names := []string{full}
	if tmpl := template(full); tmpl != "" {
		names = append(names, tmpl)
	}
	prefix, _, _ := splitName(full)
	_, suffix := cutSuffix(full)
	for i := strings.LastIndexByte(prefix, '-'); i > 0; i = strings.LastIndexByte(prefix[:i], '-') {
		if n := prefix[:i+1] + suffix; n != full {
			names = append(names, n)
		}
	}
	return names
}
