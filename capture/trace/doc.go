// Package trace starts a command in a sandbox and learns every path that it
// and its descendants hand to the kernel.
//
// # How
//
// The command carries a seccomp filter that lets every system call pass, but
// stops those that take a path (see the table of calls). They arrive at the
// filter's listener (seccomp_unotify(2)), where the tracer reads the path out of the
// waiting process and lets it go on; before Linux 6.6, whose listeners hand the
// processor over, they are stops for ptrace.
// There is one stop for each such call, at its entry, and none for any other.
// The tracer, attached with ptrace, follows forks, threads, execs and daemons until
// the last of them is gone.
//
//	t := trace.New(sb)
//	for _, cmd := range []sandbox.Command{startPre, start} {
//		p, err := t.Start(ctx, cmd)
//		...
//		status, err := p.Wait(ctx) // of the command; its daemons stay traced
//	}
//	... // t.Accesses() at any time
//	err := sb.Stop(ctx)
//	accesses, err := t.Finish(ctx)
//	gaps := t.Gaps()
//
// # What a path is
//
// [Access.Path] is absolute in the sandbox's root: relative paths are joined
// to the directory that they start from, and the root of a process that has
// called chroot is put in front. It is the name that was used, before any
// symbolic link is followed, and a ".." that comes after a name is still in it:
// "/a/link/../b" is not "/a/b" when link is a symbolic link. Whoever has the
// file tree walks the path there, and finds on the way the links that the
// process needed too. Everything else is cleaned: no empty or "." component,
// no slash at the end, no ".." at the beginning.
//
// A process in a chroot meets [Access.Root] where others meet "/": its absolute
// symbolic links start there, and its ".." does not lead out of it.
//
// # What is not seen
//
//   - Programs that make a seccomp listener of their own: there can be one only, and
//     they are refused it with EBUSY.
//   - Whether the call succeeded. Failed look-ups are in the list: that is what
//     a missing file looks like. Look into the tree to tell them apart.
//   - What the kernel opens by itself: the interpreter in a script's first
//     line, the ELF interpreter of a program. The [Exec] of the script or
//     program is there; add these two from the file's own bytes.
//   - The target text of a symbolic link that is made, paths in the option
//     string of mount, and files opened by a handle or a descriptor that came
//     from outside. Links under /proc ("/proc/self/cwd/x") are left as they are.
//   - 32-bit programs, system calls newer than the table, and io_uring. They
//     are answered ENOSYS. Programs do without the last two; for the first two,
//     and for everything else that the trace can't vouch for, a [Gap] is kept.
//   - A process that changes its path argument from another thread between
//     the tracer's look and the kernel's. The trace observes, it doesn't confine.
//
// # Reads
//
// Calls that read a file's content are not stopped: a server makes thousands of
// them. A tracer made by [NewWithReads] stops them as well, and keeps which parts
// of the files asked for were read or mapped, in units of 64 KiB. What a
// mapping's pages are touched for is not seen: it counts whole.
//
// # Cost
//
// A stop costs two switches between processes: about 70 µs on two virtual
// processors, most of it the waking of the other one. From start to exit
// (BenchmarkStart, at real-time priority because the machine had other work;
// strace with -e trace=%file; five runs each, so good for ratios only):
//
//	                       untraced   traced   strace -f --seccomp-bpf   strace -f
//	perl, 3 modules           56 ms    91 ms                    114 ms      162 ms
//	python3, 6 modules        82 ms   150 ms                    198 ms      209 ms
//	sh, test -e 2000 times    22 ms   158 ms                    267 ms      269 ms
//
// # Limits
//
// A traced process can't be traced again from inside. Never trace a process
// that must survive: when the tracer dies, the kernel kills all that it traces.
// Linux 5.3 or newer on amd64; elsewhere Start returns an error.
package trace
