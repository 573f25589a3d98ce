package trace

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onOwnThread runs f in a goroutine on an operating system thread that has no
// children, and will never get any: nobody else runs on it. The thread ends
// with f.
//
// A child belongs to the thread that forked it, and Go forks on whichever it
// happens to run. To wait for all tracees on a thread that has such a child
// would take the child's end away from os/exec. The main thread won't do in any
// case: it inherits the children of threads that end.
func onOwnThread(f func()) { tryThread(f, make(chan struct{})) }

// tryThread closes found when f is about to run.
func tryThread(f func(), found chan struct{}) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() || hasChildren() {
			// As long as this thread is locked, the next try is on another.
			tryThread(f, found)
			<-found
			runtime.UnlockOSThread()
			return
		}
		close(found)
		// Not unlocked: should f end too early, so does the thread, and the
		// kernel kills what it still traces.
		f()
	}()
}

// hasChildren asks without taking anything.
func hasChildren() bool {
	const any = unix.WEXITED | unix.WSTOPPED | unix.WCONTINUED
	for {
		err := unix.Waitid(unix.P_ALL, 0, nil, any|unix.WNOHANG|unix.WNOWAIT|unix.WALL|unix.WNOTHREAD, nil)
		if err != unix.EINTR {
			return err != unix.ECHILD
		}
	}
}
