package sandbox

import (
	"encoding/gob"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A launcher starts commands and stages, from a thread of its own whose working
// directory is a procfs of the sandbox that is mounted nowhere: there it finds
// the program.
//
// The stage is this very program, and if that is linked dynamically the kernel
// looks for its loader in the root of whoever executes it. The sandbox's root
// may have none, or a foreign one. So this thread keeps the caller's root, of
// which it sees the file system that "/" is on and none of the mounts below,
// and the stage enters the sandbox's root when it is running.
type launcher struct {
	root   int // the sandbox's root directory
	orders chan func()
}

func (l *launcher) work() {
	// A command has no signal blocked; what this thread has, it would inherit.
	var none unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil)
	for o := range l.orders {
		o()
	}
}

// fork starts a program from the launcher's thread.
func (l *launcher) fork(path string, argv []string, umask int, attr *syscall.ProcAttr) (pid int, err error) {
	done := make(chan struct{})
	l.orders <- func() {
		defer close(done)
		unix.Umask(umask)
		pid, err = syscall.ForkExec(path, argv, attr)
	}
	<-done
	return pid, err
}

// launch starts a stage. Fds are what the caller sent: standard input, output
// and error, channel, order, and the command's own files. The command's
// standard error takes over late: should the stage itself have something to
// complain of, then not there.
func (l *launcher) launch(fds []int) (pid int, err error) {
	files := []uintptr{uintptr(fds[0]), uintptr(fds[1]), 2, uintptr(fds[3]), uintptr(fds[4]), uintptr(l.root), uintptr(fds[2])}
	for _, fd := range fds[callerFiles:] {
		files = append(files, uintptr(fd))
	}
	return l.fork("self/exe", []string{stageName}, 0, &syscall.ProcAttr{
		Env: helperEnv(), Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
}

// execute starts a command without a stage, which costs more than many a command
// itself. It reports false where only a stage will do: for a tracer, for a
// filter, for sockets, to search PATH, and to say what it is that does not work.
func (l *launcher) execute(fds []int) (pid int, hello func() error, ok bool) {
	var c order
	// Pread, and a file that is never closed here: the stage reads it again.
	err := gob.NewDecoder(io.NewSectionReader(preader(fds[4]), 0, maxOrder)).Decode(&c)
	if err != nil || c.Traced || len(c.Seccomp) > 0 || len(c.Sockets) > 0 || len(c.Argv) == 0 || !strings.Contains(c.Argv[0], "/") || len(fds) != callerFiles+c.Extra {
		return 0, nil, false
	}
	attr := &syscall.ProcAttr{Dir: c.Dir, Env: c.Env, Sys: &syscall.SysProcAttr{
		Setsid:     true,
		Chroot:     fmt.Sprintf("self/fd/%d", l.root),
		Credential: &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups},
	}}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	for _, fd := range append(fds[:3:3], fds[callerFiles:]...) {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	if pid, err = l.fork(c.Argv[0], c.Argv, int(c.Umask), attr); err != nil {
		return 0, nil, false
	}
	return pid, func() error { return sayReady(fds[3], pid) }, true
}

// sayReady says in the name of a command what a stage says for itself. It need
// not have ended yet, but must not have been reaped.
func sayReady(channel, pid int) error {
	b, err := encode(report{Verb: verbReady, Pid: pid})
	if err != nil {
		return err
	}
	cred := unix.UnixCredentials(&unix.Ucred{Pid: int32(pid)})
	return os.NewSyscallError("sendmsg", unix.Sendmsg(channel, b, cred, nil, 0))
}

// A preader reads a descriptor that it does not own.
type preader int

func (fd preader) ReadAt(b []byte, off int64) (n int, err error) {
	n, err = unix.Pread(int(fd), b, off)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}
