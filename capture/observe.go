package capture

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"srvfs/capture/elf"
	"srvfs/capture/proc"
	"srvfs/capture/rootfs"
	"srvfs/capture/trace"
	"srvfs/manifest"
)

// observe adds what a trace saw. Which program a process ran is said in the
// reasons, as far as it is known.
func (c *closure) observe(accesses []trace.Access) {
	for _, a := range accesses {
		if a.Op == trace.Exec {
			c.programs[a.Pid] = a.Path
		}
		c.observeOne(a, c.programs[a.Pid])
	}
	c.answered = true
}

var opWords = map[trace.Op]string{
	trace.Exec: "executed", trace.Open: "opened", trace.Dir: "listed or entered", trace.Stat: "looked up", trace.Readlink: "read as a link", trace.Socket: "used as a socket", trace.Change: "changed", trace.Other: "used",
}

func (c *closure) observeOne(a trace.Access, program string) {
	word := opWords[a.Op]
	if a.Write && a.Op == trace.Open {
		word = "opened for writing"
	}
	text := word
	if program != "" && a.Op != trace.Exec {
		text += " by " + program
	}
	root, prefix, p := c.rootOf(a)
	reason := Reason{ClassTraced, text}
	canonical, info, ok := c.addIn(root, prefix, p, reason, !a.NoFollow)
	if !ok {
		if a.Op == trace.Open && a.Write {
			if canonical, ok := c.addLog(root, prefix, p, reason); ok {
				c.opened(canonical, a)
			}
		}
		return
	}
	if info.Mode().IsRegular() && (a.Op == trace.Open || a.Op == trace.Exec) {
		c.opened(canonical, a)
	}
	switch {
	case info.Mode().IsRegular(), info.IsDir() && a.Op == trace.Dir && c.deep(canonical):
		c.used[canonical] = true
	}
}

// deep reports whether a folder that was listed or entered can stand for a
// whole: not the first level, where everybody's files are.
func (c *closure) deep(p string) bool { return strings.Count(p, "/") > 1 }

// rootOf returns the tree in which the access is resolved: the source's root,
// or for a process that has called chroot the folder that it was in.
func (c *closure) rootOf(a trace.Access) (root *rootfs.Root, prefix, p string) {
	if a.Root == "/" || a.Root == "" || !inside(a.Path, a.Root) {
		return c.root, "", a.Path
	}
	canonical, _, err := c.root.Resolve(a.Root)
	if err != nil {
		return c.root, "", a.Path
	}
	r, ok := c.chroots[canonical]
	if !ok {
		if r, err = rootfs.New(c.root.Host(canonical)); err != nil {
			return c.root, "", a.Path
		}
		c.chroots[canonical] = r
	}
	return r, canonical, path.Join("/", strings.TrimPrefix(a.Path, a.Root))
}

// query describes the running instance of a unit.
func (s *service) query(i int) proc.Query {
	return proc.Query{PID: s.pid, Unit: s.infos[i].Name, PIDFile: s.units[i].PIDFile, Exe: s.units[i].Start[0].Argv[0]}
}

// running adds what the running instance of the service has mapped and open. It
// is looked at, and not touched.
func (c *closure) running(s *service) {
	seen := map[int]bool{}
	for i := range s.units {
		pids, err := proc.Running(c.root, s.query(i))
		if err != nil {
			continue
		}
		for _, pid := range pids {
			if !seen[pid] {
				seen[pid] = true
				c.runningProcess(pid)
			}
		}
	}
}

// watch adds what the running instance opens in the time for which it is watched.
func (c *capturing) watch(ctx context.Context) (string, error) {
	var folders []string
	for _, m := range c.realMounts() {
		folders = append(folders, m.host)
	}
	ctx, cancel := context.WithTimeout(ctx, c.Watch)
	defer cancel()
	var queries []proc.Query
	for i := range c.service.units {
		queries = append(queries, c.service.query(i))
	}
	seen := map[string]bool{}
	complete, err := proc.Opens(ctx, c.root, queries, folders, func(p string, pid int) {
		if !seen[p] {
			seen[p] = true
			r := Reason{ClassTraced, fmt.Sprintf("opened by the running instance (process %d) while it was watched", pid)}
			if canonical, info, ok := c.closure.add(p, r); ok && info.Mode().IsRegular() {
				c.closure.used[canonical] = true
			}
		}
	})
	if errors.Is(err, proc.ErrNotRunning) {
		return "", fmt.Errorf("--watch: %w in %s; start it first: %w", err, c.Root, manifest.ErrNotFound)
	}
	if err != nil {
		return "", err
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return "", err
	}
	if !complete {
		c.warn("while the running instance was watched more happened than the kernel can tell of: watch again at a quieter time")
	}
	return fmt.Sprintf("%d files in %v", len(seen), c.Watch), nil
}

