package service

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// notifyFolder holds the sockets to which units of kind notify write, below
// /run.
const notifyFolder = "srvfs"

// maxNotice bounds a message in bytes, and maxFiles what may come with it.
const (
	maxNotice = 4 << 10
	maxFiles  = 64
)

// A notice is what one message says. The protocol is sd_notify's: lines of
// KEY=value in a datagram.
type notice struct {
	ready   bool
	mainPID int // as the sender numbers it; 0: not said
	status  string
}

// decodeNotice reads a message; what it does not know or is malformed it
// leaves out, as the protocol asks.
func decodeNotice(b []byte) notice {
	var n notice
	for line := range bytes.Lines(b) {
		key, value, ok := strings.Cut(strings.TrimRight(string(line), "\n"), "=")
		if !ok {
			continue
		}
		switch key {
		case "READY":
			n.ready = n.ready || value == "1"
		case "MAINPID":
			if pid, err := strconv.Atoi(value); err == nil && pid > 0 {
				n.mainPID = pid
			}
		case "STATUS":
			n.status = lastLines(value, 1)
		}
	}
	return n
}

// A notifier receives the messages of one unit for as long as the unit runs:
// were they not read, the sender would wait some day.
type notifier struct {
	conn   *net.UnixConn
	path   string // of the socket as the unit sees it
	host   string // and as the host does
	owner  sync.WaitGroup
	handle func(notice)

	token   string        // see flush
	flushed chan struct{} // a token has arrived
}

// listenNotify makes a socket in the service's /run. handle is called for each
// message, one after the other, until close returns.
func listenNotify(run string, index int, handle func(notice)) (*notifier, error) {
	name := path.Join(notifyFolder, "notify."+strconv.Itoa(index))
	n := &notifier{path: path.Join("/run", name), host: filepath.Join(run, name), handle: handle, token: rand.Text(), flushed: make(chan struct{}, 1)}
	folder, err := os.Open(filepath.Dir(n.host))
	if err != nil {
		return nil, fmt.Errorf("notify socket: %w", err)
	}
	defer func() { _ = folder.Close() }()
	n.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: inFolder(folder, n.host), Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("notify socket %s: %w", n.host, err)
	}
	// Any user of the service may write to it, as to systemd's.
	if err := os.Chmod(n.host, 0o666); err != nil {
		return nil, errors.Join(fmt.Errorf("notify socket: %w", err), n.conn.Close())
	}
	n.owner.Go(n.receive)
	return n, nil
}

func (n *notifier) receive() {
	b, oob := make([]byte, maxNotice), make([]byte, unix.CmsgSpace(maxFiles*4))
	for {
		size, files, _, _, err := n.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return // it was closed: nothing else ends a datagram socket
		}
		if string(b[:size]) == n.token {
			n.flushed <- struct{}{}
			continue
		}
		n.handle(decodeNotice(b[:size]))
		closeFiles(oob[:files])
	}
}

// flush returns when every message that was sent before has been handled: it
// sends one of its own after them and waits for that.
func (n *notifier) flush(ctx context.Context) error {
	folder, err := os.Open(filepath.Dir(n.host))
	if err != nil {
		return fmt.Errorf("notify socket: %w", err)
	}
	defer func() { _ = folder.Close() }()
	c, err := net.Dial("unixgram", inFolder(folder, n.host))
	if err != nil {
		return fmt.Errorf("notify socket: %w", err)
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
	defer stop()
	if _, err := c.Write([]byte(n.token)); err != nil {
		return fmt.Errorf("notify socket: %w", err)
	}
	select {
	case <-n.flushed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// inFolder names a file by a descriptor of its folder: the name of a socket is
// limited to 107 bytes, a path is not.
func inFolder(folder *os.File, path string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), filepath.Base(path))
}

// closeFiles closes descriptors that came with a message. A sender that waits
// for its message to be handled (BARRIER=1) waits for exactly this.
func closeFiles(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// close takes the socket away and waits for the last message to be handled.
func (n *notifier) close() {
	_ = n.conn.Close()
	n.owner.Wait()
	_ = os.Remove(n.host)
}
