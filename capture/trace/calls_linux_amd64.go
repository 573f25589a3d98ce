package trace

import "golang.org/x/sys/unix"

// A call says which arguments of a system call are paths.
type call struct {
	name string
	op   Op
	args []arg
	// special decodes what args can't say: a path behind a structure, or one
	// whose meaning depends on other arguments. It replaces args.
	special func(*thread, *task, *entry)
	// newRoot: the process's root may be another one afterwards.
	newRoot bool
}

// An arg is one path of a call.
type arg struct {
	path   int // index of the argument that points to the path
	dir    int // index of the directory descriptor, or cwd
	last   last
	flags  int    // for unless and onlyIf: index of the flags
	mask   uint64 // and the bit that counts
	write  bool
	mode   Mode // of an Open
	itself bool // an empty path names what the descriptor refers to
}

// cwd stands for the working directory in place of a descriptor's argument.
const cwd = -1

// last says whether a symbolic link as the last component is followed.
type last uint8

const (
	follows last = iota
	keeps        // never followed
	unless       // followed unless the bit is set
	onlyIf       // followed only if the bit is set
)

// follow, keep, followUnless and followIf describe a path argument.
func follow(path, dir int) arg { return arg{path: path, dir: dir} }
func keep(path, dir int) arg   { return arg{path: path, dir: dir, last: keeps} }
func followUnless(path, dir, flags int, mask uint64) arg {
	return arg{path: path, dir: dir, last: unless, flags: flags, mask: mask}
}
func followIf(path, dir, flags int, mask uint64) arg {
	return arg{path: path, dir: dir, last: onlyIf, flags: flags, mask: mask}
}

func (a arg) writing() arg  { a.write = true; return a }
func (a arg) as(m Mode) arg { a.mode = m; return a }

func does(name string, op Op, args ...arg) call { return call{name: name, op: op, args: args} }

func specially(name string, op Op, f func(*thread, *task, *entry)) call {
	return call{name: name, op: op, special: f}
}

func (c call) movesRoot() call { c.newRoot = true; return c }

const noFollow = unix.AT_SYMLINK_NOFOLLOW

