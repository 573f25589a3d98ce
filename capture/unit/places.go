package unit

import (
	"fmt"
	"hash/fnv"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"srvfs/manifest"
)

// The numbers that systemd gives to dynamic users.
const dynamicMin, dynamicMax = 61184, 65519

// dynamicUser stands in for a user that systemd would make up: the owner of its
// state, if that is there, else a number computed from the name.
func (t *translator) dynamicUser(name string) account {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	id := dynamicMin + h.Sum32()%(dynamicMax-dynamicMin+1)
	from := "a number made from its name"
	for key, base := range map[string]string{"StateDirectory": "/var/lib", "CacheDirectory": "/var/cache", "LogsDirectory": "/var/log"} {
		dirs, err := t.words(key)
		if err != nil {
			continue
		}
		for _, d := range dirs {
			info, err := t.root.Stat(path.Join(base, "private", d.value))
			if err != nil {
				continue
			}
			if st := info.Sys().(*syscall.Stat_t); st.Uid >= dynamicMin && st.Uid <= dynamicMax {
				id, from = st.Uid, "the owner of "+path.Join(base, "private", d.value)
			}
		}
	}
	t.ignore(assignment{key: "DynamicUser", value: "yes"}, fmt.Sprintf("runs as user %d, %s", id, from))
	return account{name: name, uid: id, gid: id, home: "/", shell: "/usr/sbin/nologin"}
}

// places are the folders that a unit can ask for.
var places = []struct {
	key, base, variable string
	data                bool // kept when the service stops
}{
	{"RuntimeDirectory", "/run", "RUNTIME_DIRECTORY", false},
	{"StateDirectory", "/var/lib", "STATE_DIRECTORY", true},
	{"CacheDirectory", "/var/cache", "CACHE_DIRECTORY", true},
	{"LogsDirectory", "/var/log", "LOGS_DIRECTORY", true},
	{"ConfigurationDirectory", "/etc", "CONFIGURATION_DIRECTORY", true},
}

// setFolders translates RuntimeDirectory= and its like: the folder belongs to
// the unit's user (configuration to root), its parents to root.
func (t *translator) setFolders(u *manifest.Unit) error {
	dynamic, err := t.flag("DynamicUser")
	if err != nil {
		return err
	}
	made := map[string]bool{}
	for _, p := range places {
		mode := uint32(0o755)
		if a, ok := t.value(p.key + "Mode"); ok {
			m, err := strconv.ParseUint(a.value, 8, 32)
			if err != nil || m > 0o7777 {
				return a.errorf("%.80q is not an octal mode", a.value)
			}
			mode = uint32(m)
		}
		words, err := t.words(p.key)
		if err != nil {
			return err
		}
		var all []string
		for _, a := range words {
			name, link, linked := strings.Cut(a.value, ":")
			if linked {
				t.ignore(assignment{key: p.key, value: a.value}, "the link "+link+" is not made")
			}
			name = path.Clean(name)
			if path.IsAbs(name) || name == "." || name == ".." || strings.HasPrefix(name, "../") {
				return a.errorf("%.200q is not a path below %s", a.value, p.base)
			}
			base := p.base
			if dynamic && p.data && p.key != "ConfigurationDirectory" && t.isPrivate(base, name) {
				base += "/private"
				if !made[base] {
					made[base] = true
					u.Folders = append(u.Folders, manifest.Folder{Path: base, Mode: 0o700})
				}
			}
			dir := base + "/" + name
			for i := len(base) + 1; i < len(dir); i++ {
				if dir[i] == '/' && !made[dir[:i]] {
					made[dir[:i]] = true
					u.Folders = append(u.Folders, manifest.Folder{Path: dir[:i], Mode: 0o755})
				}
			}
			f := manifest.Folder{Path: dir, Mode: mode, UID: u.User.UID, GID: u.User.GID}
			if p.key == "ConfigurationDirectory" {
				f.UID, f.GID = 0, 0
			}
			if i := slices.IndexFunc(u.Folders, func(o manifest.Folder) bool { return o.Path == dir }); i >= 0 {
				u.Folders[i] = f // asked for, after it was only a parent
			} else {
				u.Folders = append(u.Folders, f)
			}
			made[dir] = true
			all = append(all, p.base+"/"+name)
			if p.data {
				t.info.Folders = append(t.info.Folders, dir)
			}
		}
		if len(all) > 0 {
			t.env.set(p.variable, strings.Join(all, ":"))
		}
	}
	return nil
}

