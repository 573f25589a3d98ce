package capture

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"srvfs/manifest"
)

// Options say what is captured, and how. One of Units, Init, Exec and PID must be
// set.
type Options struct {
	Name  string   `json:"-"`               // of the service; see [manifest.ValidService]
	Units []string `json:"units,omitempty"` // systemd units, in the order in which they start: "nginx"
	Init  string   `json:"init,omitempty"`  // a SysV script: a path, or a name in /etc/init.d
	Exec  []string `json:"exec,omitempty"`  // a command line
	PID   int      `json:"-"`               // the main process of a running instance
	// Packages are also taken: names of installed ones, with what they need, or
	// paths of package files (NAME.rpm), of which what is installed is taken.
	Packages []string `json:"packages,omitempty"`
	// RPMs are package files (NAME.rpm) that are unpacked to be the service's root,
	// for a server of which nothing else is left. Root must be empty.
	RPMs    []string `json:"rpms,omitempty"`
	Include []string `json:"include,omitempty"` // also take these absolute paths; of a folder, all that is below
	Exclude []string `json:"exclude,omitempty"` // leave these out: patterns, see [Pattern]
	Probes  []string `json:"probes,omitempty"`  // URLs that show that the service does its job; see package probe

	Root     string `json:"root,omitempty"` // folder on this host that is the service's "/"; empty is "/"
	StateDir string `json:"-"`              // empty is DefaultState

	// Watch is how long the running instance is watched for what it opens, beyond
	// what a start and the probes do: a renewal, a nightly job.
	Watch time.Duration `json:"watch,omitempty"`

	// Learn: what standbys look for in vain is learned wherever it is, and not only
	// in the service's packages and folders. See [Library.Missed].
	Learn bool `json:"learn,omitempty"`

	// What the service writes to is copied as of one moment; see freeze. Freeze and
	// Thaw are commands for a shell, run right before and after; NoFreeze copies
	// nothing, and standbys get such files only while they are unchanged.
	Freeze   string `json:"freeze,omitempty"`
	Thaw     string `json:"thaw,omitempty"`
	NoFreeze bool   `json:"no_freeze,omitempty"`

	// StartTimeout is how long a start may take, and how long the probes may
	// take to answer after it; 0 is what the unit says, at most 90 s. A capture
	// starts the service twice or more.
	StartTimeout time.Duration `json:"start_timeout,omitempty"`
	// Scratch bounds, in bytes of memory, what a disposable instance may write,
	// since all of it is thrown away; 0 is half of the host's memory, as tmpfs
	// has it. A first write to a large file copies it whole.
	Scratch int64 `json:"scratch,omitempty"`

	Log *slog.Logger `json:"-"` // nil is none
	// Progress, if not nil, is called at the end of each step: "unpack" (of RPMs), "find", "watch" (if asked for), "trace",
	// "close", "freeze" (of what it writes to), "build", "verify", "publish". The steps build and verify come
	// again when a verification has found something missing.
	Progress func(step string, took time.Duration, detail string) `json:"-"`
}

// A Result is what a capture has published.
type Result struct {
	Published
	Snapshot *manifest.Snapshot
	// Classes counts the entries shown under each class.
	Classes map[Class]Count
	Steps   []Step
	// Assumed: there was no probe, so nobody has asked the service whether it
	// does its job.
	Assumed bool
	// Learned are the paths that only the verification found missing.
	Learned []string
	// Healed are the files that standbys had looked for in vain.
	Healed []string
	// Warnings are for people: what the unit asks for and can't be captured,
	// libraries that are missing on the source too, and the like.
	Warnings []string
	// Log is the file with the output of the disposable instances.
	Log string
}

// A Count is of entries, and of regular files and their bytes among them.
type Count struct {
	Entries, Files, Bytes uint64
}

// A Step is one step of a capture, and how long it took.
type Step struct {
	Name   string
	Took   time.Duration
	Detail string
}

// check fills in defaults and refuses what can't be captured. Errors wrap
// [manifest.ErrInvalid], or [manifest.ErrDenied] without the rights.
func (o *Options) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("capture %.80q: %s: %w", o.Name, fmt.Sprintf(format, args...), manifest.ErrInvalid)
	}
	if !manifest.ValidService(o.Name) {
		return bad("a service name is up to 64 letters, digits, '.', '_' and '-', and begins with a letter, digit or '_'")
	}
	ways := 0
	for _, set := range []bool{len(o.Units) > 0, o.Init != "", len(o.Exec) > 0, o.PID != 0} {
		if set {
			ways++
		}
	}
	if ways != 1 {
		return bad("say how it starts: either units, or an init script, or a command, or a running process")
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("capture %s: %w: it reads every file and starts the service in a sandbox; run it as root", o.Name, manifest.ErrDenied)
	}
	if err := checkRights(); err != nil {
		return fmt.Errorf("capture %s: %w", o.Name, err)
	}
	if len(o.RPMs) > 0 && o.Root != "" && o.Root != "/" {
		return bad("packages are unpacked to be the root, and --root names another one")
	}
	if o.Root == "" {
		o.Root = "/"
	}
	abs, err := filepath.Abs(o.Root)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return fmt.Errorf("capture %s: root %s: %w: %w", o.Name, o.Root, err, manifest.ErrNotFound)
	}
	o.Root = abs
	if o.StateDir == "" {
		o.StateDir = DefaultState
	}
	if o.StateDir, err = filepath.Abs(o.StateDir); err != nil {
		return fmt.Errorf("capture %s: state folder: %w", o.Name, err)
	}
	if o.NoFreeze && (o.Freeze != "" || o.Thaw != "") || o.Thaw != "" && o.Freeze == "" {
		return bad("a thaw command goes with a freeze command, and neither with no freezing")
	}
	if o.StartTimeout < 0 || o.Scratch < 0 || o.Watch < 0 {
		return bad("a negative limit")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}
