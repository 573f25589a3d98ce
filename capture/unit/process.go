package unit

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// A Process is what can be seen of a running one, in the terms of its root.
type Process struct {
	PID      int
	Exe      string // the program's file; empty if it was deleted or replaced
	Argv     []string
	Env      []string // KEY=value, as it was started
	Dir      string   // working directory
	UID, GID uint32
	Groups   []uint32
	Umask    uint32
}

// sessionVariables belong to who started a process and not to the service.
var sessionVariables = []string{"_", "OLDPWD", "SHLVL", "TERM", "COLORTERM", "DISPLAY", "MAIL", "LS_COLORS", "PWD", "INVOCATION_ID", "JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "MAINPID", "MANAGERPID", "SYSTEMD_EXEC_PID"}

// sessionPrefixes begin the names of more of them.
var sessionPrefixes = []string{"SSH_", "SUDO_", "XDG_", "DBUS_", "LISTEN_", "TMUX", "LC_TERMINAL"}

// FromProcess makes a unit that starts again what runs: the same command line,
// environment, folder and user. It is of the kind Simple: that a process has put
// itself into the background does not show. A process whose program is gone, or that has written
// something else over its command line, gives manifest.ErrInvalid.
func FromProcess(root *rootfs.Root, p Process) (*manifest.Unit, Info, error) {
	fail := func(format string, args ...any) (*manifest.Unit, Info, error) {
		return nil, Info{}, fmt.Errorf("process %d: %s: %w", p.PID, fmt.Sprintf(format, args...), manifest.ErrInvalid)
	}
	switch {
	case len(p.Argv) == 0 || p.Argv[0] == "":
		return fail("it has no command line: a kernel thread, or one that is ending")
	case p.Exe == "":
		return fail("its program was deleted or replaced since it was started, or is not in %s: restart the service first", root)
	}
	search := defaultPath
	for _, e := range p.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = strings.Split(v, ":")
		}
	}
	// The name by which it was started, if it still leads to the program: busybox
	// and its like go by that.
	start := p.Exe
	if named, err := program(root, p.Argv[0], search); err == nil && leadsTo(root, named, p.Exe) {
		start = named
	} else if strings.ContainsAny(p.Argv[0], ": ") {
		return fail("it shows %.100q instead of its command line: name its unit, script or command instead", strings.Join(p.Argv, " "))
	}
	u := &manifest.Unit{
		Name: path.Base(start), Kind: manifest.Simple,
		Start: []manifest.Command{{Argv: append([]string{start}, p.Argv[1:]...)}},
		User:  manifest.User{UID: p.UID, GID: p.GID, Groups: slices.Clone(p.Groups)},
		Dir:   p.Dir, Umask: p.Umask,
		Signal: 15, StartMax: defaultTimeout, StopMax: defaultTimeout,
	}
	if u.Dir == "/" {
		u.Dir = ""
	}
	if a, err := readAccounts(root); err == nil {
		if of, err := a.user(fmt.Sprint(p.UID)); err == nil {
			u.User.Name = of.name
		}
	}
	var env environment
	info := Info{Name: u.Name, Description: strings.Join(p.Argv, " "), Files: baseEnvironment(root, &env)}
	for _, e := range p.Env {
		key, value, _ := strings.Cut(e, "=")
		if slices.Contains(sessionVariables, key) || slices.ContainsFunc(sessionPrefixes, func(s string) bool { return strings.HasPrefix(key, s) }) {
			continue
		}
		env.set(key, value)
	}
	u.Env = env.list()
	return u, info, nil
}

// leadsTo reports whether two paths are of one file.
func leadsTo(root *rootfs.Root, name, exe string) bool {
	canonical, _, err := root.Resolve(name)
	return err == nil && canonical == exe
}
