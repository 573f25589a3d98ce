package sandbox

import (
	"bytes"
	"context"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxOutput is how much of a program's output [Sandbox.Output] keeps, in bytes.
const maxOutput = 1 << 20

// Output runs a program to its end and returns the first MiB of what it wrote:
// to standard output, and to standard error if c.Stderr is nil. Exit is its
// exit code, 128 and the signal's number if a signal ended it. When ctx ends
// before, the program is killed (what it left running is not).
func (s *Sandbox) Output(ctx context.Context, c Command) (output []byte, exit int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = r.Close() }()
	c.Stdout = w
	if c.Stderr == nil {
		c.Stderr = w
	}
	p, err := s.Run(ctx, c)
	_ = w.Close()
	if err != nil {
		return nil, 0, err
	}
	var out limited
	read := make(chan struct{})
	go func() { defer close(read); _, _ = io.Copy(&out, r) }()
	status, err := p.Wait(ctx)
	if err != nil {
		_ = p.Signal(unix.SIGKILL)
	}
	// A daemon that it left behind may hold the pipe open: read what is there.
	_ = r.SetReadDeadline(time.Now())
	<-read
	_ = r.SetReadDeadline(time.Time{})
	drain(r, &out)
	return out.b.Bytes(), status.Code, err
}

// drain reads what is in the pipe and does not wait for more.
func drain(r *os.File, w io.Writer) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	b := make([]byte, 64<<10)
	_ = raw.Read(func(fd uintptr) bool {
		for range 1024 { // a daemon that never stops writing must not keep us
			n, err := unix.Read(int(fd), b)
			if n <= 0 || err != nil {
				break
			}
			_, _ = w.Write(b[:n])
		}
		return true
	})
}

// limited keeps the first maxOutput bytes and swallows the rest, so that the
// writer is not blocked.
type limited struct{ b bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.b.Write(p[:min(len(p), maxOutput-l.b.Len())])
	return len(p), nil
}
