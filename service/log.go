package service

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// maxLog is the size in bytes from which a start begins a new log file.
	maxLog = 16 << 20
	// tailBytes and tailLines bound what an error quotes of the log.
	tailBytes, tailLines = 8 << 10, 20
)

// A logFile takes what the service writes to its standard output and error.
type logFile struct {
	*os.File
	from int64 // its size when the start began
}

// openLog opens the service's log for appending. One that has grown large
// becomes service.log.1.
func openLog(d *dir) (*logFile, error) {
	path := d.in(logName)
	if info, err := os.Lstat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, d.in(oldLog)); err != nil {
			return nil, fmt.Errorf("log of the service: %w", err)
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("log of the service: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of the service: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("log of the service: %w", err), f.Close())
	}
	return &logFile{File: f, from: info.Size()}, nil
}

// tail returns the last lines that were written since the start began, safe to
// print.
func (l *logFile) tail() string {
	info, err := l.Stat()
	if err != nil || info.Size() <= l.from {
		return ""
	}
	off := max(l.from, info.Size()-tailBytes)
	b := make([]byte, info.Size()-off)
	n, err := l.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	return lastLines(string(b[:n]), tailLines)
}

// lastLines returns the last n lines of s without control characters that
// could play with a terminal.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	lines = lines[max(0, len(lines)-n):]
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == utf8.RuneError || r < ' ' || r >= 0x7f && r < 0xa0:
			return '?'
		}
		return r
	}, strings.Join(lines, "\n"))
}
