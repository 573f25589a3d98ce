package capture

import (
	"path"

	"srvfs/capture/rootfs"
	"srvfs/capture/trace"
	"srvfs/manifest"
)

// A use is how the service used the content of a file, over all that was seen:
// traces, and the descriptors of the running instance.
type use struct {
	read    bool // it was read, or could have been
	write   bool // it was opened for writing
	within  bool // and not only to be written at its end
	empties bool // the first thing that the service does with it, as it starts, is to empty it
}

// useOf returns the use of a canonical path, and whether it was seen before.
func (c *closure) useOf(canonical string) (*use, bool) {
	u, ok := c.uses[canonical]
	if !ok {
		u = &use{}
		c.uses[canonical] = u
	}
	return u, ok
}

// opened notes an access to a file's content.
func (c *closure) opened(canonical string, a trace.Access) {
	u, known := c.useOf(canonical)
	empties := a.Op == trace.Open && a.Mode&trace.Truncates != 0
	if !known {
		u.empties = empties && !c.answered
	}
	u.read = u.read || a.Op == trace.Exec || a.Mode&trace.Reads != 0 && !empties
	if a.Write {
		u.write = true
		u.within = u.within || a.Mode&trace.Appends == 0
	}
}

// held notes a descriptor of the running instance. That it was emptied when it was
// opened does not show, so one that can be read from counts as read.
func (c *closure) held(canonical string, read, write, atEnd bool) {
	u, _ := c.useOf(canonical)
	u.empties = u.empties && !read
	u.read = u.read || read
	u.write = u.write || write
	u.within = u.within || write && !atEnd
}

// addLog adds a file below a folder of logs that the service writes to: it starts
// empty, and a service that may not make files there needs it to be there.
func (c *closure) addLog(root *rootfs.Root, prefix, p string, r Reason) (canonical string, ok bool) {
	canonical, _, err := root.Resolve(p)
	if err != nil {
		return "", false
	}
	info, err := root.Lstat(canonical)
	canonical = path.Join(prefix, canonical)
	if err != nil || !info.Mode().IsRegular() || !matchAny(logs, canonical) {
		return "", false
	}
	return canonical, c.put(canonical, r)
}

// chooseFresh decides which files start empty on the standby. When it is called
// again, since more has been seen, it returns those that keep their content after all.
func (c *closure) chooseFresh() (kept []string) {
	for p, u := range c.uses {
		if it := c.items[p]; it != nil {
			why := startsEmpty(p, u, it)
			if it.fresh != "" && why == "" {
				kept = append(kept, p)
			}
			it.fresh = why
		}
	}
	return kept
}

// touchWritten adds to a profile what the service writes to: what was written as it
// started is there already, what only the running instance has open, or what is
// written later, comes last.
func touchWritten(c *closure, t *tree, touch func(canonical string, write bool)) {
	for _, n := range t.nodes {
		if u := c.uses[n.path]; u != nil && u.write && n.entry.Type == manifest.File {
			touch(n.path, true)
		}
	}
}
