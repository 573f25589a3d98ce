package trace

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A listener is where the kernel reports the calls that the filter stops
// (seccomp_unotify(2)). The process waits until it is answered; the answer is to go
// on, so the call is the process's own, with all its rights.
//
// A stop for ptrace takes two switches between processes and wakes either on
// whatever processor is idle: 30 us here. A listener with synchronous wake-ups hands
// the processor over: 9 us. Without these wake-ups, which came with Linux 6.6, it
// is slower than ptrace.
type listener struct {
	file *os.File
	quit *os.File // an eventfd
}

// listens reports whether this kernel's listeners are the faster way. Environment
// variable TRACE_BY=ptrace says no, for tests of the other.
var listens = sync.OnceValue(func() bool {
	var u unix.Utsname
	if os.Getenv("TRACE_BY") == "ptrace" || unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	_, err := fmt.Sscanf(strings.TrimRight(unix.ByteSliceToString(u.Release[:]), "\x00"), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 6)
})

// A notification is struct seccomp_notif, an answer struct seccomp_notif_resp
// (linux/seccomp.h).
type notification struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type answer struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

// listen handles what arrives at the listener until no traced process is left. The
// file is the trace's from here on.
func (th *thread) listen(file *os.File) error {
	// Only a wish: without it all is the same, and slower.
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, file.Fd(), unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		_ = file.Close()
		return os.NewSyscallError("eventfd", err)
	}
	l := &listener{file, os.NewFile(uintptr(fd), "eventfd")}
	th.mu.Lock()
	defer th.mu.Unlock()
	if th.gone {
		l.close()
		return nil
	}
	th.listener = l
	th.parts++
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer th.partEnds()
		defer l.close()
		l.serve(th)
	}()
	return nil
}

func (l *listener) close() { _, _ = l.file.Close(), l.quit.Close() }

// stop makes serve return.
func (l *listener) stop() {
	one := [8]byte{1}
	_, _ = l.quit.Write(one[:])
}

// serve answers until the last process with the filter is gone, or stop is called.
// What would still ask then is told ENOSYS.
func (l *listener) serve(th *thread) {
	listener := l.file.Fd()
	fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}, {Fd: int32(l.quit.Fd()), Events: unix.POLLIN}}
	fail := func(what string, errno error) {
		th.state.Lock()
		th.breakOff(fmt.Errorf("%s at the seccomp listener: %w", what, errno))
		th.state.Unlock()
	}
	for {
		// The ioctl alone would wait for ever when nobody is left, on kernels before
		// 6.11.
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			fail("wait", err)
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[0].Revents != 0 || fds[1].Revents != 0 {
				return
			}
			continue
		}
		var n notification
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, listener, unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			if errno == unix.ENOENT || errno == unix.EINTR { // it was killed, or interrupted by a signal
				continue
			}
			fail("receive", errno)
			return
		}
		a := answer{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if th.notified(&n) {
			a.flags, a.errno = 0, -int32(unix.ENOSYS)
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, listener, unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&a))); errno != 0 && errno != unix.ENOENT {
			fail("answer", errno)
			return
		}
	}
}

// notified handles one call, and reports whether it is to fail with ENOSYS.
func (th *thread) notified(n *notification) (deny bool) {
	th.state.Lock()
	defer th.state.Unlock()
	th.mu.Lock()
	k := th.tasks[int(n.pid)]
	th.mu.Unlock()
	if k == nil { // it has died meanwhile; its number may be another's
		return false
	}
	if k.movesRoot {
		th.rootMoved(k) // its call before is over
	}
	th.entry = entry{arch: n.arch, nr: uint64(uint32(n.nr)), args: n.args}
	th.deny = false
	th.enter(k)
	return th.deny
}
