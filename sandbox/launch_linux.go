package sandbox

import "syscall"

// A launcher starts stages, from a thread of its own whose working directory is
// a procfs of the sandbox that is mounted nowhere: there it finds the program.
//
// The stage is this very program, and if that is linked dynamically the kernel
// looks for its loader in the root of whoever executes it. The sandbox's root
// may have none, or a foreign one. So this thread keeps the caller's root, of
// which it sees the file system that "/" is on and none of the mounts below,
// and the stage enters the sandbox's root when it is running.
type launcher struct {
	root   int // the sandbox's root directory
	orders chan launch
}

type launch struct {
	files  []uintptr
	result chan<- launched
}

type launched struct {
	pid int
	err error
}

func (l *launcher) work() {
	for o := range l.orders {
		pid, err := syscall.ForkExec("self/exe", []string{stageName}, &syscall.ProcAttr{
			Env: helperEnv(), Files: o.files, Sys: &syscall.SysProcAttr{Setsid: true},
		})
		o.result <- launched{pid, err}
	}
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
	result := make(chan launched)
	l.orders <- launch{files, result}
	r := <-result
	return r.pid, r.err
}
