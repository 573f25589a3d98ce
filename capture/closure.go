package capture

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"srvfs/capture/elf"
	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// A closure is the set of paths that a snapshot will hold. It grows: each step
// adds paths with their reasons, and with each path what it can't be without.
type closure struct {
	root    *rootfs.Root
	mounts  []sourceMount
	linker  *elf.Linker
	exclude []Pattern
	env     []string // of the service: LD_LIBRARY_PATH counts

	items   map[string]*item
	used    map[string]bool         // files that the service used, and folders that it listed or worked in
	trees   map[string]bool         // folders that are in with all that was below them
	data    map[string]bool         // those of them that are data folders
	inspect []string                // files that may need an interpreter or libraries, not looked into yet
	looked  map[string]bool         // those that were
	chroots map[string]*rootfs.Root // of processes that called chroot, by folder
	rules   map[string]bool         // folders that a rule has taken
	missing map[string]bool         // libraries that are missing on the source too, for people
	uses    map[string]*use         // how the service used files' content
	// answered: all that is observed from now on came after the probes were answered.
	answered bool

	programs  map[int]string    // what traced processes execute, by number
	asked     map[string]bool   // used files of which the package is known
	whole     map[string]bool   // packages that are in because a file of theirs was used
	libraries map[string]string // canonical paths by the names that ELF files have for them; "" is not in
}

func newClosure(root *rootfs.Root, mounts []sourceMount, exclude []Pattern) *closure {
	c := &closure{
		root: root, mounts: mounts, linker: elf.New(root), exclude: exclude,
		items: map[string]*item{}, used: map[string]bool{}, trees: map[string]bool{}, data: map[string]bool{}, looked: map[string]bool{}, rules: map[string]bool{}, missing: map[string]bool{}, uses: map[string]*use{}, chroots: map[string]*rootfs.Root{}, programs: map[int]string{}, asked: map[string]bool{}, whole: map[string]bool{}, libraries: map[string]string{},
	}
	c.items["/"] = &item{reasons: []Reason{{ClassRule, "the root"}}}
	for _, p := range pseudo {
		if info, err := root.Lstat(p); err == nil && info.IsDir() {
			c.put(p, Reason{ClassRule, "empty folder: a file system of its own is mounted there"})
		}
	}
	return c
}

// put adds the canonical path p and the folders above it. It reports whether p
// is in: what is excluded, lies in an empty folder or on a file system without
// files is not, and neither is what nobody asked for by name if it is unwanted.
func (c *closure) put(p string, r Reason) bool {
	it, ok := c.items[p]
	if !ok {
		if !c.allowed(p, r.Class) {
			return false
		}
		it = &item{secret: matchAny(secret, p) || matchAny(key, p)}
		c.items[p] = it
	}
	// The folders above have a reason of this class, or a better one, if p has.
	explained := ok && it.reasons[0].Class <= r.Class
	it.reasons = addReason(it.reasons, r)
	if explained {
		return true
	}
	var way Reason
	parents(p, func(dir string) bool {
		it, ok := c.items[dir]
		switch {
		case !ok:
			it = &item{}
			c.items[dir] = it
		case it.reasons[0].Class <= r.Class:
			return false
		}
		if way.Text == "" {
			way = Reason{r.Class, "folder on the way to " + p}
		}
		it.reasons = addReason(it.reasons, way)
		return true
	})
	return true
}

func (c *closure) allowed(p string, class Class) bool {
	if !manifest.ValidPath(p) || matchAny(c.exclude, p) || isPseudo(p) && !slices.Contains(pseudo, p) || !mountOf(c.mounts, p).real {
		return false
	}
	switch class {
	case ClassTraced, ClassUser:
		return true
	case ClassLibrary:
		return !matchAny(secret, p)
	}
	return !matchAny(secret, p) && !matchAny(unwanted, p)
}

// add adds the path p, as a program names it, with every symlink on the way
// and what it leads to. It returns the canonical path and the file's info; ok is
// false if there is nothing, or it is not allowed in. What can't be looked at
// (a permission, a loop) counts as not there: the service could not use it
// either.
func (c *closure) add(p string, r Reason) (canonical string, info fs.FileInfo, ok bool) {
	return c.addIn(c.root, "", p, r, true)
}

// addIn is add for a process whose root is the folder prefix of the source. If
// follow is false the last component is taken as it is.
func (c *closure) addIn(root *rootfs.Root, prefix, p string, r Reason, follow bool) (string, fs.FileInfo, bool) {
	resolve := root.Resolve
	if !follow {
		resolve = root.ResolveParent
	}
	canonical, links, err := resolve(p)
	for _, l := range links {
		if l = path.Join(prefix, l); l == path.Join(prefix, p) {
			c.put(l, r)
			continue
		}
		c.put(l, Reason{r.Class, "symlink on the way to " + path.Join(prefix, p) + "; " + r.Text})
	}
	if err != nil {
		c.addPlace(root, prefix, canonical, r)
		return "", nil, false
	}
	info, err := root.Lstat(canonical)
	if err != nil {
		c.addPlace(root, prefix, canonical, r)
		return "", nil, false
	}
	canonical = path.Join(prefix, canonical)
	switch mode := info.Mode(); {
	case mode&fs.ModeSocket != 0:
		return "", nil, false // the service makes it anew
	case !mode.IsDir() && r.Class != ClassUser && matchAny(logs, canonical):
		c.put(path.Dir(canonical), Reason{r.Class, "folder of logs, which stay out; " + r.Text})
		return "", nil, false
	}
	if !c.put(canonical, r) {
		return "", nil, false
	}
	if info.Mode().IsRegular() && runnable(canonical, info) {
		c.inspect = append(c.inspect, canonical)
	}
	return canonical, info, true
}

