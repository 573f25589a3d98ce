// Package cli is what the two programs share at the surface that a user
// touches: the table from errors to exit codes and hints, how an error is
// printed, and how sizes and times read.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"srvfs/manifest"
)

// Exit codes, the same for both programs. They are part of the interface:
// scripts depend on them.
const (
	OK          = 0
	Failed      = 1   // anything without a code of its own
	Usage       = 2   // the command line is wrong; nothing was done
	NotFound    = 3   // no such service, unit, file or host
	Denied      = 4   // not paired, revoked, or not root
	Unavailable = 5   // no origin answers
	Damaged     = 6   // content does not match its digest
	Stale       = 7   // a file changed since the snapshot
	NoSpace     = 8   // the disk is full
	Unhealthy   = 9   // the service does not start, or its probes do not answer
	Interrupted = 130 // by SIGINT or SIGTERM
)

// Codes documents the exit codes, for the end of every help text.
const Codes = `Exit codes:
  0  done                          5  no origin answers
  1  failed                        6  content is damaged
  2  wrong command line            7  a file changed since the snapshot
  3  not found                     8  no space left
  4  not permitted, or not paired  9  the service does not start or answer
                                 130  interrupted`

// ErrUsage marks a mistake in the command line.
var ErrUsage = errors.New("usage")

// ErrRoot marks a command that needs root rights and has none.
var ErrRoot = errors.New("needs root rights")

// table is the one place where errors become exit codes. The name carries a
// sentinel across the daemon's control socket.
var table = []struct {
	err  error
	name string
	code int
	hint string
}{
	{context.Canceled, "canceled", Interrupted, ""},
	{ErrUsage, "usage", Usage, ""},
	{ErrRoot, "root", Denied, "run it as root, for example with sudo"},
	{manifest.ErrUnhealthy, "unhealthy", Unhealthy, ""},
	{manifest.ErrNoSpace, "nospace", NoSpace, "free some space, or choose another state folder with --state"},
	{manifest.ErrCorrupt, "corrupt", Damaged, ""},
	{manifest.ErrStale, "stale", Stale, "run `srvd capture` on the source again"},
	{manifest.ErrDenied, "denied", Denied, ""},
	{manifest.ErrNotFound, "notfound", NotFound, ""},
	{manifest.ErrUnavailable, "unavailable", Unavailable, "is that host up, and what should answer there running (`srvd serve`, `srvfs serve` on a standby, a registry)?"},
	{context.DeadlineExceeded, "deadline", Unavailable, ""},
	{manifest.ErrInvalid, "invalid", Failed, ""},
}

// Code returns the exit code and the hint for an error.
func Code(err error) (code int, hint string) {
	if err == nil {
		return OK, ""
	}
	for _, row := range table {
		if errors.Is(err, row.err) {
			return row.code, row.hint
		}
	}
	return Failed, ""
}

// Name returns the name under which the error's kind crosses the control
// socket, and Remote makes an error of that kind again.
func Name(err error) string {
	for _, row := range table {
		if errors.Is(err, row.err) {
			return row.name
		}
	}
	return ""
}

type remote struct {
	text string
	kind error
}

func (r *remote) Error() string { return r.text }
func (r *remote) Unwrap() error { return r.kind }

// Remote returns an error that reads as text and matches the sentinel called
// name, if there is one.
func Remote(name, text string) error {
	for _, row := range table {
		if row.name == name {
			return &remote{text, row.err}
		}
	}
	return errors.New(text)
}

// Main runs a program's root command with a context that SIGINT and SIGTERM
// end, prints what went wrong, and exits.
func Main(root *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`%w", err, c.CommandPath(), silent{ErrUsage})
	})
	profiled := profile(root.Name())
	err := root.ExecuteContext(ctx)
	profiled()
	interrupted := ctx.Err() != nil
	stop()
	code, hint := Code(err)
	if err != nil && interrupted {
		code, hint, err = Interrupted, "", errors.New("interrupted")
	}
	Print(os.Stderr, root.Name(), err, hint)
	os.Exit(code)
}

// silent gives an error a kind without adding to its text.
type silent struct{ kind error }

func (s silent) Error() string { return "" }
func (s silent) Unwrap() error { return s.kind }

// UsageError returns an error about the command line.
func UsageError(c *cobra.Command, format string, args ...any) error {
	return fmt.Errorf("%s; see `%s --help`%w", fmt.Sprintf(format, args...), c.CommandPath(), silent{ErrUsage})
}

// Args wraps a count of arguments so that its message says what is expected.
func Args(low, high int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < low:
			return UsageError(c, "%s needs %s", c.CommandPath(), what)
		case len(args) > high:
			return UsageError(c, "unexpected argument %q: %s takes %s", args[high], c.CommandPath(), orNothing(what))
		}
		return nil
	}
}

func orNothing(what string) string {
	if what == "" {
		return "no arguments"
	}
	return what
}

// Group makes a command that only has sub-commands answer an unknown one.
func Group(c *cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		msg := fmt.Sprintf("unknown command %q", args[0])
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			msg += fmt.Sprintf(": did you mean %q?", near[0])
		}
		return UsageError(c, "%s", msg)
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		_ = c.Help()
		return UsageError(c, "a command is missing")
	}
	c.SuggestionsMinimumDistance = 2
	return c
}

// Print writes an error as the user reads it: the program's name, what failed,
// and what to do next on a line of its own.
func Print(w io.Writer, program string, err error, hint string) {
	if err == nil {
		return
	}
	_, _ = fmt.Fprintf(w, "%s: %v\n", program, err)
	if hint != "" {
		_, _ = fmt.Fprintf(w, "%s: hint: %s\n", program, hint)
	}
}

// NeedRoot returns an error unless the process has root rights.
func NeedRoot(what string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s: %w", what, ErrRoot)
	}
	return nil
}

// JSON writes v indented, for --json.
func JSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
