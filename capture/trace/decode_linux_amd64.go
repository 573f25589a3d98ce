package trace

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// use records the path at addr of the stopped task, relative to the directory
// descriptor dir.
func (th *thread) use(k *task, name string, dir int32, addr uint64, op Op, a arg) {
	if addr == 0 {
		return // utimensat and others: the descriptor's own file
	}
	raw, errno := th.window.path(k.tid, addr)
	switch errno {
	case 0:
		th.usePath(k, name, dir, raw, op, a)
	case unix.EFAULT, unix.ENAMETOOLONG, unix.ESRCH:
		// The kernel fails the call too, or nobody is left to make it.
	default:
		th.gap(k, Unreadable, name, errno.Error())
	}
}

func (th *thread) usePath(k *task, name string, dir int32, raw []byte, op Op, a arg) {
	root, ok := th.root(k)
	if !ok {
		return // died
	}
	base := th.base[:0]
	switch {
	case len(raw) == 0 && !a.itself:
		return // nothing, or the descriptor's own file, which was recorded when it was opened
	case len(raw) > 0 && raw[0] == '/':
	default:
		what, fd := "fd", int(dir)
		if dir == unix.AT_FDCWD {
			what, fd = "cwd", -1
		} else if dir < 0 {
			return
		}
		link, gone, ok := th.window.link(k.tid, what, fd, th.home)
		if !ok {
			// A descriptor that is closed, or of no directory: the call fails.
			if what == "cwd" && unix.Kill(k.tid, 0) == nil {
				th.gap(k, Unplaced, name, string(raw))
			}
			return
		}
		if len(raw) == 0 && gone {
			return // a memfd, or a program that removed itself: it's in no tree
		}
		base = append(base, link...)
	}
	th.base = base
	path, slash := join(th.joined[:0], root, base, raw)
	th.joined = path
	th.keep(k, path, root, op, a, a.last == keeps && !slash)
}

// each records the path arguments of an ordinary call.
func (th *thread) each(k *task, e *entry, c *call) {
	for _, a := range c.args {
		dir := int32(unix.AT_FDCWD)
		if a.dir != cwd {
			dir = int32(e.args[a.dir])
		}
		set := e.args[a.flags]&a.mask != 0
		if a.last == unless && set || a.last == onlyIf && !set {
			a.last = keeps
		}
		th.use(k, c.name, dir, e.args[a.path], c.op, a)
	}
}

func decodeOpen(th *thread, k *task, e *entry) {
	th.open(k, "open", unix.AT_FDCWD, e.args[0], e.args[1])
}

func decodeOpenat(th *thread, k *task, e *entry) {
	th.open(k, "openat", int32(e.args[0]), e.args[1], e.args[2])
}

func (th *thread) open(k *task, name string, dir int32, addr, flags uint64) {
	op, a := opening(flags)
	th.use(k, name, dir, addr, op, a)
}

// opening reads the flags of open.
func opening(flags uint64) (Op, arg) {
	var a arg
	a.write = flags&unix.O_ACCMODE != unix.O_RDONLY || flags&(unix.O_TRUNC|unix.O_CREAT) != 0
	if flags&unix.O_NOFOLLOW != 0 || flags&(unix.O_CREAT|unix.O_EXCL) == unix.O_CREAT|unix.O_EXCL {
		a.last = keeps
	}
	if flags&unix.O_DIRECTORY != 0 && !a.write {
		return Dir, a
	}
	if flags&unix.O_ACCMODE != unix.O_WRONLY {
		a.mode |= Reads
	}
	if flags&unix.O_APPEND != 0 {
		a.mode |= Appends
	}
	// Where O_EXCL makes the call fail, nothing is emptied.
	if flags&unix.O_TRUNC != 0 && flags&(unix.O_CREAT|unix.O_EXCL) != unix.O_CREAT|unix.O_EXCL {
		a.mode |= Truncates
	}
	return Open, a
}

func decodeOpenat2(th *thread, k *task, e *entry) {
	how, errno := th.window.bytes(k.tid, e.args[2], 24) // struct open_how: flags, mode, resolve
	if errno != 0 {
		return // the kernel can't read it either
	}
	flags, resolve := binary.LittleEndian.Uint64(how), binary.LittleEndian.Uint64(how[16:])
	op, a := opening(flags)
	if resolve&unix.RESOLVE_NO_SYMLINKS != 0 {
		a.last = keeps
	}
	dir := int32(e.args[0])
	if resolve&unix.RESOLVE_IN_ROOT == 0 {
		th.use(k, "openat2", dir, e.args[1], op, a)
		return
	}
	// The directory is the root for this one call.
	what, fd := "fd", int(dir)
	if dir == unix.AT_FDCWD {
		what, fd = "cwd", -1
	} else if dir < 0 {
		return
	}
	link, _, ok := th.window.link(k.tid, what, fd, th.home)
	if !ok {
		return
	}
	root := string(link)
	raw, errno := th.window.path(k.tid, e.args[1])
	if errno != 0 || len(raw) == 0 {
		return
	}
	path, slash := join(th.joined[:0], root, link, raw)
	th.joined = path
	th.keep(k, path, root, op, a, a.last == keeps && !slash)
}

