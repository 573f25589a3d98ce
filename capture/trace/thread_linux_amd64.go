package trace

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

func supported() error { return nil }

// A thread is one operating system thread that traces one command and its
// descendants. The kernel ties a tracee to a thread, so all requests to
// ptrace, and the waiting, happen on it; only kill may be called from elsewhere.
//
// It follows the processes' lives. Where the kernel has listeners that are fast
// enough, the calls with paths arrive at one, on a second thread; see listener.
type thread struct {
	state  sync.Mutex // held while an event or a call is handled: of all down to done
	deny   bool       // the call under way is to fail with ENOSYS
	record *record
	reads  *reads // nil: not asked for
	home   string // what /proc calls the sandbox's root; empty before the first stop
	window window
	entry  entry
	status int32
	// base and joined are buffers for a path's beginning and the whole.
	base, joined []byte

	// rootEpoch grows when the root of any process may have changed, and
	// rootMoves counts the tasks that are about to change one.
	rootEpoch, rootMoves int

	done chan struct{} // closed when no tracee is left
	err  error         // why the trace broke off; valid after done

	mu       sync.Mutex
	tasks    map[int]*task
	killed   bool
	listener *listener // nil: calls stop for ptrace, or have not begun
	gone     bool      // no tracee is left
	parts    int       // that have not ended
}

// A task is one thread of a traced process.
type task struct {
	tid   int
	tgid  int // its process; 0 until needed, if it is not the first thread
	pidfd int // of the process if this is its first thread; else noPidfd or lacksPidfd
	root  string
	epoch int // of the trace when root was read

	movesRoot bool // it is in a system call that can change its root
}

const (
	noPidfd    = -1
	lacksPidfd = -2 // there is no descriptor left: it has to be killed by number
)

func newThread(r *record, reads *reads) *thread {
	return &thread{record: r, reads: reads, tasks: make(map[int]*task), done: make(chan struct{}), parts: 1}
}

// start attaches to pid, a process that waits to be traced, and follows it and
// its descendants until all are gone or ctx ends, which kills them.
func (th *thread) start(ctx context.Context, pid int) error {
	attached := make(chan error, 1)
	onOwnThread(func() {
		defer th.left()
		err := th.attach(pid)
		attached <- err
		if err != nil {
			return
		}
		unwatch := context.AfterFunc(ctx, th.kill)
		defer unwatch()
		th.follow()
	})
	return <-attached
}

// left is called when no tracee is left.
func (th *thread) left() {
	th.mu.Lock()
	th.gone = true
	if th.listener != nil {
		th.listener.stop()
	}
	th.mu.Unlock()
	th.partEnds()
}

// partEnds is called when following, or listening, has ended. The last one closes
// done.
func (th *thread) partEnds() {
	th.mu.Lock()
	defer th.mu.Unlock()
	if th.parts--; th.parts == 0 {
		close(th.done)
	}
}

func (th *thread) attach(pid int) error {
	if errno := ptrace(unix.PTRACE_SEIZE, pid, 0, ptraceOptions); errno != 0 {
		return fmt.Errorf("attach to process %d: %w; it takes root, and kernel.yama.ptrace_scope below 3", pid, errno)
	}
	th.find(pid)
	return nil
}

// follow handles what happens to the tracees until none is left.
func (th *thread) follow() {
	for {
		// WNOTHREAD: only this thread's tracees.
		pid, _, errno := unix.Syscall6(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&th.status)),
			unix.WALL|unix.WNOTHREAD, 0, 0, 0)
		switch errno {
		case 0:
			th.state.Lock()
			th.handle(int(pid), unix.WaitStatus(th.status))
			th.state.Unlock()
		case unix.EINTR:
		default:
			th.state.Lock()
			defer th.state.Unlock()
			if errno != unix.ECHILD {
				th.breakOff(fmt.Errorf("wait for the traced processes: %w", errno))
			}
			th.forgetAll()
			return
		}
	}
}

func (th *thread) handle(pid int, status unix.WaitStatus) {
	if status.Exited() || status.Signaled() {
		th.forget(pid)
		return
	}
	if !status.Stopped() {
		return
	}
	k := th.find(pid)
	if k.movesRoot {
		th.rootMoved(k) // its call is over
	}
	sig, event := uintptr(status.StopSignal()), int(status)>>16
	request := unix.PTRACE_CONT
	switch event {
	case 0: // a signal arrived: deliver it
	case unix.PTRACE_EVENT_SECCOMP:
		th.stopped(k)
		sig = 0
	case unix.PTRACE_EVENT_STOP:
		switch status.StopSignal() {
		case unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
			// Stopped by job control: stay so, until SIGCONT.
			request = unix.PTRACE_LISTEN
		}
		sig = 0
	case unix.PTRACE_EVENT_EXEC:
		// A thread that executes a program gets the number of its process,
		// and the other threads vanish, the first without a notice.
		if old, errno := eventMessage(pid); errno == 0 && int(old) != pid {
			th.forget(int(old))
		}
		k.root = ""
		sig = 0
	default: // a child was made; it reports itself
		sig = 0
	}
	ptrace(request, pid, 0, sig)
}