// isPrivate reports whether systemd has made base/name a link into
// base/private, as it does for dynamic users.
func (t *translator) isPrivate(base, name string) bool {
	info, err := t.root.Lstat(base + "/" + name)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

// setEnvironment puts the variables together in systemd's order: what follows
// replaces what went before.
func (t *translator) setEnvironment(*manifest.Unit) error {
	folders := t.env
	t.env = environment{}
	t.info.Files = append(t.info.Files, baseEnvironment(t.root, &t.env)...)
	if _, ok := t.last["User"]; ok || t.user.uid != 0 {
		for _, v := range [][2]string{{"HOME", t.user.home}, {"LOGNAME", t.user.name}, {"USER", t.user.name}, {"SHELL", t.user.shell}} {
			if v[1] != "" {
				t.env.set(v[0], v[1])
			}
		}
	}
	for _, n := range folders.names {
		t.env.set(n, folders.values[n])
	}
	words, err := t.words("Environment")
	if err != nil {
		return err
	}
	for _, a := range words {
		if k, v, ok := strings.Cut(a.value, "="); ok && isName(k) {
			t.env.set(k, v)
		} else {
			t.ignore(assignment{key: a.key, value: a.value}, "not an assignment")
		}
	}
	for _, a := range t.lists["EnvironmentFile"] {
		if err := t.environmentFile(a); err != nil {
			return err
		}
	}
	words, err = t.words("UnsetEnvironment")
	if err != nil {
		return err
	}
	for _, a := range words {
		k, v, exact := strings.Cut(a.value, "=")
		if !exact || t.env.values[k] == v {
			delete(t.env.values, k)
		}
	}
	return nil
}

// environmentFile reads the files that one EnvironmentFile= names; with "-" in
// front they may be missing.
func (t *translator) environmentFile(a assignment) error {
	pattern, optional := strings.CutPrefix(t.spec.expand(a.value), "-")
	if !path.IsAbs(pattern) {
		return a.errorf("%.200q is not absolute", pattern)
	}
	files := []string{path.Clean(pattern)}
	if dir, last := path.Split(pattern); strings.ContainsAny(last, "*?[") {
		files = nil
		entries, err := t.root.ReadDir(dir)
		if err != nil && !isAbsent(err) {
			return a.errorf("%v", err)
		}
		for _, e := range entries {
			if ok, _ := path.Match(last, e.Name()); ok {
				files = append(files, dir+e.Name())
			}
		}
		if len(files) == 0 && !optional {
			return a.errorf("no file matches %.200q", pattern)
		}
	}
	for _, f := range files {
		b, err := t.root.ReadFile(f, maxEnvFile)
		if err != nil && optional {
			continue
		}
		if err != nil {
			return a.errorf("%v", err)
		}
		for _, v := range parseEnvFile(string(b)) {
			t.env.set(v.name, v.value)
		}
		t.info.Files = append(t.info.Files, f)
	}
	return nil
}

func lookupFile(t *translator, name string) bool {
	return slices.ContainsFunc(searchPath, func(d string) bool {
		info, err := t.root.Stat(d + "/" + name)
		return err == nil && info.Mode().IsRegular()
	})
}

// findInstances looks for what a unit that does nothing stands for, as
// Debian's postgresql.service and postfix.service do: instances that it wants,
// else its template.
func (t *translator) findInstances(u *manifest.Unit) {
	for _, c := range u.Start {
		if path.Base(c.Argv[0]) != "true" {
			return
		}
	}
	prefix := strings.TrimSuffix(t.text.name, ".service")
	for _, d := range searchPath {
		entries, err := t.root.ReadDir(d + "/" + t.text.name + ".wants")
		if err != nil {
			continue
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), prefix+"@") && !slices.Contains(t.info.Instances, e.Name()) {
				t.info.Instances = append(t.info.Instances, e.Name())
			}
		}
	}
	if tmpl := prefix + "@.service"; len(t.info.Instances) == 0 && lookupFile(t, tmpl) {
		t.info.Instances = []string{tmpl}
	}
}
