package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// A lines reads the lines of a mail protocol. All that one conversation may
// say is bounded, so that no server can keep a probe busy.
type lines struct {
	r    *bufio.Reader
	left *io.LimitedReader
}

func newLines(r io.Reader) lines {
	left := &io.LimitedReader{R: r, N: maxAnswer}
	return lines{bufio.NewReader(left), left}
}

// maxLine bounds one line, in bytes. RFC 5321 asks for 512, and real servers
// send longer ones.
const maxLine = 8 << 10

// next returns one line without its end.
func (l lines) next() (string, error) {
	var b strings.Builder
	for {
		part, err := l.r.ReadSlice('\n')
		b.Write(part)
		if b.Len() > maxLine {
			return "", fmt.Errorf("a line of more than %d bytes: %s", maxLine, quote(b.String()))
		}
		if err == nil {
			return strings.TrimRight(b.String(), "\r\n"), nil
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return "", l.ended(err, b.String())
	}
}

// ended says why there is no more to read.
func (l lines) ended(err error, after string) error {
	switch {
	case !errors.Is(err, io.EOF):
		return err
	case l.left.N <= 0:
		return fmt.Errorf("more than %d bytes", maxAnswer)
	case after == "":
		return errors.New("the connection was closed")
	}
	return fmt.Errorf("the connection was closed after %s", quote(after))
}

// skip passes over n bytes.
func (l lines) skip(n int) error {
	if _, err := l.r.Discard(n); err != nil {
		return l.ended(err, "")
	}
	return nil
}

// A dialogue is one conversation with a mail server.
type dialogue struct {
	conn net.Conn
	in   lines
}

func (d dialogue) say(format string, args ...any) error {
	_, err := fmt.Fprintf(d.conn, format+"\r\n", args...)
	return err
}
