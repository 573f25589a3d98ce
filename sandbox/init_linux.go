package sandbox

import (
	"os"
	"runtime"
)

// The names by which a copy of the program knows what it is. No installed
// program has such a name, and the kernel lets argv[0] be anything.
const (
	initName  = "srvfs-sandbox-init"
	stageName = "srvfs-sandbox-exec"
)

func init() {
	if len(os.Args) > 0 && (os.Args[0] == stageName || os.Args[0] == initName) {
		// Credentials, a seccomp filter and a tracer belong to a thread, and
		// /proc/PID/root is the main thread's. The main goroutine runs on the
		// main thread until here; keep it there, and all others off it: process
		// 1 has a thread that stays in the caller's root.
		runtime.LockOSThread()
	}
}

// Init makes a copy of the program that [Start] started do its work, and does
// not return in it. It must be the first statement of main, and of TestMain in
// packages whose tests start sandboxes: what runs before it runs inside too.
func Init() {
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case initName:
		os.Exit(runInit())
	case stageName:
		if len(os.Args) > 1 {
			awaitCommand()
		}
		os.Exit(runStage())
	}
}

// helperEnv is the environment of the helpers. They are small, and commands get
// an environment of their own.
func helperEnv() []string { return []string{"GOMAXPROCS=2"} }
