package proc

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"srvfs/capture/rootfs"
)

// Files is what one process is made of and holds open. All paths are absolute.
type Files struct {
	Pid      int
	Exe      string // empty if it was deleted
	Root     string // its root folder: "/" unless it is in a chroot
	Cwd      string
	Maps     []string // files mapped into its memory, sorted, each once
	Fds      []Fd     // its open regular files and directories, by number
	Env      []string // KEY=value, as it was started
	Argv     []string
	UID, GID uint32   // effective
	Groups   []uint32 // supplementary
	Umask    uint32
}

// An Fd is one open file.
type Fd struct {
	Number int
	Path   string
	Dir    bool // a directory; else a regular file
	Write  bool // opened for writing
	Read   bool // opened for reading
	Append bool // every write goes to its end
}

// InspectIn reads what /proc tells of the process pid. All paths, Root too, are
// those of the captured root, whatever root the process has; see the package
// comment. What was deleted since it was opened, or lies outside root, is left
// out. If the process has ended the error wraps fs.ErrNotExist; if we may not
// look at it, fs.ErrPermission.
func InspectIn(root *rootfs.Root, pid int) (*Files, error) {
	in, err := newPlace(root)
	if err != nil {
		return nil, err
	}
	folder, ok := in.rootOf(pid)
	if !ok {
		if _, err := os.Stat(file(pid, "stat")); err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, gone(err))
		}
	}
	// In a mount namespace of its own a process has a tree of its own, and the
	// kernel names files by their path in that; else by their path in ours.
	in.live = in.live || !sameNamespace(pid, "mnt")
	return inspect(in, pid, folder)
}

// Inspect is InspectIn with paths as the process itself sees them, from its own
// root; Root is the path of that from ours. What it has from outside its root
// (a daemon opens files before it enters a chroot) is left out.
func Inspect(pid int) (*Files, error) {
	link, err := os.Readlink(file(pid, "root"))
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, gone(err))
	}
	return inspect(&place{path: link}, pid, link)
}

func inspect(in *place, pid int, folder string) (*Files, error) {
	f := &Files{Pid: pid, Root: folder}
	if err := f.read(in); err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return f, nil
}

func (f *Files) read(in *place) error {
	pid := f.Pid
	for _, x := range []struct {
		name string
		to   *string
	}{{"exe", &f.Exe}, {"cwd", &f.Cwd}} {
		link, err := os.Readlink(file(pid, x.name))
		if err != nil {
			return gone(err)
		}
		if info, err := os.Stat(file(pid, x.name)); err == nil && links(info) > 0 {
			*x.to, _ = in.strip(link)
		}
	}
	if err := f.readStatus(); err != nil {
		return err
	}
	for _, x := range []struct {
		name string
		to   *[]string
	}{{"environ", &f.Env}, {"cmdline", &f.Argv}} {
		b, err := readFile(pid, x.name)
		if err != nil {
			return err
		}
		if len(b) > 0 {
			*x.to = strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
		}
	}
	f.Env = slices.DeleteFunc(f.Env, func(e string) bool { return strings.IndexByte(e, '=') <= 0 })
	seen := map[string]bool{}
	err := lines(pid, "maps", func(l string) {
		if p, ok := parseMap(l); ok && !seen[p] {
			seen[p] = true
			if p, ok = in.strip(p); ok {
				f.Maps = append(f.Maps, p)
			}
		}
	})
	if err != nil {
		return err
	}
	slices.Sort(f.Maps)
	return f.readFds(in)
}

func (f *Files) readStatus() error {
	s, err := readStatus(f.Pid)
	if err != nil {
		return err
	}
	for _, x := range []struct {
		name string
		to   *uint32
	}{{"Uid", &f.UID}, {"Gid", &f.GID}} {
		if v := strings.Fields(s[x.name]); len(v) == 4 { // real, effective, saved, file system
			n, err := strconv.ParseUint(v[1], 10, 32)
			if err != nil {
				return err
			}
			*x.to = uint32(n)
		}
	}
	if n, err := strconv.ParseUint(s["Umask"], 8, 32); err == nil { // since Linux 4.7
		f.Umask = uint32(n)
	}
	for g := range strings.FieldsSeq(s["Groups"]) {
		n, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return err
		}
		f.Groups = append(f.Groups, uint32(n))
	}
	return nil
}

// parseMap returns the file of a line of /proc/PID/maps:
// "start-end perms offset dev inode path". Memory that is not of a file has no
// device; what was deleted says so.
func parseMap(l string) (string, bool) {
	for i := range 5 {
		field, rest, ok := strings.Cut(strings.TrimLeft(l, " "), " ")
		if !ok || i == 4 && field == "0" {
			return "", false
		}
		l = rest
	}
	p := strings.ReplaceAll(strings.TrimLeft(l, " "), `\012`, "\n")
	if !path.IsAbs(p) || strings.HasSuffix(p, " (deleted)") || strings.HasPrefix(p, "/memfd:") || strings.HasPrefix(p, "/SYSV") {
		return "", false
	}
	return p, true
}

func (f *Files) readFds(in *place) error {
	entries, err := os.ReadDir(file(f.Pid, "fd"))
	if err != nil {
		return gone(err)
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		name := file(f.Pid, "fd/"+e.Name())
		info, err := os.Stat(name)
		if err != nil || !info.Mode().IsRegular() && !info.IsDir() || links(info) == 0 {
			continue // closed meanwhile, or no file that could be captured
		}
		link, err := os.Readlink(name)
		if err != nil {
			continue
		}
		if p, ok := in.strip(link); ok && !strings.HasPrefix(p, "/proc/") {
			fd := Fd{Number: n, Path: p, Dir: info.IsDir()}
			f.readFlags(&fd)
			f.Fds = append(f.Fds, fd)
		}
	}
	slices.SortFunc(f.Fds, func(a, b Fd) int { return a.Number - b.Number })
	return nil
}

// readFlags reads the flags with which a descriptor was opened. What can't be
// read any more counts as opened for reading.
func (f *Files) readFlags(fd *Fd) {
	fd.Read = true
	b, err := readFile(f.Pid, "fdinfo/"+strconv.Itoa(fd.Number))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		v, ok := strings.CutPrefix(line, "flags:")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 64); err == nil {
			fd.Write = n&syscall.O_ACCMODE != syscall.O_RDONLY
			fd.Read = n&syscall.O_ACCMODE != syscall.O_WRONLY
			fd.Append = n&syscall.O_APPEND != 0
		}
		return
	}
}

func links(info fs.FileInfo) uint64 {
	return uint64(info.Sys().(*syscall.Stat_t).Nlink) //nolint:unconvert // its type differs between architectures
}
