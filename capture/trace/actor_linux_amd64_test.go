package trace

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// act plays what no ordinary program does. It runs inside the sandbox, under
// trace.
func act(role string, args []string) {
	must := func(err error) {
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
			os.Exit(1)
		}
	}
	switch role {
	case "calls":
		everyCall(args[0])
	case "special":
		specialCalls()
	case "edges":
		must(edges())
	case "threads": // eight threads, each with a file of its own
		var all sync.WaitGroup
		for i := range 8 {
			all.Add(1)
			go func() {
				defer all.Done()
				runtime.LockOSThread()
				for range 50 {
					_, _ = os.Stat("/thread/" + strconv.Itoa(i))
				}
			}()
		}
		all.Wait()
		must(os.WriteFile("/mnt/pid", []byte(strconv.Itoa(os.Getpid())), 0o644))
	case "thread-chroot": // one thread changes the root of all
		must(os.MkdirAll("/tmp/jail", 0o755))
		_, _ = os.Stat("/first")
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			done <- unix.Chroot("/tmp/jail")
		}()
		must(<-done)
		_, _ = os.Stat("/second")
	case "thread-exec": // a thread that is not the first becomes another program
		var become func()
		become = func() {
			runtime.LockOSThread()
			if unix.Gettid() == unix.Getpid() {
				go become() // on another, while this one is taken
				select {}
			}
			must(unix.Exec("/bin/cat", []string{"cat", "/etc/hosts"}, os.Environ()))
		}
		become()
	case "spawn": // clone(CLONE_VM|CLONE_VFORK), many at once
		var all sync.WaitGroup
		for range 16 {
			all.Add(1)
			go func() {
				defer all.Done()
				cmd := exec.Command("/bin/cat", "hosts")
				cmd.Dir = "/etc"
				must(cmd.Run())
			}()
		}
		all.Wait()
	case "refused":
		if _, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0); errno != unix.ENOSYS {
			must(fmt.Errorf("io_uring_setup: %w", errno))
		}
		if _, _, errno := unix.Syscall(maxCalls-1, 0, 0, 0); errno != unix.ENOSYS {
			must(fmt.Errorf("call %d: %w", maxCalls-1, errno))
		}
		if _, _, errno := unix.Syscall(x32Bit|unix.SYS_GETPID, 0, 0, 0); errno != unix.ENOSYS {
			must(fmt.Errorf("x32 getpid: %w", errno))
		}
		if _, _, errno := unix.Syscall(^uintptr(0), 0, 0, 0); errno != unix.ENOSYS {
			must(fmt.Errorf("call -1: %w", errno))
		}
	case "own-filter": // a program with a filter of its own, as sshd or nginx has
		program := []unix.SockFilter{
			statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataNr),
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_GETPRIORITY},
			statement(unix.BPF_RET|unix.BPF_K, uint32(stop)),
			statement(unix.BPF_RET|unix.BPF_K, uint32(pass)),
		}
		prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
		runtime.LockOSThread()
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
			must(errno)
		}
		_, _ = unix.Getpriority(unix.PRIO_PROCESS, 0)
		var st unix.Stat_t
		_ = unix.Stat("/after/filter", &st)
	default:
		must(fmt.Errorf("unknown role"))
	}
}

// everyCall makes each ordinary call of the table with paths that don't exist,
// so that all fail: absolute ones, or relative to the working directory by
// AT_FDCWD.
func everyCall(prefix string) {
	runtime.LockOSThread()
	for nr, c := range tracedCalls() {
		if c.special != nil {
			continue
		}
		var a [6]uintptr
		var pin runtime.Pinner
		for i, p := range c.args {
			b := fmt.Append(nil, prefix, c.name, "/", i, "\x00")
			pin.Pin(&b[0])
			a[p.path] = uintptr(unsafe.Pointer(&b[0]))
			if p.dir != cwd {
				a[p.dir] = ^uintptr(99) // AT_FDCWD
			}
		}
		if nr == unix.SYS_SYMLINK || nr == unix.SYS_SYMLINKAT {
			b := []byte("/target/of/symlink\x00")
			pin.Pin(&b[0])
			a[0] = uintptr(unsafe.Pointer(&b[0]))
		}
		_, _, _ = unix.RawSyscall6(uintptr(nr), a[0], a[1], a[2], a[3], a[4], a[5])
		pin.Unpin()
	}
}

