package world

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/sandbox"
)

// A World is a few hosts on one bridge.
type World struct {
	dir    string
	bridge *Host
	hosts  []*Host
}

// A Host is a machine of a world: a root folder, namespaces, an address.
type Host struct {
	Name string
	Root string   // its root folder, as the test sees it
	Addr string   // its IPv4 address; empty for the bridge
	Env  []string // what its programs' environment holds besides the usual

	dir    string // of the world
	number int    // in it
	bridge *Host
	link   *link // to the bridge, if it is no plain pair of cards
	sb     *sandbox.Sandbox
	anchor *sandbox.Process // keeps a pid by which tools find the namespaces
	mu     sync.Mutex
	logs   int
}

// environment is what programs on the host see. SRVFS_WORLD tells whose they are,
// should any be left.
func (h *Host) environment() []string {
	env := h.Env
	if v, ok := os.LookupEnv("GOMAXPROCS"); ok {
		env = append([]string{"GOMAXPROCS=" + v}, env...)
	}
	return append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "SRVFS_WORLD=" + h.dir}, env...)
}

// New makes a world without hosts, on a disk of its own below dir.
func New(ctx context.Context, dir string) (_ *World, err error) {
	dir = filepath.Join(dir, "disk")
	if err := disk(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeDisk(dir))
		}
	}()
	w := &World{dir: dir}
	b := &Host{Name: "bridge", dir: dir, Root: "/"}
	if err := b.start(ctx, nil); err != nil {
		return nil, err
	}
	w.bridge = b
	err = b.ip(ctx, "link add br0 type bridge")
	if err == nil {
		err = b.ip(ctx, "link set br0 up")
	}
	if err != nil {
		return nil, errors.Join(err, b.sb.Stop(ctx))
	}
	return w, nil
}

// Host adds a host made from a root archive. Its address is 10.77.0.N/24.
func (w *World) Host(ctx context.Context, name string, kind RootKind) (*Host, error) {
	root := filepath.Join(w.dir, name)
	if err := kind.Extract(ctx, root); err != nil {
		return nil, err
	}
	return w.boot(ctx, &Host{Name: name, Root: root})
}

// Client adds a host that shares this machine's root folder: for talking to the
// others only.
func (w *World) Client(ctx context.Context) (*Host, error) {
	return w.boot(ctx, &Host{Name: "client", Root: "/"})
}

// Reboot starts a host again after Crash, with nothing but its disk.
func (w *World) Reboot(ctx context.Context, old *Host) (*Host, error) {
	return w.boot(ctx, &Host{Name: old.Name, Root: old.Root})
}