// addPlace adds the nearest folder above a path that does not exist: the service
// may want to make it there.
func (c *closure) addPlace(root *rootfs.Root, prefix, p string, r Reason) {
	if p = path.Clean(p); r.Class != ClassTraced || !strings.HasPrefix(p, "/") || isPseudo(path.Join(prefix, p)) {
		return
	}
	parents(p, func(dir string) bool {
		info, err := root.Lstat(dir)
		if err != nil {
			return true
		}
		if info.IsDir() {
			c.put(path.Join(prefix, dir), Reason{r.Class, "folder of " + path.Join(prefix, p) + ", which does not exist; " + r.Text})
		}
		return false
	})
}

// addLibrary is add for a library, which many need: the way to it is walked once.
func (c *closure) addLibrary(p string, r Reason) {
	canonical, ok := c.libraries[p]
	if !ok {
		canonical, _, _ = c.add(p, r)
		c.libraries[p] = canonical
	} else if canonical != "" {
		c.put(canonical, r)
	}
}

// runnable reports whether the file may be a program or a library.
func runnable(p string, info fs.FileInfo) bool {
	return info.Mode()&0o111 != 0 || strings.Contains(path.Base(p), ".so")
}

// maxTree bounds what one folder can bring, as a guard against a folder that
// somebody named by mistake.
const maxTree = 20_000_000

// addTree adds the folder p, or file, and all that is below it on file systems
// with files. Symlinks in it are followed once: a file that one leads to goes
// in, and of a folder all of it if it is nobody else's.
func (c *closure) addTree(ctx context.Context, p string, r Reason) error {
	canonical, info, ok := c.add(p, r)
	if !ok || !info.IsDir() || c.trees[canonical] && r.Class != ClassUser {
		return nil
	}
	c.trees[canonical] = true
	if r.Class == ClassData {
		c.data[canonical] = true
	}
	queue := []string{canonical}
	for n := 0; len(queue) > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		names, err := c.root.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue // it vanished meanwhile
		}
		if err != nil {
			return fmt.Errorf("folder %s: %w", dir, err)
		}
		if n += len(names); n > maxTree {
			return fmt.Errorf("folder %s has more than %d names: name a smaller one, or leave parts out with --exclude: %w", canonical, maxTree, manifest.ErrInvalid)
		}
		for _, e := range names {
			child := path.Join(dir, e.Name())
			switch t := e.Type(); {
			case t&fs.ModeSocket != 0 || !t.IsDir() && r.Class != ClassUser && matchAny(logs, child):
			case !c.put(child, r):
			case t.IsDir():
				queue = append(queue, child)
			case t&fs.ModeSymlink != 0:
				if err := c.leadsTo(ctx, child, canonical, r); err != nil {
					return err
				}
			case t.IsRegular() && strings.Contains(e.Name(), ".so"):
				c.inspect = append(c.inspect, child)
			case t.IsRegular():
				if info, err := e.Info(); err == nil && runnable(child, info) {
					c.inspect = append(c.inspect, child)
				}
			}
		}
	}
	return nil
}

// leadsTo adds what the symlink at p, in the tree at top, leads to.
func (c *closure) leadsTo(ctx context.Context, p, top string, r Reason) error {
	canonical, info, ok := c.add(p, Reason{r.Class, "symlink " + p + " leads to it; " + r.Text})
	if !ok || !info.IsDir() || inside(canonical, top) || inside(top, canonical) {
		return nil
	}
	for _, rule := range rules {
		if dir, ok := firstMatch(rule.whole, canonical); ok && dir != canonical && !matchAny(shared, canonical) {
			return c.addTree(ctx, canonical, Reason{r.Class, "symlink " + p + " leads to it"})
		}
	}
	return nil
}

// interpret adds, for every file added since it was last called, the programs
// and libraries that it needs to run, and what those need.
func (c *closure) interpret(ctx context.Context) error {
	for len(c.inspect) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := c.inspect[0]
		c.inspect = c.inspect[1:]
		if c.looked[p] {
			continue
		}
		c.looked[p] = true
		chain, err := elf.Interpreters(c.root, p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue // not readable as a script; then the service can't run it either
		}
		for _, i := range chain {
			c.add(i, Reason{ClassLibrary, "interpreter of " + p})
		}
		if len(chain) > 0 {
			continue
		}
		libs, missing, err := c.linker.Needed(p, c.env)
		if err != nil {
			continue // not ELF, or one for another machine
		}
		for _, l := range libs {
			c.addLibrary(l.Path, Reason{ClassLibrary, l.Reason})
		}
		for _, m := range missing {
			c.missing[fmt.Sprintf("%s, needed by %s", m.Name, m.By)] = true
		}
	}
	return nil
}