// specialCalls makes those calls whose path is not plainly an argument.
func specialCalls() {
	runtime.LockOSThread()
	var pin runtime.Pinner
	defer pin.Unpin()
	str := func(s string) uintptr {
		b := append([]byte(s), 0)
		pin.Pin(&b[0])
		return uintptr(unsafe.Pointer(&b[0]))
	}
	raw := func(nr uintptr, a ...uintptr) uintptr {
		var v [6]uintptr
		copy(v[:], a)
		r, _, _ := unix.RawSyscall6(nr, v[0], v[1], v[2], v[3], v[4], v[5])
		return r
	}
	const here = ^uintptr(99)
	sun := func(path string, length int) (uintptr, uintptr) {
		b := make([]byte, 128)
		binary.LittleEndian.PutUint16(b, unix.AF_UNIX)
		copy(b[2:], path)
		pin.Pin(&b[0])
		return uintptr(unsafe.Pointer(&b[0])), uintptr(length)
	}
	how := func(flags, resolve uint64) uintptr {
		b := make([]uint64, 3)
		b[0], b[2] = flags, resolve
		pin.Pin(&b[0])
		return uintptr(unsafe.Pointer(&b[0]))
	}
	message := func(name, size uintptr, n int) uintptr {
		b := make([]uint64, 8*n)
		for i := range n {
			b[8*i], b[8*i+1] = uint64(name), uint64(size)
		}
		pin.Pin(&b[0])
		return uintptr(unsafe.Pointer(&b[0]))
	}
	etc := raw(unix.SYS_OPENAT, here, str("/etc"), unix.O_PATH|unix.O_DIRECTORY, 0)

	raw(unix.SYS_OPEN, str("/sp/open/read"), unix.O_RDONLY)
	raw(unix.SYS_OPEN, str("/sp/open/write"), unix.O_WRONLY)
	raw(unix.SYS_OPEN, str("/sp/open/both"), unix.O_RDWR|unix.O_NOFOLLOW)
	raw(unix.SYS_OPEN, str("/sp/open/trunc"), unix.O_RDONLY|unix.O_TRUNC)
	raw(unix.SYS_OPENAT, etc, str("open/create"), unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL)
	raw(unix.SYS_OPENAT, here, str("/sp/open/dir/"), unix.O_DIRECTORY)
	raw(unix.SYS_OPENAT, here, str("/sp/open/tmp"), unix.O_TMPFILE|unix.O_RDWR)
	raw(unix.SYS_OPENAT2, etc, str("open2"), how(unix.O_WRONLY, 0), 24)
	raw(unix.SYS_OPENAT2, etc, str("/../open2/in/root"), how(unix.O_RDONLY, unix.RESOLVE_IN_ROOT), 24)
	raw(unix.SYS_OPENAT2, etc, str("open2/nosym"), how(unix.O_RDONLY, unix.RESOLVE_NO_SYMLINKS), 24)

	s := raw(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	a, n := sun("/sp/bind", 2+8)
	raw(unix.SYS_BIND, s, a, n)
	a, n = sun("/sp/connect/longer", 2+11) // the length ends it, there is no NUL
	raw(unix.SYS_CONNECT, s, a, n)
	a, n = sun("\x00/sp/abstract", 16)
	raw(unix.SYS_CONNECT, s, a, n)
	a, _ = sun("sp/relative", 0)
	raw(unix.SYS_SENDTO, s, str("x"), 1, 0, a, 110)
	a, n = sun("/sp/sendmsg", 110)
	raw(unix.SYS_SENDMSG, s, message(a, n, 1))
	a, n = sun("/sp/sendmmsg", 110)
	raw(unix.SYS_SENDMMSG, s, message(a, n, 2), 2)
	raw(unix.SYS_SENDMMSG, s, 8, 1<<40) // a bad address

	raw(unix.SYS_MOUNT, str("/sp/mount/source"), str("/sp/mount/target"), str("ext4"))
	raw(unix.SYS_MOUNT, str("sp/bind/source"), str("/sp/bind/target"), 0, unix.MS_BIND)
	raw(unix.SYS_MOUNT, str("word"), str("/sp/word/target"), str("proc"))
	raw(unix.SYS_MOUNT, 0, str("/sp/remount"), 0, unix.MS_REMOUNT)
	raw(unix.SYS_FSCONFIG, here, unix.FSCONFIG_SET_STRING, str("source"), str("/sp/fsconfig"))
	raw(unix.SYS_FSCONFIG, here, unix.FSCONFIG_SET_STRING, str("source"), str("tmpfs"))
	raw(unix.SYS_FSCONFIG, here, unix.FSCONFIG_SET_PATH, str("x"), str("sp/fspath"), etc)
	raw(unix.SYS_QUOTACTL, 0x800002<<8, str("/sp/quota/device"), 0, str("/sp/quota/file"))
	attr := []uint64{uint64(str("/sp/bpf/pin")), 0}
	pin.Pin(&attr[0])
	raw(unix.SYS_BPF, unix.BPF_OBJ_PIN, uintptr(unsafe.Pointer(&attr[0])), 16)
	attr = []uint64{uint64(str("/sp/bpf/get")), 0}
	pin.Pin(&attr[0])
	raw(unix.SYS_BPF, unix.BPF_OBJ_GET, uintptr(unsafe.Pointer(&attr[0])), 16)

	raw(unix.SYS_MOVE_MOUNT, etc, str("from"), etc, str("to"), unix.MOVE_MOUNT_F_SYMLINKS)
	raw(unix.SYS_LINKAT, here, str("/sp/link/followed"), etc, str("new"), unix.AT_SYMLINK_FOLLOW)
	raw(unix.SYS_UTIMENSAT, etc, 0, 0, 0)                                          // by descriptor
	raw(unix.SYS_NEWFSTATAT, etc, str(""), 0, unix.AT_EMPTY_PATH)                  // by descriptor
	raw(unix.SYS_NEWFSTATAT, etc, str("both"), 0, unix.AT_EMPTY_PATH)              // by name
	raw(unix.SYS_NEWFSTATAT, here, str("/sp/lstat/"), 0, unix.AT_SYMLINK_NOFOLLOW) // the slash follows
	raw(unix.SYS_NEWFSTATAT, 12345, str("closed"), 0, 0)
	raw(unix.SYS_NEWFSTATAT, s, str("in/socket"), 0, 0)
	cat := raw(unix.SYS_OPENAT, here, str("/bin/cat"), unix.O_PATH)
	raw(unix.SYS_EXECVEAT, cat, str(""), 8, 8, unix.AT_EMPTY_PATH) // fails: bad argv
	raw(unix.SYS_PIVOT_ROOT, str("/sp/pivot/new"), str("/sp/pivot/old"))
}

// edges reads paths that touch the end of mapped memory, and odd directories.
func edges() error {
	runtime.LockOSThread()
	page := unix.Getpagesize()
	const base = 0x7e0000000000
	m := base
	if _, _, errno := unix.RawSyscall6(unix.SYS_MMAP, uintptr(m), uintptr(3*page), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, ^uintptr(0), 0); errno != 0 {
		return errno
	}
	memory := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(nil), m)), 3*page)
	put := func(at int, s string) uintptr {
		copy(memory[at:], s+"\x00")
		return uintptr(m + at)
	}
	stat := func(path uintptr) unix.Errno {
		var st unix.Stat_t
		_, _, errno := unix.RawSyscall(unix.SYS_STAT, path, uintptr(unsafe.Pointer(&st)), 0)
		return errno
	}
	stat(put(page-6, "/edge/crossing")) // over a page boundary
	long := "/edge/"
	for len(long) < pathMax-1 {
		long += "0123456789/"
	}
	stat(put(page-100, long[:pathMax-1])) // the longest that is allowed, on three pages
	if errno := stat(put(page-100, long[:pathMax])); errno != unix.ENAMETOOLONG {
		return fmt.Errorf("a path that is too long: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_MPROTECT, uintptr(m+2*page), uintptr(page), unix.PROT_NONE); errno != 0 {
		return errno
	}
	stat(put(2*page-len("/edge/last")-1, "/edge/last")) // its NUL is the last byte there is
	copy(memory[2*page-9:], "/edge/bad")
	if errno := stat(uintptr(m + 2*page - 9)); errno != unix.EFAULT { // no NUL
		return fmt.Errorf("a path that runs out of memory: %w", errno)
	}
	stat(0)
	stat(8)
	stat(^uintptr(0) - 4)

	// A directory with a strange name, and one that is gone.
	for _, d := range []string{"/tmp/odd (deleted)", "/tmp/gone", "/tmp/real (deleted)/deep", "/tmp/new\nline"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	for _, d := range []string{"/tmp/odd (deleted)", "/tmp/real (deleted)/deep", "/tmp/new\nline", "/tmp/gone"} {
		if err := unix.Chdir(d); err != nil {
			return err
		}
		if d == "/tmp/gone" {
			if err := unix.Rmdir(d); err != nil {
				return err
			}
		}
		_ = unix.Stat("in-"+d[5:9], &st)
		_ = unix.Stat("../up-"+d[5:9], &st)
	}
	return nil
}