func (w *World) boot(ctx context.Context, h *Host) (*Host, error) {
	h.dir, h.bridge, h.number = w.dir, w.bridge, len(w.hosts)+1
	h.Addr = "10.77.0." + strconv.Itoa(h.number)
	mounts := []sandbox.Mount{sandbox.ProcMount()}
	mounts = append(mounts, sandbox.DevMounts()...)
	mounts = append(mounts,
		sandbox.Mount{Source: "sysfs", Target: "/sys", Type: "sysfs"},
		sandbox.TmpfsMount("/run", 0o755), sandbox.TmpfsMount("/tmp", 0o1777))
	if err := h.start(ctx, mounts); err != nil {
		return nil, err
	}
	w.hosts = append(w.hosts, h)
	if _, err := h.Run(ctx, "mknod", "/dev/fuse", "c", "10", "229"); err != nil {
		return nil, err
	}
	if err := errors.Join(h.tune(), h.plug(ctx, Wire{})); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *Host) start(ctx context.Context, mounts []sandbox.Mount) error {
	root := h.Root
	if root == "/" { // this machine's own, seen from an empty folder
		root = filepath.Join(h.dir, h.Name)
		if err := os.Mkdir(root, 0o755); err != nil {
			return err
		}
		mounts = append([]sandbox.Mount{{Source: "/", Target: "/", Flags: unix.MS_BIND | unix.MS_REC}}, mounts...)
	}
	log, err := os.OpenFile(filepath.Join(h.dir, h.Name+"-sandbox.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	sb, err := sandbox.Start(ctx, sandbox.Config{Root: root, Mounts: mounts, Hostname: h.Name, NewNet: true, Log: log})
	if err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	h.sb = sb
	h.anchor, err = sb.Run(ctx, sandbox.Command{Argv: []string{"sleep", "infinity"}, Env: h.environment()})
	if err != nil {
		return errors.Join(fmt.Errorf("host %s: %w", h.Name, err), sb.Stop(context.WithoutCancel(ctx)))
	}
	return nil
}

// Install copies a file of this machine onto the host, executable.
func (h *Host) Install(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(filepath.Join(h.Root, to), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// An ExitError is a command on a host that did not exit with 0.
type ExitError struct {
	Host   string
	Argv   []string
	Code   int
	Output string
}

// Error implements error: the command, its exit code and what it wrote.
func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: %s: exit status %d\n%s", e.Host, strings.Join(e.Argv, " "), e.Code, e.Output)
}

// Run runs a command on the host and returns its standard output. If it does
// not exit with 0 the error is an *ExitError with both outputs.
func (h *Host) Run(ctx context.Context, argv ...string) (string, error) {
	stderr, err := os.CreateTemp("", "world-")
	if err != nil {
		return "", err
	}
	defer func() { _ = stderr.Close(); _ = os.Remove(stderr.Name()) }()
	out, code, err := h.sb.Output(ctx, sandbox.Command{Argv: argv, Env: h.environment(), Umask: 0o022, Stderr: stderr})
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w\n%s%s", h.Name, strings.Join(argv, " "), err, out, tail(stderr.Name()))
	}
	if code != 0 {
		return string(out), &ExitError{h.Name, argv, code, tail(stderr.Name()) + string(out)}
	}
	return string(out), nil
}

// Shell runs a line of sh on the host.
func (h *Host) Shell(ctx context.Context, line string) (string, error) {
	return h.Run(ctx, "/bin/sh", "-ec", line)
}

// Start starts a program on the host that goes on running. What it writes goes
// to a file of which the path is returned.
func (h *Host) Start(ctx context.Context, argv ...string) (*sandbox.Process, string, error) {
	h.mu.Lock()
	h.logs++
	name := filepath.Join(h.dir, fmt.Sprintf("%s-%d.log", h.Name, h.logs))
	h.mu.Unlock()
	log, err := os.Create(name)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = log.Close() }()
	p, err := h.sb.Run(ctx, sandbox.Command{Argv: argv, Env: h.environment(), Umask: 0o022, Stdout: log, Stderr: log})
	return p, name, err
}

func tail(name string) string {
	b, _ := os.ReadFile(name)
	if len(b) > 8<<10 {
		b = b[len(b)-8<<10:]
	}
	return string(b)
}

// Get fetches a URL as a client on this host does.
func (h *Host) Get(ctx context.Context, url string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: h.sb.Dial}, Timeout: 20 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return string(body), err
}

// Dial opens a connection as a program on this host does.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return h.sb.Dial(ctx, network, addr)
}

// Await waits until something on the host accepts connections at addr.
func (h *Host) Await(ctx context.Context, addr string) error {
	for {
		c, err := h.sb.Dial(ctx, "tcp", addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: nothing answers at %s: %w", h.Name, addr, err)
		case <-time.After(5 * time.Millisecond): // a listener announces itself in no other way
		}
	}
}

// Received returns the bytes that the host's network card has received.
func (h *Host) Received() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", h.anchor.Pid()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "eth0:"); ok {
			return strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no eth0", h.Name)
}

// Path returns where this machine's processes find a path of the host, mounts
// made there included. Looking there can wait for a view: use a deadline.
func (h *Host) Path(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", h.anchor.Pid(), path)
}

// Mounts returns the lines of the host's mount table that hold the text.
func (h *Host) Mounts(text string) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", h.anchor.Pid()))
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, text) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found, nil
}

// Processes returns the command names of the processes on the host, by pid, the
// world's own left out.
func (h *Host) Processes() (map[int]string, error) {
	pids, err := h.sb.Pids()
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && pid != h.anchor.Pid() {
			names[pid] = strings.TrimSpace(string(b))
		}
	}
	return names, nil
}

// Crash ends the host as a power cut does: every process dies at once, and with
// them all mounts; its disk stays.
func (h *Host) Crash(ctx context.Context) error {
	err := h.sb.Stop(ctx)
	if h.link != nil {
		err = errors.Join(err, h.link.close())
		h.link = nil
	}
	return err
}

// Close ends all hosts and removes their disk.
func (w *World) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var errs []error
	for _, h := range w.hosts {
		errs = append(errs, h.Crash(ctx))
	}
	if w.bridge != nil {
		errs = append(errs, w.bridge.sb.Stop(ctx))
	}
	if mounts := mountsBelow(w.dir); len(mounts) > 0 {
		return errors.Join(append(errs, fmt.Errorf("mounts are left: %v", mounts))...)
	}
	return errors.Join(append(errs, removeDisk(w.dir))...)
}

func mountsBelow(dir string) []string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var found []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			found = append(found, f[4])
		}
	}
	return found
}
