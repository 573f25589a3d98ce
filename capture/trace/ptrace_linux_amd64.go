package trace

import (
	"bytes"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

const ptraceOptions = unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK |
	unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL

// An entry is struct ptrace_syscall_info (linux/ptrace.h) at a seccomp stop.
type entry struct {
	op   uint8
	_    [3]uint8
	arch uint32
	ip   uint64
	sp   uint64
	nr   uint64
	args [6]uint64
	_    uint32 // the filter's data
	_    uint32
}

// pathMax is the longest path that the kernel takes, with its NUL.
const pathMax = 4096

// A window looks into other processes: their memory, and their links in
// /proc. It reuses its buffers, because that happens at each stop; so a result is
// valid until the next call of the same method.
type window struct {
	local  unix.Iovec
	remote unix.RemoteIovec
	memory [pathMax]byte
	name   [64]byte
	text   [pathMax + 256]byte
}

// The requests to ptrace never wait, so they are raw: the scheduler needs no
// notice. ESRCH, from all of them, means that the process was killed meanwhile;
// wait4 tells so next.

func ptrace(request, pid int, addr, data uintptr) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, data, 0, 0)
	return errno
}

func syscallInfo(pid int, e *entry) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(pid),
		unsafe.Sizeof(*e), uintptr(unsafe.Pointer(e)), 0, 0)
	return errno
}

func eventMessage(pid int) (uint64, unix.Errno) {
	var msg uint64
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GETEVENTMSG, uintptr(pid), 0,
		uintptr(unsafe.Pointer(&msg)), 0, 0)
	return msg, errno
}

// answerENOSYS makes the call at whose entry pid is stopped fail. A call
// number of -1 is skipped, and what is in rax is its result.
func answerENOSYS(pid int) {
	const rax, origRax = 10 * 8, 15 * 8 // in struct user_regs_struct
	enosys := -int64(unix.ENOSYS)
	ptrace(unix.PTRACE_POKEUSR, pid, origRax, ^uintptr(0))
	ptrace(unix.PTRACE_POKEUSR, pid, rax, uintptr(enosys))
}

// read fills the first n bytes of w.memory from address addr of pid.
func (w *window) read(pid int, addr uint64, at, n int) unix.Errno {
	w.local.Base = &w.memory[at]
	w.local.SetLen(n)
	w.remote.Base = uintptr(addr)
	w.remote.Len = n
	// Not raw: the page may have to come from a disk or network first.
	got, _, errno := unix.Syscall6(unix.SYS_PROCESS_VM_READV, uintptr(pid),
		uintptr(unsafe.Pointer(&w.local)), 1, uintptr(unsafe.Pointer(&w.remote)), 1, 0)
	if errno == 0 && int(got) != n {
		return unix.EFAULT
	}
	return errno
}

// bytes returns n bytes at addr of pid, at most pathMax.
func (w *window) bytes(pid int, addr uint64, n int) ([]byte, unix.Errno) {
	if errno := w.read(pid, addr, 0, n); errno != 0 {
		return nil, errno
	}
	return w.memory[:n], 0
}

// path returns the NUL-terminated string at addr of pid. It is read page by
// page, since the one after it may not exist. ENAMETOOLONG: no NUL in time.
func (w *window) path(pid int, addr uint64) ([]byte, unix.Errno) {
	page := uint64(unix.Getpagesize())
	for n := 0; n < pathMax; {
		step := min(int(page-addr%page), pathMax-n)
		if errno := w.read(pid, addr, n, step); errno != 0 {
			return nil, errno
		}
		if i := bytes.IndexByte(w.memory[n:n+step], 0); i >= 0 {
			return w.memory[:n+i], 0
		}
		n += step
		addr += uint64(step)
	}
	return nil, unix.ENAMETOOLONG
}

// proc names /proc/PID/what[/fd], NUL-terminated; fd is left out if negative.
func (w *window) proc(pid int, what string, fd int) *byte {
	b := append(w.name[:0], "/proc/"...)
	b = strconv.AppendInt(b, int64(pid), 10)
	b = append(b, '/')
	b = append(b, what...)
	if fd >= 0 {
		b = append(b, '/')
		b = strconv.AppendInt(b, int64(fd), 10)
	}
	b = append(b, 0)
	return &b[0]
}

// readSmall reads the beginning of the file with the NUL-terminated name.
func readSmall(name *byte, b []byte) (int, unix.Errno) {
	fd, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, ^uintptr(99), uintptr(unsafe.Pointer(name)), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	return int(n), errno
}

// link returns where the link /proc/PID/what[/fd] leads, as a path in the
// sandbox. It reports false when it leads to no path there, or pid is gone.
//
// The kernel writes the text from the mount namespace's root, whatever the
// root of the process. gone: what it named has been deleted.
func (w *window) link(pid int, what string, fd int, base string) (path []byte, gone, ok bool) {
	name := w.proc(pid, what, fd)
	n, _, errno := unix.RawSyscall6(unix.SYS_READLINKAT, ^uintptr(99), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(&w.text)), uintptr(len(w.text)), 0, 0)
	if errno != 0 || int(n) == len(w.text) {
		return nil, false, false
	}
	path, suffixed, ok := parseLink(w.text[:n], base)
	if suffixed {
		// A live folder may be named so: it has links, a deleted one has none.
		var st unix.Stat_t
		_, _, errno := unix.RawSyscall6(unix.SYS_NEWFSTATAT, ^uintptr(99), uintptr(unsafe.Pointer(name)),
			uintptr(unsafe.Pointer(&st)), 0, 0, 0)
		if gone = errno == 0 && st.Nlink == 0; gone {
			path = path[:len(path)-len(deletedSuffix)]
		}
	}
	return path, gone, ok
}
