package service

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"srvfs/manifest"
	"srvfs/sandbox"
)

// ErrRunning: the service's directory is in use by a start, a running
// instance, a stop or a removal, of this process or another.
var ErrRunning = errors.New("in use")

// Layers are the folders that a root is built from. Overlayfs takes them as
// lowerdir=Stubs:Tree::Gate::Blobs::Failed.
type Layers struct {
	// Stubs is a layer above the tree that may be empty: a plain folder with some
	// of the tree's files, without content and with the tree's attributes and
	// redirects, for the kernel to find them without asking the tree.
	Stubs string
	// Tree is the lowest visible layer: a plain folder, a plain view, or, with
	// Blobs, a tree of which every regular file carries the two xattrs
	// trusted.overlay.metacopy (empty) and trusted.overlay.redirect ("/" and
	// the 64 hex digits of its digest).
	Tree string
	// Gate and Blobs are data-only layers, in which the redirects are looked
	// up in this order. Each may be empty: without Blobs nothing is
	// redirected; without Gate, Blobs must be complete.
	Gate, Blobs string
	// Failed is a data-only layer that is asked when none of the others has
	// the content, and answers with the reason: overlayfs reports the error of
	// the last layer that it asked. Without it a program that opens a file whose
	// content can't be had is told that there is no such file.
	Failed string
}

// Options say what to start and where.
type Options struct {
	// Name is the service's name here, as manifest.ValidService has it.
	Name string
	// Dir is the service's own folder, absolute, on a file system that
	// overlayfs can write to. It is made if missing, with mode 0700; the
	// folder that it lies in must exist.
	Dir string
	Layers
	// Snapshot says what to start and what proves that it works.
	Snapshot *manifest.Snapshot
	// Env is added to the environment of every unit, KEY=value, and wins over
	// what the unit says.
	Env []string
	// Prepared are files that the service will write to: they are put into the
	// upper before the first start, so that no first write waits until overlayfs
	// has copied one. An upper that is there already is left alone.
	Prepared []Prepared
	// Outlive lets the service go on when the calling process ends without a Stop,
	// once it has started; another one takes it over with [Resume]. None of the layers
	// may need the calling process.
	Outlive bool
	// Helper is a process that was prepared for the sandbox; nil: none was.
	Helper *sandbox.Helper
	// ReadyTimeout is how long the probes may take to answer once all units
	// have started; 30 s if zero. A unit's own start is bounded by its
	// StartMax (90 s if zero).
	ReadyTimeout time.Duration
	// Log gets what happens beside the errors that are returned; nil: nothing.
	Log *slog.Logger
	// Progress, if not nil, is told each step when it is done: "root",
	// "unit NAME" for each unit, "probes". It is called from Start.
	Progress func(step string, took time.Duration)
}

// A StartError says why a service did not start. Its message holds all of it,
// in several lines when there is output.
type StartError struct {
	Service string
	Unit    string   // empty: no unit failed; the probes did not answer
	Argv    []string // the command that failed; may be empty
	Exit    string   // how it ended ("exit status 1"); may be empty
	Log     string   // the last lines that the service wrote since the start
	LogFile string   // where the whole log is
	Err     error    // the reason
}

// Error implements error.
func (e *StartError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "service %s", e.Service)
	if e.Unit != "" {
		fmt.Fprintf(&b, ": unit %s", e.Unit)
	}
	if len(e.Argv) > 0 {
		fmt.Fprintf(&b, ": %.300s", strings.Join(e.Argv, " "))
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.Log == "" {
		fmt.Fprintf(&b, " (the service wrote nothing to %s)", e.LogFile)
	} else {
		fmt.Fprintf(&b, "; it wrote last (%s):\n  %s", e.LogFile, strings.ReplaceAll(e.Log, "\n", "\n  "))
	}
	return b.String()
}

// Unwrap returns the reason.
func (e *StartError) Unwrap() error { return e.Err }

// Is makes a StartError match [manifest.ErrUnhealthy].
func (e *StartError) Is(target error) bool { return target == manifest.ErrUnhealthy }
