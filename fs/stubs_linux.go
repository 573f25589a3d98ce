package fs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

const (
	maxStubs    = 256
	maxSymlinks = 40 // as in path_resolution(7)
)

// Stubs writes a layer of a root that stands above the tree into dir, an empty
// folder of a plain disk, and returns how many files are in it: those of the
// paths that are programs, without their content. The tree is not needed for
// them any more, nor asked for their extended attributes, which the kernel
// keeps of no FUSE file: each exec looks for security.capability, and waits for
// this process if the tree has to answer.
//
// A stub has the owner, mode, times, size and attributes that the tree has, and
// leads to the same content at the gate; on the disk it takes an inode and at most
// one block. So do the directories above it, as overlayfs shows those of the upper
// of two layers. A file with several names has no stub: its number of links
// would be wrong. Symlinks in paths are followed; a path that leads to no file
// is passed over, and so is one of which the directories can't be had.
//
// ctx bounds the loading of directories. After an error the folder must not be
// used.
func (v *View) Stubs(ctx context.Context, dir string, paths []string) (int, error) {
	var files []slot
	seen := map[slot]bool{}
	for _, p := range paths {
		s, found := v.walkTo(ctx, p)
		if !found || seen[s] || !v.isProgram(s) {
			continue
		}
		seen[s] = true
		if files = append(files, s); len(files) == maxStubs {
			break
		}
	}
	var dirs []slot // parents before children
	for _, s := range files {
		if err := v.stubParents(dir, v.table.at(s).parent, seen, &dirs); err != nil {
			return 0, err
		}
		if err := v.stubFile(dir+v.path(s), s); err != nil {
			return 0, err
		}
	}
	// Last, as each new name changes its directory's times.
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := v.dress(dir+v.path(dirs[i]), dirs[i]); err != nil {
			return 0, err
		}
	}
	return len(files), nil
}

// isProgram reports whether the file in s is likely to be executed. Libraries
// have the mode of programs on some systems, and are mapped only.
func (v *View) isProgram(s slot) bool {
	n := v.table.at(s)
	c := v.table.class(n)
	return c.is(manifest.File) && c.mode&0o111 != 0 && c.parts&(partAlias|partLinks) == 0 && n.value > 0 &&
		!strings.Contains(string(v.table.name(s)), ".so")
}

// walkTo returns what a path leads to, with the tree's root as the root.
func (v *View) walkTo(ctx context.Context, path string) (slot, bool) {
	at, links := v.root, 0
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(strings.TrimLeft(rest, "/"), "/")
		switch name {
		case "", ".":
			continue
		case "..":
			if at != v.root {
				at = v.table.at(at).parent
			}
			continue
		}
		n := v.table.at(at)
		if !v.table.class(n).is(manifest.Dir) || v.loadIn(ctx, v.table.refTo(at)) != nil {
			return 0, false
		}
		s, found := v.table.find(n, name)
		if !found {
			return 0, false
		}
		s = v.table.resolve(s)
		if n := v.table.at(s); v.table.class(n).is(manifest.Symlink) {
			if links++; links > maxSymlinks {
				return 0, false
			}
			r := v.table.record(n)
			r.name()
			r.links()
			target := string(r.target())
			if strings.HasPrefix(target, "/") {
				at = v.root
			}
			rest = target + "/" + rest
			continue
		}
		at = s
	}
	return at, true
}

// stubParents makes the directories down to the one in s.
func (v *View) stubParents(top string, s slot, seen map[slot]bool, dirs *[]slot) error {
	if s == v.root || seen[s] {
		return nil
	}
	seen[s] = true
	if err := v.stubParents(top, v.table.at(s).parent, seen, dirs); err != nil {
		return err
	}
	*dirs = append(*dirs, s)
	return os.Mkdir(top+v.path(s), 0o700)
}

// stubFile makes the file in s, without its content.
func (v *View) stubFile(path string, s slot) error {
	n := v.table.at(s)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(int64(n.value))
	if e := f.Close(); err == nil {
		err = e
	}
	for _, x := range []struct{ name, value string }{{overlayMetacopy, ""}, {overlayRedirect, "/" + n.digest.Hex()}} {
		if err == nil {
			err = os.NewSyscallError("setxattr "+x.name, unix.Lsetxattr(path, x.name, []byte(x.value), 0))
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return v.dress(path, s)
}

// dress gives a stub the attributes of the node in s, and sees that they are
// kept.
func (v *View) dress(path string, s slot) error {
	n := v.table.at(s)
	c := v.table.class(n)
	// A change of owner takes setuid bits and capabilities away: it comes first.
	err := os.Lchown(path, int(c.uid), int(c.gid))
	v.eachXattr(n, func(name, value []byte) bool {
		if err == nil {
			err = os.NewSyscallError("setxattr "+string(name), unix.Lsetxattr(path, string(name), value, 0))
		}
		return err == nil
	})
	if err == nil {
		err = os.NewSyscallError("chmod", unix.Chmod(path, c.mode&^typeMask))
	}
	if err == nil {
		t := unix.Timespec{Sec: n.sec, Nsec: int64(n.nsec)}
		err = os.NewSyscallError("utimensat", unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW))
	}
	var st unix.Stat_t
	if err == nil {
		err = os.NewSyscallError("lstat", unix.Lstat(path, &st))
	}
	if err == nil && (st.Mode != c.mode || st.Uid != c.uid || st.Gid != c.gid || st.Mtim.Sec != n.sec || uint32(st.Mtim.Nsec) != n.nsec) {
		err = fmt.Errorf("the disk under %s keeps other attributes than it is given", filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("stub of %s: %w", v.path(s), err)
	}
	return nil
}