// tracedCalls are the system calls that take a path, or can change what a path
// means. Each path argument stands here; text that only looks like one (the
// target of symlink, the name of a memfd) does not.
func tracedCalls() map[int]call {
	itself := followUnless(1, 0, 4, noFollow)
	itself.itself = true
	return map[int]call{
		unix.SYS_EXECVE:   does("execve", Exec, follow(0, cwd)),
		unix.SYS_EXECVEAT: does("execveat", Exec, itself),

		unix.SYS_OPEN:    specially("open", Open, decodeOpen),
		unix.SYS_OPENAT:  specially("openat", Open, decodeOpenat),
		unix.SYS_OPENAT2: specially("openat2", Open, decodeOpenat2),
		unix.SYS_CREAT:   does("creat", Open, follow(0, cwd).writing().as(Truncates)),
		unix.SYS_USELIB:  does("uselib", Open, follow(0, cwd).as(Reads)),
		unix.SYS_ACCT:    does("acct", Open, follow(0, cwd).writing().as(Appends)),
		unix.SYS_SWAPON:  does("swapon", Open, follow(0, cwd).writing().as(Reads)),
		unix.SYS_SWAPOFF: does("swapoff", Other, follow(0, cwd)),

		unix.SYS_STAT:       does("stat", Stat, follow(0, cwd)),
		unix.SYS_LSTAT:      does("lstat", Stat, keep(0, cwd)),
		unix.SYS_NEWFSTATAT: does("newfstatat", Stat, followUnless(1, 0, 3, noFollow)),
		unix.SYS_STATX:      does("statx", Stat, followUnless(1, 0, 2, noFollow)),
		unix.SYS_ACCESS:     does("access", Stat, follow(0, cwd)),
		unix.SYS_FACCESSAT:  does("faccessat", Stat, follow(1, 0)),
		unix.SYS_FACCESSAT2: does("faccessat2", Stat, followUnless(1, 0, 3, noFollow)),
		unix.SYS_STATFS:     does("statfs", Stat, follow(0, cwd)),
		unix.SYS_READLINK:   does("readlink", Readlink, keep(0, cwd)),
		unix.SYS_READLINKAT: does("readlinkat", Readlink, keep(1, 0)),

		unix.SYS_GETXATTR:     does("getxattr", Stat, follow(0, cwd)),
		unix.SYS_LGETXATTR:    does("lgetxattr", Stat, keep(0, cwd)),
		unix.SYS_GETXATTRAT:   does("getxattrat", Stat, followUnless(1, 0, 2, noFollow)),
		unix.SYS_LISTXATTR:    does("listxattr", Stat, follow(0, cwd)),
		unix.SYS_LLISTXATTR:   does("llistxattr", Stat, keep(0, cwd)),
		unix.SYS_LISTXATTRAT:  does("listxattrat", Stat, followUnless(1, 0, 2, noFollow)),
		unix.SYS_FILE_GETATTR: does("file_getattr", Stat, followUnless(1, 0, 4, noFollow)),

		unix.SYS_NAME_TO_HANDLE_AT: does("name_to_handle_at", Stat, followIf(1, 0, 4, unix.AT_SYMLINK_FOLLOW)),

		unix.SYS_CHDIR:      does("chdir", Dir, follow(0, cwd)),
		unix.SYS_CHROOT:     does("chroot", Dir, follow(0, cwd)).movesRoot(),
		unix.SYS_PIVOT_ROOT: specially("pivot_root", Dir, decodePivotRoot).movesRoot(),
		unix.SYS_SETNS:      does("setns", Other).movesRoot(),

		unix.SYS_BIND:     specially("bind", Socket, decodeBind),
		unix.SYS_CONNECT:  specially("connect", Socket, decodeConnect),
		unix.SYS_SENDTO:   specially("sendto", Socket, decodeSendto),
		unix.SYS_SENDMSG:  specially("sendmsg", Socket, decodeSendmsg),
		unix.SYS_SENDMMSG: specially("sendmmsg", Socket, decodeSendmmsg),

		unix.SYS_TRUNCATE:  does("truncate", Open, follow(0, cwd).writing().as(Reads)),
		unix.SYS_MKDIR:     does("mkdir", Change, keep(0, cwd).writing()),
		unix.SYS_MKDIRAT:   does("mkdirat", Change, keep(1, 0).writing()),
		unix.SYS_MKNOD:     does("mknod", Change, keep(0, cwd).writing()),
		unix.SYS_MKNODAT:   does("mknodat", Change, keep(1, 0).writing()),
		unix.SYS_RMDIR:     does("rmdir", Change, keep(0, cwd).writing()),
		unix.SYS_UNLINK:    does("unlink", Change, keep(0, cwd).writing()),
		unix.SYS_UNLINKAT:  does("unlinkat", Change, keep(1, 0).writing()),
		unix.SYS_SYMLINK:   does("symlink", Change, keep(1, cwd).writing()),
		unix.SYS_SYMLINKAT: does("symlinkat", Change, keep(2, 1).writing()),
		unix.SYS_LINK:      does("link", Change, keep(0, cwd), keep(1, cwd).writing()),
		unix.SYS_LINKAT:    does("linkat", Change, followIf(1, 0, 4, unix.AT_SYMLINK_FOLLOW), keep(3, 2).writing()),
		unix.SYS_RENAME:    does("rename", Change, keep(0, cwd).writing(), keep(1, cwd).writing()),
		unix.SYS_RENAMEAT:  does("renameat", Change, keep(1, 0).writing(), keep(3, 2).writing()),
		unix.SYS_RENAMEAT2: does("renameat2", Change, keep(1, 0).writing(), keep(3, 2).writing()),

		unix.SYS_CHMOD:         does("chmod", Change, follow(0, cwd).writing()),
		unix.SYS_FCHMODAT:      does("fchmodat", Change, follow(1, 0).writing()),
		unix.SYS_FCHMODAT2:     does("fchmodat2", Change, followUnless(1, 0, 3, noFollow).writing()),
		unix.SYS_CHOWN:         does("chown", Change, follow(0, cwd).writing()),
		unix.SYS_LCHOWN:        does("lchown", Change, keep(0, cwd).writing()),
		unix.SYS_FCHOWNAT:      does("fchownat", Change, followUnless(1, 0, 4, noFollow).writing()),
		unix.SYS_UTIME:         does("utime", Change, follow(0, cwd).writing()),
		unix.SYS_UTIMES:        does("utimes", Change, follow(0, cwd).writing()),
		unix.SYS_FUTIMESAT:     does("futimesat", Change, follow(1, 0).writing()),
		unix.SYS_UTIMENSAT:     does("utimensat", Change, followUnless(1, 0, 3, noFollow).writing()),
		unix.SYS_SETXATTR:      does("setxattr", Change, follow(0, cwd).writing()),
		unix.SYS_LSETXATTR:     does("lsetxattr", Change, keep(0, cwd).writing()),
		unix.SYS_SETXATTRAT:    does("setxattrat", Change, followUnless(1, 0, 2, noFollow).writing()),
		unix.SYS_REMOVEXATTR:   does("removexattr", Change, follow(0, cwd).writing()),
		unix.SYS_LREMOVEXATTR:  does("lremovexattr", Change, keep(0, cwd).writing()),
		unix.SYS_REMOVEXATTRAT: does("removexattrat", Change, followUnless(1, 0, 2, noFollow).writing()),
		unix.SYS_FILE_SETATTR:  does("file_setattr", Change, followUnless(1, 0, 4, noFollow).writing()),

		unix.SYS_INOTIFY_ADD_WATCH: does("inotify_add_watch", Other, followUnless(1, cwd, 2, unix.IN_DONT_FOLLOW)),
		unix.SYS_FANOTIFY_MARK:     does("fanotify_mark", Other, followUnless(4, 3, 1, unix.FAN_MARK_DONT_FOLLOW)),
		unix.SYS_QUOTACTL:          specially("quotactl", Other, decodeQuotactl),
		unix.SYS_BPF:               specially("bpf", Other, decodeBPF),

		unix.SYS_MOUNT:          specially("mount", Other, decodeMount),
		unix.SYS_UMOUNT2:        does("umount2", Other, followUnless(0, cwd, 1, unix.UMOUNT_NOFOLLOW)),
		unix.SYS_OPEN_TREE:      does("open_tree", Other, followUnless(1, 0, 2, noFollow)),
		unix.SYS_OPEN_TREE_ATTR: does("open_tree_attr", Other, followUnless(1, 0, 2, noFollow)),
		unix.SYS_MOVE_MOUNT: does("move_mount", Other,
			followIf(1, 0, 4, unix.MOVE_MOUNT_F_SYMLINKS), followIf(3, 2, 4, unix.MOVE_MOUNT_T_SYMLINKS)),
		unix.SYS_FSCONFIG:      specially("fsconfig", Other, decodeFsconfig),
		unix.SYS_FSPICK:        does("fspick", Other, followUnless(1, 0, 2, unix.FSPICK_SYMLINK_NOFOLLOW)),
		unix.SYS_MOUNT_SETATTR: does("mount_setattr", Other, followUnless(1, 0, 2, noFollow)),
	}
}

// refusedCalls do their work where no system call shows a path. They are
// answered ENOSYS, as by a kernel that is built without them, and every program
// that uses them has another way for that kernel.
var refusedCalls = []int{unix.SYS_IO_URING_SETUP}

const maxCalls = 512

// The table, by system call number.
var (
	calls      [maxCalls]*call
	knownCalls [maxCalls]bool
)

func init() {
	for nr, c := range tracedCalls() {
		calls[nr] = &c
		knownCalls[nr] = true
	}
	for _, list := range [][]int{refusedCalls, pathlessCalls} {
		for _, nr := range list {
			knownCalls[nr] = true
		}
	}
}
