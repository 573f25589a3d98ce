package proc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"srvfs/capture/rootfs"
)

// A Query says which processes are looked for. Empty fields don't count.
type Query struct {
	PID     int    // its main process, in our namespace
	Unit    string // systemd's name: "nginx.service"
	PIDFile string // absolute, in the root
	Exe     string // absolute path of the program, in the root
}

// Running returns the process numbers (in our namespace) of the service that q
// describes, with all their descendants, sorted. It takes the first of q that
// gives any: the main process, the unit's control group, the PID file, the
// processes that execute Exe. Only processes whose root is the captured one, or lies in it, are
// considered; by PID file and by Exe, when that root is ours, only those of our
// own process and network namespaces: others are a container's, or a sandbox's.
// None is not an error.
func Running(root *rootfs.Root, q Query) ([]int, error) {
	all, err := processes(root)
	if err != nil {
		return nil, err
	}
	var found []int
	for _, match := range []func(*process) bool{byPID(q.PID), byUnit(q.Unit), byPIDFile(root, q.PIDFile), byExe(root, q.Exe)} {
		if match == nil {
			continue
		}
		for _, p := range all {
			if p.inRoot && match(p) {
				found = append(found, p.pid)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	return withDescendants(all, found), nil
}

// process is what is known of every process.
type process struct {
	pid, parent int
	nsPid       int  // its number in its own namespace
	inRoot      bool // its root is the captured one, or below it
	near        bool // of our pid and net namespaces, or the captured root is not ours
}

func processes(root *rootfs.Root) ([]*process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("running processes: %w", err)
	}
	in, err := newPlace(root)
	if err != nil {
		return nil, err
	}
	var all []*process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p := &process{pid: pid}
		if p.readStatus() != nil {
			continue // it has ended
		}
		_, p.inRoot = in.rootOf(pid)
		p.near = !in.live || sameNamespace(pid, "pid") && sameNamespace(pid, "net")
		all = append(all, p)
	}
	return all, nil
}

// readStatus sets the parent and the number in the process's own namespace.
func (p *process) readStatus() error {
	s, err := readStatus(p.pid)
	if err != nil {
		return err
	}
	p.nsPid = p.pid
	if f := strings.Fields(s["NSpid"]); len(f) > 0 {
		if n, err := strconv.Atoi(f[len(f)-1]); err == nil {
			p.nsPid = n
		}
	}
	p.parent, err = strconv.Atoi(s["PPid"])
	return err
}

// readStatus reads /proc/PID/status.
func readStatus(pid int) (map[string]string, error) {
	b, err := readFile(pid, "status")
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			m[k] = strings.TrimSpace(v)
		}
	}
	return m, nil
}

func file(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

// maxFile bounds what is read of one file: an environment may be as long as
// the arguments of a command.
const maxFile = 16 << 20

func readFile(pid int, name string) ([]byte, error) {
	f, err := os.Open(file(pid, name))
	if err != nil {
		return nil, gone(err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return b, gone(err)
}

// gone gives the errors of a process that ends while it is read one form.
func gone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return err
}

func sameNamespace(pid int, kind string) bool {
	theirs, err := os.Readlink(file(pid, "ns/"+kind))
	if err != nil {
		return false
	}
	ours, err := os.Readlink("/proc/self/ns/" + kind)
	return err == nil && ours == theirs
}

// place is the captured root, as processes are compared with it.
type place struct {
	live bool   // it is our own root
	path string // "/", or the absolute path of the folder
	info fs.FileInfo
}

func newPlace(root *rootfs.Root) (*place, error) {
	info, err := os.Stat(root.Path())
	if err != nil {
		return nil, err
	}
	own, err := os.Stat("/")
	if err != nil {
		return nil, err
	}
	return &place{live: os.SameFile(info, own), path: root.Path(), info: info}, nil
}

// rootOf returns the root of a process as a path in the captured root.
func (in *place) rootOf(pid int) (string, bool) {
	if info, err := os.Stat(file(pid, "root")); err == nil && os.SameFile(info, in.info) {
		return "/", true
	}
	if !sameNamespace(pid, "mnt") {
		return "", false
	}
	link, err := os.Readlink(file(pid, "root"))
	if err != nil {
		return "", false
	}
	return in.strip(link)
}

// strip turns a path of ours into one of the captured root.
func (in *place) strip(p string) (string, bool) {
	if in.live || in.path == "/" {
		return path.Clean(p), path.IsAbs(p)
	}
	rest, ok := strings.CutPrefix(p, in.path)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return path.Clean("/" + rest), true
}

func byPID(pid int) func(*process) bool {
	if pid == 0 {
		return nil
	}
	return func(p *process) bool { return p.pid == pid }
}

// byUnit matches the processes in a unit's control group, or one below it.
func byUnit(unit string) func(*process) bool {
	if unit == "" {
		return nil
	}
	return func(p *process) bool {
		b, err := readFile(p.pid, "cgroup")
		return err == nil && inUnit(string(b), unit)
	}
}

// inUnit reads /proc/PID/cgroup. Only systemd's own hierarchy says which unit a
// process belongs to: number 0 (version 2), or the one called systemd.
func inUnit(text, unit string) bool {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3)
		if len(f) == 3 && (f[0] == "0" || f[1] == "name=systemd") && slices.Contains(strings.Split(f[2], "/"), unit) {
			return true
		}
	}
	return false
}