// stopped handles a stop for ptrace at the entry of a system call.
func (th *thread) stopped(k *task) {
	switch errno := syscallInfo(k.tid, &th.entry); errno {
	case 0:
	case unix.ESRCH:
		return
	default:
		th.breakOff(fmt.Errorf("read a system call: %w; tracing needs Linux 5.3 or newer", errno))
		return
	}
	th.deny = false
	if th.enter(k); th.deny {
		answerENOSYS(k.tid)
	}
}

// enter handles the system call that a task is about to make.
func (th *thread) enter(k *task) {
	e := &th.entry
	if th.home == "" {
		// The command's process enters the root, then gets its filter. So at
		// the first stop its root is the sandbox's.
		home, _, ok := th.window.link(k.tid, "root", -1, "/")
		if !ok {
			return // died
		}
		th.home = string(home)
	}
	switch {
	case e.arch != unix.AUDIT_ARCH_X86_64:
		th.deny = true
		th.gap(k, Foreign, "i386", "")
		return
	case e.nr&x32Bit != 0:
		th.deny = true
		th.gap(k, Foreign, "x32", "")
		return
	case e.nr >= maxCalls || !knownCalls[e.nr]:
		th.deny = true
		th.gap(k, Unknown, strconv.FormatUint(e.nr, 10), "")
		return
	}
	c := calls[e.nr]
	if c == nil {
		if read := readCalls[e.nr]; read != nil && th.reads != nil {
			read(th, k, e)
		}
		return // stopped by a filter of the program's own
	}
	if c.special != nil {
		c.special(th, k, e)
	} else {
		th.each(k, e, c)
	}
	if c.newRoot {
		k.movesRoot = true
		th.rootMoves++
	}
}

// root returns the root of a task's process as a path in the sandbox.
func (th *thread) root(k *task) (string, bool) {
	if k.root != "" && k.epoch == th.rootEpoch && th.rootMoves == 0 {
		return k.root, true
	}
	link, _, ok := th.window.link(k.tid, "root", -1, th.home)
	if !ok {
		return "", false
	}
	if k.root != string(link) {
		k.root = string(link)
	}
	k.epoch = th.rootEpoch
	return k.root, true
}

func (th *thread) rootMoved(k *task) {
	k.movesRoot = false
	th.rootMoves--
	th.rootEpoch++
}

// keep records an access of a task.
func (th *thread) keep(k *task, path []byte, root string, op Op, a arg, noFollow bool) {
	if !th.record.add(path, root, op, a, noFollow, th.process(k)) {
		th.gap(k, Overflow, op.String(), string(path))
	}
}

func (th *thread) gap(k *task, kind GapKind, call, detail string) {
	program := ""
	if link, _, ok := th.window.link(k.tid, "exe", -1, th.home); ok {
		program = string(link)
	}
	th.record.gap(Gap{Kind: kind, Program: program, Call: call, Detail: detail, Pid: th.process(k)})
}

// process returns the process that a task belongs to.
func (th *thread) process(k *task) int {
	if k.tgid == 0 {
		if status, err := os.ReadFile("/proc/" + strconv.Itoa(k.tid) + "/status"); err == nil {
			k.tgid = parseTgid(status)
		}
		if k.tgid == 0 {
			k.tgid = k.tid
		}
	}
	return k.tgid
}

// find returns the task of a tracee. It is called while the tracee can't be
// reaped by anyone, so the number means that tracee.
func (th *thread) find(tid int) *task {
	th.mu.Lock()
	defer th.mu.Unlock()
	k := th.tasks[tid]
	if k != nil {
		return k
	}
	k = &task{tid: tid, pidfd: noPidfd}
	th.tasks[tid] = k
	// It fails for a thread that is not the first of its process.
	switch fd, err := unix.PidfdOpen(tid, 0); err {
	case nil:
		k.pidfd, k.tgid = fd, tid
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM:
		k.pidfd = lacksPidfd
	}
	if th.killed {
		_ = unix.Kill(tid, unix.SIGKILL)
	}
	return k
}

func (th *thread) forget(tid int) {
	th.mu.Lock()
	defer th.mu.Unlock()
	if k := th.tasks[tid]; k != nil {
		th.drop(k)
	}
}

func (th *thread) forgetAll() {
	th.mu.Lock()
	defer th.mu.Unlock()
	for _, k := range th.tasks {
		th.drop(k)
	}
}

// drop must be called with mu held.
func (th *thread) drop(k *task) {
	if k.movesRoot {
		th.rootMoved(k)
	}
	if k.pidfd >= 0 {
		_ = unix.Close(k.pidfd)
	}
	delete(th.tasks, k.tid)
}

// kill kills all tracees, and those that are still to come. It may be called
// from any goroutine: between the end of a process and drop its number may be
// another's already, so it is named by descriptor.
func (th *thread) kill() {
	th.mu.Lock()
	defer th.mu.Unlock()
	th.killed = true
	for _, k := range th.tasks {
		switch {
		case k.pidfd >= 0:
			_ = unix.PidfdSendSignal(k.pidfd, unix.SIGKILL, nil, 0)
		case k.pidfd == lacksPidfd:
			_ = unix.Kill(k.tid, unix.SIGKILL)
		}
	}
}

// breakOff ends the trace with an error.
func (th *thread) breakOff(err error) {
	if th.err == nil {
		th.err = err
	}
	th.kill()
}
