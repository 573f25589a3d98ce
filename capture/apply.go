package capture

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"srvfs/capture/rootfs"
)

// applyRules adds what the rules ask for. Rules about whole folders look at
// what was used; each folder is taken once, so a second call adds only what
// became due meanwhile.
func (c *closure) applyRules(ctx context.Context) error {
	if err := c.nameServiceModules(); err != nil {
		return err
	}
	for _, rule := range rules {
		if len(rule.when) > 0 && !c.any(rule.when) {
			continue
		}
		for _, take := range rule.take {
			for _, p := range c.glob(take.String()) {
				if c.rules[p] {
					continue
				}
				c.rules[p] = true
				if err := c.addTree(ctx, p, Reason{rule.kind(), rule.reason}); err != nil {
					return err
				}
			}
		}
	}
	used := slices.Sorted(maps.Keys(c.used))
	for _, rule := range rules {
		for _, p := range used {
			dir, ok := firstMatch(rule.whole, p)
			if !ok || c.rules[dir] || matchAny(shared, p) || matchAny(unwanted, p) {
				continue
			}
			info, err := c.root.Lstat(dir)
			if err != nil || !info.IsDir() {
				continue
			}
			c.rules[dir] = true
			if err := c.addTree(ctx, dir, Reason{rule.kind(), fmt.Sprintf("%s: it used %s", rule.reason, p)}); err != nil {
				return err
			}
		}
	}
	return c.interpret(ctx)
}

// any reports whether a path that is in matches one of ps.
func (c *closure) any(ps []Pattern) bool {
	for p := range c.items {
		if matchAny(ps, p) {
			return true
		}
	}
	return false
}

// glob returns the paths of the source that the pattern names, each name of
// which may have one or more "*".
func (c *closure) glob(pattern string) []string {
	dirs := []string{"/"}
	for _, name := range strings.Split(strings.Trim(pattern, "/"), "/") {
		var next []string
		for _, dir := range dirs {
			if !strings.ContainsAny(name, "*?") {
				next = append(next, path.Join(dir, name))
				continue
			}
			entries, err := c.root.ReadDir(dir)
			if err != nil {
				continue
			}
			for _, e := range entries {
				if ok, _ := path.Match(name, e.Name()); ok {
					next = append(next, path.Join(dir, e.Name()))
				}
			}
		}
		dirs = next
	}
	return slices.DeleteFunc(dirs, func(p string) bool {
		_, err := c.root.Lstat(p)
		return err != nil
	})
}

// libraryFolders are where the modules of the name service are looked for.
var libraryFolders = []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/lib/*-linux-*", "/usr/lib/*-linux-*"}

// nameServiceModules adds the modules of the C library's name service that
// nsswitch.conf names. They are loaded when a name is first looked up, which
// need not have happened under trace.
func (c *closure) nameServiceModules() error {
	names := map[string]bool{"files": true, "dns": true} // without a configuration
	if b, err := c.root.ReadFile("/etc/nsswitch.conf", 1<<20); err == nil {
		for name := range nssModules(b) {
			names[name] = true
		}
	}
	for _, dir := range libraryFolders {
		for _, name := range slices.Sorted(maps.Keys(names)) {
			for _, p := range c.glob(dir + "/libnss_" + name + ".so*") {
				c.add(p, Reason{ClassRule, "module of the name service that /etc/nsswitch.conf names: " + name})
			}
		}
	}
	return nil
}

// nssModules returns the modules that a nsswitch.conf(5) names.
func nssModules(b []byte) map[string]bool {
	names := map[string]bool{}
	scan := bufio.NewScanner(bytes.NewReader(b))
	for scan.Scan() {
		line, _, _ := strings.Cut(scan.Text(), "#")
		_, sources, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		action := false // "[NOTFOUND=return]" may hold spaces
		for _, f := range strings.Fields(sources) {
			if strings.HasPrefix(f, "[") {
				action = true
			}
			if !action && !strings.ContainsAny(f, "/*?[]") {
				names[f] = true
			}
			if strings.HasSuffix(f, "]") {
				action = false
			}
		}
	}
	return names
}

// skeleton returns the folders that exist below /run, /tmp and /var/tmp when
// the source is up: those of /run as it is, and those that tmpfiles.d(5) makes
// at boot, which count where both are. They are owned as the source's own
// numbers say.
func skeleton(root *rootfs.Root) []folder {
	folders := map[string]folder{}
	addFolders(root, "/run", folders)
	maps.Copy(folders, tmpfilesFolders(root))
	out := slices.Collect(maps.Values(folders))
	slices.SortFunc(out, func(a, b folder) int { return strings.Compare(a.path, b.path) })
	return out
}

// maxSkeleton bounds the folders of /run that are looked at: a host with
// thousands of sessions or containers has many.
const maxSkeleton = 4096

// notOurs are folders of /run that belong to the host's own managers.
var notOurs = []string{"/run/user", "/run/systemd", "/run/udev", "/run/credentials", "/run/containerd", "/run/docker", "/run/log", "/run/netns"}

// addFolders adds the folders below top. What can't be read is left out: it is
// not for the service either.
func addFolders(root *rootfs.Root, top string, into map[string]folder) {
	entries, err := root.ReadDir(top)
	if err != nil {
		return
	}
	for _, e := range entries {
		p := path.Join(top, e.Name())
		if !e.IsDir() || slices.Contains(notOurs, p) || len(into) >= maxSkeleton || strings.Count(p, "/") > 5 {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // it vanished meanwhile
		}
		if f, ok := folderOf(p, info); ok {
			into[p] = f
			addFolders(root, p, into)
		}
	}
}
