//go:build !amd64

package trace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// A system call's number and arguments differ between architectures, and so
// does the table; it exists for amd64 alone.
var errUnsupported = fmt.Errorf("tracing is not supported on %s, only on amd64: %w; name the files with --include", runtime.GOARCH, errors.ErrUnsupported)

func supported() error { return errUnsupported }

func filter(_, _ bool) []unix.SockFilter { return nil }

func listens() bool { return false }

// A thread can't be started here.
type thread struct {
	done chan struct{}
	err  error
}

func newThread(*record, *reads) *thread { return &thread{done: make(chan struct{})} }

func (*thread) start(context.Context, int) error { return errUnsupported }

func (*thread) listen(*os.File) error { return errUnsupported }

func (*thread) kill() {}
