package sandbox

import (
	"encoding/gob"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Descriptors of the stage, after standard input and output, and process 1's
// own standard error. The command's own extra files follow them.
const (
	stageChannel = 3 // to the caller, past process 1
	stageOrder   = 4 // the command
	stageRoot    = 5 // the root to enter
	stageStderr  = 6 // the command's standard error
	stageFiles   = 7
)

// callerFiles is how many descriptors the caller sends besides the command's
// extra files: three standard ones, channel and order.
const callerFiles = 5

// maxOrder bounds an encoded command, in bytes: the kernel accepts 6 MiB of
// arguments and environment at most.
const maxOrder = 16 << 20

// runStage becomes the command. It returns only when it can't.
func runStage() int {
	f := becomeCommand()
	b, err := encode(report{Verb: verbFailed, Fault: f})
	if err == nil {
		_, _ = unix.Write(stageSaid, b)
	}
	return 127
}

// stageSaid is the channel's descriptor, which moves out of the way of the
// command's own files.
var stageSaid = stageChannel

func becomeCommand() *fault {
	var c order
	file := os.NewFile(stageOrder, "order")
	err := gob.NewDecoder(io.NewSectionReader(file, 0, maxOrder)).Decode(&c)
	if err != nil {
		return failure("read the command", "", err, "")
	}
	hello, err := encode(report{Verb: verbReady, Pid: os.Getpid()})
	if err != nil {
		return failure("report", "", err, "")
	}
	if _, err := unix.Write(stageSaid, hello); err != nil {
		return failure("report", "", err, "")
	}
	if c.Traced {
		if f := awaitRelease(); f != nil {
			return f
		}
	}
	if err := unix.Fchdir(stageRoot); err != nil {
		return failure("enter", "the root", err, "")
	}
	if err := unix.Chroot("."); err != nil {
		return failure("enter", "the root", err, "")
	}
	if f := arrangeFiles(c.Extra, len(c.Sockets)); f != nil {
		return f
	}
	if f := passSockets(&c); f != nil {
		return f
	}
	runtime.KeepAlive(file) // its number is used anew; a finalizer must not close that
	resetSignals()
	unix.Umask(int(c.Umask))
	if f := installFilter(c.Seccomp, c.Listen); f != nil {
		return f
	}
	if f := becomeUser(&c); f != nil {
		return f
	}
	dir := c.Dir
	if dir == "" {
		dir = "/"
	}
	if err := unix.Chdir(dir); err != nil {
		return failure("enter folder", dir, err, "")
	}
	return execute(&c)
}

// awaitRelease blocks the main thread, where the tracer attaches.
func awaitRelease() *fault {
	b := make([]byte, 4096)
	for {
		n, err := unix.Read(stageSaid, b)
		if errors.Is(err, unix.EINTR) {
			continue // the tracer's attaching shows as a signal
		}
		var r request
		if err == nil && n > 0 {
			err = decode(b[:n], &r)
		}
		if err != nil || r.Verb != verbRelease {
			return failure("wait for the tracer", "", err, "the caller is gone")
		}
		return nil
	}
}

// arrangeFiles moves the command's extra files down to 3, 4, ..., and lets
// everything else end with this program. Sockets will take the place of such files.
func arrangeFiles(extra, sockets int) *fault {
	moved, err := unix.FcntlInt(uintptr(stageSaid), unix.F_DUPFD_CLOEXEC, stageFiles+extra+sockets)
	if err != nil {
		return failure("arrange descriptors", "", err, "")
	}
	stageSaid = moved
	if err := unix.Dup3(stageStderr, 2, 0); err != nil {
		return failure("arrange descriptors", "", err, "")
	}
	for i := range extra {
		if err := unix.Dup3(stageFiles+i, 3+i, 0); err != nil {
			return failure("arrange descriptors", "", err, "")
		}
	}
	if err := unix.CloseRange(uint(3+extra), ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return failure("arrange descriptors", "", err, "")
	}
	return nil
}

// sigaction is the kernel's struct, of which only the handler matters here.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// resetSignals gives every signal its default action: a caller that was started
// by nohup ignores SIGHUP, and what is ignored stays so in a new program. The
// main thread's mask is emptied for the same reason.
func resetSignals() {
	var def sigaction
	for sig := uintptr(1); sig <= 64; sig++ {
		if sig == uintptr(unix.SIGURG) {
			continue // ignored by default; the Go runtime sends it to itself
		}
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&def)), 0, 8, 0, 0)
	}
	var none unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil)
}

// heedSignals gives those signals their default action that the caller ignores:
// commands that process 1 executes itself would ignore them too.
func heedSignals() {
	const ignored = 1 // SIG_IGN
	for sig := uintptr(1); sig <= 64; sig++ {
		var now, def sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), 8, 0, 0)
		if errno == 0 && now.handler == ignored {
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&def)), 0, 8, 0, 0)
		}
	}
}

// installFilter tells the caller the number of the filter's listener, if it is to
// have one. It is closed when the command is executed.
func installFilter(filter []unix.SockFilter, listen bool) *fault {
	if len(filter) == 0 {
		return nil
	}
	flags := uintptr(0)
	if listen {
		flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return failure("install seccomp filter", "", errno, "")
	}
	if !listen {
		return nil
	}
	b, err := encode(report{Verb: verbListening, Pid: int(fd)})
	if err == nil {
		_, err = unix.Write(stageSaid, b)
	}
	if err != nil {
		return failure("report", "", err, "")
	}
	return nil
}

// becomeUser changes this thread only: the others end when it executes.
func becomeUser(c *order) *fault {
	groups := uintptr(0)
	if len(c.Groups) > 0 {
		groups = uintptr(unsafe.Pointer(&c.Groups[0]))
	}
	if _, _, errno := unix.Syscall(unix.SYS_SETGROUPS, uintptr(len(c.Groups)), groups, 0); errno != 0 {
		return failure("set groups", "", errno, "")
	}
	gid, uid := uintptr(c.GID), uintptr(c.UID)
	if _, _, errno := unix.Syscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return failure("set group", "", errno, "")
	}
	if _, _, errno := unix.Syscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return failure("set user", "", errno, "")
	}
	return nil
}

// execute executes the program. A bare name is looked for in PATH as execvp(3)
// does.
func execute(c *order) *fault {
	name := c.Argv[0]
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, kv := range c.Env {
			if list, ok := strings.CutPrefix(kv, "PATH="); ok {
				candidates = nil
				for dir := range strings.SplitSeq(list, ":") {
					if dir == "" {
						dir = "."
					}
					candidates = append(candidates, dir+"/"+name)
				}
			}
		}
	}
	var denied *fault
	for _, path := range candidates {
		err := syscall.Exec(path, c.Argv, c.Env) // it restores the limit on open files
		f := failure("execute", path, err, "")
		switch {
		case errors.Is(err, unix.ENOENT) && len(candidates) == 1 && unix.Access(path, unix.F_OK) == nil:
			f.Note = "the file is there; the interpreter that it names (its first line, or the ELF loader) is not"
			return f
		case errors.Is(err, unix.ENOSYS) && len(c.Seccomp) > 0:
			f.Note = "its seccomp filter asks for a tracer, and none is attached"
			return f
		case errors.Is(err, unix.EACCES):
			denied = f
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
			return f
		}
		if len(candidates) == 1 {
			return f
		}
	}
	if denied != nil {
		return denied
	}
	return failure("execute", name, unix.ENOENT, "not found in PATH")
}
