// Package sandbox starts processes in namespaces and a root of their own,
// through a helper process, and sees them end.
//
// # Why a helper
//
// The root may be a FUSE view that this very process serves. A process that
// forks into its own view waits for itself and hangs for ever, so nothing here
// touches the root from the calling process. [Start] executes the running
// program again (/proc/self/exe) in new mount, pid, uts and ipc namespaces, and
// on request in a new network namespace; that copy builds the root and enters
// it. Therefore the first statement of main, and of TestMain where tests start
// sandboxes, must be
//
//	sandbox.Init()
//
// which never returns in the copies.
//
// # The first process
//
// The copy is process 1 of its pid namespace. It does what process 1 must: it
// starts what it is told to over a control socket, adopts and reaps orphans,
// so that a daemon that forks itself into the background lives on, and reports
// exits. It ends when the socket closes, and the kernel then kills everything
// in the namespace. So nothing in a sandbox outlives the caller, not even one
// that was killed with SIGKILL, and as all mounts are private to the namespace
// they vanish with it: there is nothing to clean up. [Sandbox.Outlive] changes that for
// what needs the caller no more: process 1 then waits for another one, which takes over
// with [Attach].
//
// A command is started through a second copy, which takes the user, groups,
// umask and working directory of the command before it executes it. It exists
// so that the reason why a program can't be executed arrives at the caller of
// [Sandbox.Run], and so that a tracer can attach before the first instruction
// of the program (see [Command.Traced]). It also opens the sockets that a command
// is to find open (see [Command.Sockets]): nobody else is where they belong.
//
// # What it is not
//
// A sandbox keeps services from disturbing one another and the host by
// accident. It is no wall against a hostile root process: that one has all
// capabilities, in the host's user namespace, and can make device nodes. A
// hostile *tree*, however, is expected: symbolic links in it can't lead a mount
// out of the root.
//
// # Needs
//
// Linux 5.12 (openat2, close_range, mount_setattr), all capabilities of root,
// and /proc and /dev/null where the caller runs, which may be in a chroot and
// in a network namespace. A program that is linked dynamically needs its loader
// and libraries on the file system that the caller's "/" is on, not in the
// sandbox's root; one that was built with CGO_ENABLED=0 needs nothing.
package sandbox