func decodePivotRoot(th *thread, k *task, e *entry) {
	th.use(k, "pivot_root", unix.AT_FDCWD, e.args[0], Dir, arg{})
	th.use(k, "pivot_root", unix.AT_FDCWD, e.args[1], Dir, arg{})
	th.gap(k, Moved, "pivot_root", "")
}

func decodeMount(th *thread, k *task, e *entry) {
	const byPath = unix.MS_BIND | unix.MS_MOVE
	if source, errno := th.window.path(k.tid, e.args[0]); e.args[0] != 0 && errno == 0 {
		// Otherwise it is a word such as "proc", or a device.
		if e.args[3]&byPath != 0 || len(source) > 0 && source[0] == '/' {
			th.usePath(k, "mount", unix.AT_FDCWD, source, Other, arg{})
		}
	}
	th.use(k, "mount", unix.AT_FDCWD, e.args[1], Other, arg{})
}

func decodeFsconfig(th *thread, k *task, e *entry) {
	switch e.args[1] {
	case unix.FSCONFIG_SET_PATH:
		th.use(k, "fsconfig", int32(e.args[4]), e.args[3], Other, arg{})
	case unix.FSCONFIG_SET_STRING: // "source" and the like; most are no paths
		value, errno := th.window.path(k.tid, e.args[3])
		if errno == 0 && len(value) > 0 && value[0] == '/' {
			th.usePath(k, "fsconfig", unix.AT_FDCWD, value, Other, arg{})
		}
	}
}

func decodeQuotactl(th *thread, k *task, e *entry) {
	const quotaOn = 0x800002 // Q_QUOTAON of linux/quota.h, above the quota's type
	th.use(k, "quotactl", unix.AT_FDCWD, e.args[1], Other, arg{})
	if uint32(e.args[0])>>8 == quotaOn {
		th.use(k, "quotactl", unix.AT_FDCWD, e.args[3], Other, arg{})
	}
}

func decodeBPF(th *thread, k *task, e *entry) {
	write := e.args[0] == unix.BPF_OBJ_PIN
	if !write && e.args[0] != unix.BPF_OBJ_GET {
		return
	}
	attr, errno := th.window.bytes(k.tid, e.args[1], 8) // its first field is the path
	if errno == 0 {
		th.use(k, "bpf", unix.AT_FDCWD, binary.LittleEndian.Uint64(attr), Other, arg{write: write})
	}
}

func decodeBind(th *thread, k *task, e *entry) { th.address(k, "bind", e.args[1], e.args[2], true) }

func decodeConnect(th *thread, k *task, e *entry) {
	th.address(k, "connect", e.args[1], e.args[2], false)
}

func decodeSendto(th *thread, k *task, e *entry) {
	th.address(k, "sendto", e.args[4], e.args[5], false)
}

func decodeSendmsg(th *thread, k *task, e *entry) { th.message(k, "sendmsg", e.args[1]) }

// maxMessages bounds how many messages of one sendmmsg are looked at; nobody
// sends to a thousand socket files at once.
const maxMessages = 64

func decodeSendmmsg(th *thread, k *task, e *entry) {
	const size = 64 // struct mmsghdr
	for i := range min(e.args[2], maxMessages) {
		th.message(k, "sendmmsg", e.args[1]+i*size)
	}
}

func (th *thread) message(k *task, name string, addr uint64) {
	head, errno := th.window.bytes(k.tid, addr, 12) // struct msghdr: the address and its length
	if errno == 0 {
		th.address(k, name, binary.LittleEndian.Uint64(head), uint64(binary.LittleEndian.Uint32(head[8:])), false)
	}
}

// address records the path of a Unix socket's address; an abstract name is
// none.
func (th *thread) address(k *task, name string, addr, size uint64, write bool) {
	const family, most = 2, 110 // struct sockaddr_un
	size &= 0xffffffff
	if addr == 0 || size <= family || size > 128 {
		return
	}
	sun, errno := th.window.bytes(k.tid, addr, int(min(size, most)))
	if errno != 0 || binary.LittleEndian.Uint16(sun) != unix.AF_UNIX || sun[family] == 0 {
		return
	}
	path := sun[family:]
	if i := bytes.IndexByte(path, 0); i >= 0 {
		path = path[:i]
	}
	last := follows
	if write {
		last = keeps // bind makes the name
	}
	th.usePath(k, name, unix.AT_FDCWD, path, Socket, arg{write: write, last: last})
}