const heldForWriting = "held open for writing"

func (c *closure) runningProcess(pid int) {
	f, err := proc.InspectIn(c.root, pid)
	if err != nil {
		return // it has ended meanwhile
	}
	add := func(p, what string, dir bool) (file string) {
		if p == "" {
			return ""
		}
		r := Reason{ClassTraced, fmt.Sprintf("%s by the running instance (process %d, %s)", what, pid, path.Base(f.Exe))}
		if canonical, info, ok := c.add(p, r); ok && (info.Mode().IsRegular() || dir && c.deep(canonical)) {
			c.used[canonical] = true
			return canonical
		}
		if what == heldForWriting {
			file, _ = c.addLog(c.root, "", p, r)
		}
		return file
	}
	add(f.Exe, "executed", false)
	for _, m := range f.Maps {
		add(m, "mapped", false)
	}
	for _, fd := range f.Fds {
		what := "held open"
		if fd.Write {
			what = heldForWriting
		}
		if p := add(fd.Path, what, fd.Dir); p != "" && !fd.Dir {
			c.held(p, fd.Read, fd.Write, fd.Append)
		}
	}
	add(f.Cwd, "used as working directory", true)
}

// profile returns the files that were touched, in the order of their first
// touch, each whole, with what the kernel opens by itself after a program, and at
// its end all others that the service writes to.
func profile(c *closure, t *tree, accesses []trace.Access) (out []manifest.Touch) {
	at := map[string]int{}
	touch := func(canonical string, write bool) {
		if i, ok := at[canonical]; ok {
			out[i].Write = out[i].Write || write
			return
		}
		n, ok := t.find(canonical)
		if !ok || n.entry.Type != manifest.File {
			return
		}
		at[canonical] = len(out)
		out = append(out, manifest.Touch{Path: canonical, Content: n.entry.Digest, Len: n.entry.Size, Write: write})
	}
	defer func() {
		touchWritten(c, t, touch)
		for i := range out {
			n, _ := t.find(out[i].Path)
			out[i].Fresh = out[i].Write && n.fresh()
		}
	}()
	follow := func(p string) {
		if canonical, _, err := c.root.Resolve(p); err == nil {
			touch(canonical, false)
		}
	}
	for _, a := range accesses {
		if a.Op != trace.Exec && a.Op != trace.Open {
			continue
		}
		root, prefix, p := c.rootOf(a)
		canonical, _, err := root.Resolve(p)
		if err != nil {
			continue
		}
		canonical = path.Join(prefix, canonical)
		_, known := at[canonical]
		touch(canonical, a.Write)
		if a.Op != trace.Exec || known {
			continue
		}
		for _, p := range c.kernelOpens(canonical) {
			follow(p)
		}
	}
	return out
}

// kernelOpens returns what the kernel opens by itself to execute the program,
// by the names that it uses: the interpreters of a script, and the ELF
// interpreter. No system call shows them.
func (c *closure) kernelOpens(program string) []string {
	names, err := elf.Interpreters(c.root, program)
	if err != nil {
		names = nil
	}
	last := program
	if len(names) > 0 {
		last = names[len(names)-1]
	}
	if libs, _, err := c.linker.Needed(last, c.env); err == nil && len(libs) > 0 && strings.HasPrefix(libs[0].Reason, elf.InterpreterOf) {
		names = append(names, libs[0].Path)
	}
	return names
}

// touchedFolders returns those of the folders that were used: a service finds
// them on the standby before it starts.
func touchedFolders(all []folder, accesses []trace.Access, root *rootfs.Root) []folder {
	used := map[string]bool{}
	for _, a := range accesses {
		p, _, _ := root.Resolve(a.Path)
		used[p] = true
		parents(p, func(dir string) bool { used[dir] = true; return true })
	}
	var out []folder
	for _, f := range all {
		if used[f.path] {
			out = append(out, f)
		}
	}
	return out
}
