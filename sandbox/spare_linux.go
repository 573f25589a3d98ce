package sandbox

import (
	"bytes"
	"encoding/gob"
	"errors"
	"io"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// A spare is a stage that waits for its command. A stage is a copy of this program,
// which takes longer to come to life than many a command takes to run: whoever knows
// that one will be needed has it made before. It serves commands without extra files.
type spare struct {
	pid  int
	sock int // where it gets the descriptors that other stages are started with
}

// Anticipate says that a command will be run that is traced or filtered, so that
// what it needs is ready when it comes. It returns at once, and is only a hint.
func (s *Sandbox) Anticipate() { _ = send(s.control, request{Verb: verbAnticipate}) }

// spareArg tells a stage that it is one.
const spareArg = "spare"

// startSpare starts one.
func startSpare(exe string, fork func(string, []string, *syscall.ProcAttr) (int, error)) (*spare, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	// What will be the command's is held by standard error until then, so that
	// nothing else gets these numbers.
	pid, err := fork(exe, []string{stageName, spareArg}, &syscall.ProcAttr{
		Env: helperEnv(), Files: []uintptr{2, 2, 2, uintptr(pair[1]), 2, 2, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	_ = unix.Close(pair[1])
	if err == nil && loadsLibraries() {
		err = awaitLife(pair[0])
	}
	if err != nil {
		_ = unix.Close(pair[0])
		return nil, err
	}
	return &spare{pid, pair[0]}, nil
}

// loadsLibraries reports whether this program is linked dynamically. Then a copy of it
// needs files while it comes to life, and must find them: pivot_root(2) takes the root
// away from all that have it, and whoever does that waits until the copy lives.
func loadsLibraries() bool {
	const base = 7 // AT_BASE: where the loader is
	aux, err := unix.Auxv()
	if err != nil {
		return true
	}
	return slices.ContainsFunc(aux, func(v [2]uintptr) bool { return v[0] == base && v[1] != 0 })
}

// lifeMax is how long such a copy may take to come to life.
const lifeMax = 20 // seconds

// awaitLife waits until a spare says that it lives.
func awaitLife(sock int) error {
	if err := unix.SetsockoptTimeval(sock, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: lifeMax}); err != nil {
		return err
	}
	for {
		n, err := unix.Read(sock, make([]byte, 1))
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil && n == 0:
			return io.ErrUnexpectedEOF // it has ended
		default:
			return err
		}
	}
}

// become makes it the stage of a command. Fds are what the caller sent, and the root.
func (s *spare) become(fds []int) error {
	defer func() { _ = unix.Close(s.sock) }()
	return unix.Sendmsg(s.sock, []byte{1}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
}

// awaitCommand makes a spare what any other stage is when it starts. It does not
// return if process 1 is gone.
func awaitCommand() {
	// The decoder learns a type when it first meets it: now, and not when somebody waits.
	var b bytes.Buffer
	if gob.NewEncoder(&b).Encode(order{Argv: []string{""}, Seccomp: make([]unix.SockFilter, 1)}) == nil {
		var o order
		_ = gob.NewDecoder(&b).Decode(&o)
	}
	if _, err := encode(report{Verb: verbReady}); err != nil {
		os.Exit(1)
	}
	if loadsLibraries() {
		_, _ = unix.Write(stageChannel, []byte{1})
	}
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4*(callerFiles+1)))
	var n, oobn int
	var err error
	for {
		n, oobn, _, _, err = unix.Recvmsg(stageChannel, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil || n == 0 {
		os.Exit(0) // not needed
	}
	var fds []int
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
		fds, _ = unix.ParseUnixRights(&messages[0])
	}
	if len(fds) != callerFiles+1 {
		os.Exit(1)
	}
	// They have numbers above those of the stage, which were all taken.
	for i, to := range []int{0, 1, stageStderr, stageChannel, stageOrder, stageRoot} {
		if unix.Dup3(fds[i], to, 0) != nil || unix.Close(fds[i]) != nil {
			os.Exit(1)
		}
	}
}