// UnitOf returns the name of the systemd unit that a process belongs to, such as
// "nginx.service"; empty if it belongs to none, or to a user's session.
func UnitOf(pid int) string {
	b, err := readFile(pid, "cgroup")
	if err != nil {
		return ""
	}
	return unitIn(string(b))
}

// unitIn reads /proc/PID/cgroup; see inUnit.
func unitIn(text string) string {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3)
		if len(f) != 3 || f[0] != "0" && f[1] != "name=systemd" {
			continue
		}
		parts := strings.Split(f[2], "/")
		for _, p := range slices.Backward(parts) {
			if strings.HasSuffix(p, ".service") && !slices.Contains(parts, "user.slice") {
				return p
			}
		}
	}
	return ""
}

func byPIDFile(root *rootfs.Root, name string) func(*process) bool {
	if name == "" {
		return nil
	}
	b, err := root.ReadFile(name, 4096)
	if err != nil {
		return nil
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n") // PostgreSQL has more in it
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 1 {
		return nil
	}
	return func(p *process) bool { return p.near && p.nsPid == pid }
}

func byExe(root *rootfs.Root, name string) func(*process) bool {
	if name == "" {
		return nil
	}
	canonical, _, err := root.Resolve(name)
	if err != nil {
		return nil
	}
	want, err := os.Stat(root.Host(canonical))
	if err != nil {
		return nil
	}
	in, err := newPlace(root)
	if err != nil {
		return nil
	}
	return func(p *process) bool {
		if !p.near {
			return false
		}
		if info, err := os.Stat(file(p.pid, "exe")); err == nil && os.SameFile(info, want) {
			return true
		}
		// The program was replaced by an upgrade since it was started.
		link, err := os.Readlink(file(p.pid, "exe"))
		old, deleted := strings.CutSuffix(link, " (deleted)")
		if err != nil || !deleted {
			return false
		}
		if sameNamespace(p.pid, "mnt") {
			old, _ = in.strip(old)
		}
		return old == canonical
	}
}

func withDescendants(all []*process, found []int) []int {
	children := map[int][]int{}
	for _, p := range all {
		children[p.parent] = append(children[p.parent], p.pid)
	}
	seen := map[int]bool{}
	for len(found) > 0 {
		pid := found[len(found)-1]
		found = found[:len(found)-1]
		if !seen[pid] {
			seen[pid] = true
			found = append(found, children[pid]...)
		}
	}
	pids := make([]int, 0, len(seen))
	for pid := range seen {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// lines calls yield with each line of a file of /proc that may be long.
func lines(pid int, name string, yield func(string)) error {
	f, err := os.Open(file(pid, name))
	if err != nil {
		return gone(err)
	}
	defer func() { _ = f.Close() }()
	s := bufio.NewScanner(io.LimitReader(f, maxFile))
	s.Buffer(nil, 64<<10)
	for s.Scan() {
		yield(s.Text())
	}
	return gone(s.Err())
}
