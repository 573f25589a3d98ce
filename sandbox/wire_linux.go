package sandbox

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The messages between the caller, process 1 and the stage that executes a
// command. Each is one packet of a SOCK_SEQPACKET pair, encoded by gob because
// paths and arguments may be any bytes, which JSON would mangle.

// A verb says what a request or report is about.
type verb uint8

const (
	verbBuild      verb = iota + 1 // request: the layout of the root; the answer is verbBuild
	verbStart                      // request: start a command, with descriptors; answered only on failure
	verbAnticipate                 // request: have a stage ready; not answered
	verbAdopt                      // request: report the exit of an orphan too; the answer is verbAdopt
	verbSignal                     // request: send a signal; not answered
	verbRelease                    // request to a stage: go on and execute
	verbReady                      // report of a stage: here I am
	verbFailed                     // report of a stage: it could not execute the command
	verbListening                  // report of a stage: its filter has a listener, of number Pid
	verbExit                       // report: a process that was started or adopted has ended, or (Fault) never was
	verbOutlive                    // request: wait for another caller at the socket that comes with it; not answered
	verbAttach                     // request of another caller: say who you are; the answer is verbAttach
	// New ones are added here: a caller attaches to process 1 of an older program.
)

// A request goes from the caller inwards.
type request struct {
	Verb   verb
	ID     uint64 // that the caller gave the process
	Pid    int    // inside; for verbSignal 0 is the process ID, -1 all
	Signal int
	Layout layout
}

// A layout is what process 1 needs of a Config.
type layout struct {
	Root, Hostname string
	Mounts         []Mount
	NewNet         bool
	Addresses      []netip.Addr
	Brought        []string // where the mounts go that come with the message

	trees []int // these
}

// A report goes from process 1 or a stage to the caller.
type report struct {
	Verb   verb
	ID     uint64
	Pid    int // inside
	Status uint32
	Fault  *fault
}

// A fault carries an error between processes.
type fault struct {
	Op, Path string
	Errno    unix.Errno // 0 when Note says it all
	Note     string     // more of the cause, or what to do next
}

func (f *fault) Error() string {
	s := f.Op
	if f.Path != "" {
		s += " " + f.Path
	}
	if f.Errno != 0 {
		s += ": " + f.Errno.Error()
	}
	if f.Note != "" {
		s += ": " + f.Note
	}
	return s
}

func (f *fault) Unwrap() error {
	if f.Errno == 0 {
		return nil
	}
	return f.Errno
}

// failure makes a fault of an error that has an errno at its root.
func failure(op, path string, err error, note string) *fault {
	f := &fault{Op: op, Path: path, Note: note}
	if err != nil && !errors.As(err, &f.Errno) {
		f.Note = strings.TrimPrefix(note+": "+err.Error(), ": ")
	}
	return f
}

// maxPacket bounds a message, in bytes. The kernel's default buffer of a socket
// holds 208 KiB.
const maxPacket = 192 << 10

// maxFiles is how many descriptors the kernel passes in one message (SCM_MAX_FD
// is 253), less our own.
const maxFiles = 240

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(v); err != nil {
		return nil, err
	}
	if b.Len() > maxPacket {
		return nil, fmt.Errorf("message of %d bytes exceeds %d", b.Len(), maxPacket)
	}
	return b.Bytes(), nil
}

func decode(b []byte, v any) error { return gob.NewDecoder(bytes.NewReader(b)).Decode(v) }

// send writes one message with descriptors.
func send(c *net.UnixConn, v any, fds ...int) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(b, oob, nil)
	return err
}

// receive reads one message and what came with it: descriptors, close-on-exec
// and owned by the caller, and the sender's pid in our numbering, 0 if the
// socket does not ask for it.
func receive(c *net.UnixConn, v any) (fds []int, pid int, err error) {
	b := make([]byte, maxPacket+1)
	oob := make([]byte, unix.CmsgSpace(4*(maxFiles+8))+unix.CmsgSpace(unix.SizeofUcred))
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob) // it sets MSG_CMSG_CLOEXEC
	if err != nil {
		return nil, 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, 0, err
	}
	for _, m := range messages {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		} else if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			pid = int(cred.Pid)
		}
	}
	if err := decode(b[:n], v); err != nil {
		closeAll(fds)
		return nil, 0, err
	}
	return fds, pid, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// packetPair returns two connected ends of a packet socket: ours, and the one
// to give away, which blocks.
func packetPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "sandbox channel")
	ours, err = packetConn(fds[0])
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// packetConn takes over fd, one end of a packet socket.
func packetConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "sandbox channel")
	defer func() { _ = f.Close() }() // FileConn has a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("descriptor %d is no unix socket", fd)
	}
	return u, nil
}
