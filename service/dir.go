package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// The names in a service's directory.
const (
	lockName  = "lock"
	stateName = "state.json"
	upperName = "upper"
	newUpper  = "upper.new"
	workName  = "work"
	rootName  = "root"
	runName   = "run"
	logName   = "service.log"
	oldLog    = "service.log.1"
	doorName  = "door" // at which the sandbox is taken over
)

// maxState bounds state.json when it is read.
const maxState = 1 << 20

// A dir is a service's directory, locked.
type dir struct {
	path string
	lock *os.File
	made bool // by this start
}

func (d *dir) in(name string) string { return filepath.Join(d.path, name) }

// lockDir makes the directory if create is set, and locks it for this process
// until unlock. The error wraps ErrRunning when someone else has it, and
// fs.ErrNotExist when it is not there.
func lockDir(path string, create bool) (*dir, error) {
	if !manifest.ValidPath(path) || path == "/" {
		return nil, fmt.Errorf("service directory %q is not a clean absolute path: %w", path, manifest.ErrInvalid)
	}
	d := &dir{path: path}
	if create {
		err := os.Mkdir(path, 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("service directory: %w", err)
		}
		d.made = err == nil
	}
	// Setuid files and devices of the service lie below: nobody else may come here.
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("service directory: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("service directory %s is not a directory: %w", path, manifest.ErrInvalid)
	case create && info.Mode().Perm()&0o077 != 0:
		if err := os.Chmod(path, 0o700); err != nil {
			return nil, fmt.Errorf("service directory: %w", err)
		}
	}
	if !create {
		// Whoever gives a wrong path must not lose what is there.
		names, err := os.ReadDir(path)
		if err != nil {
			return nil, fmt.Errorf("service directory: %w", err)
		}
		if len(names) > 0 && !slices.ContainsFunc(names, func(e fs.DirEntry) bool { return e.Name() == lockName && e.Type().IsRegular() }) {
			return nil, fmt.Errorf("%s is not the directory of a service: it has no file %q: %w", path, lockName, manifest.ErrInvalid)
		}
	}
	for {
		f, err := os.OpenFile(d.in(lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock service directory: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("service directory %s: %w by a start, a running service or a removal: stop it first", path, ErrRunning)
			}
			return nil, fmt.Errorf("lock %s: %w", d.in(lockName), err)
		}
		// Whoever removed the directory held this lock: see that the file that is
		// locked is still the one that others would find.
		mine, err := f.Stat()
		if err == nil {
			var now fs.FileInfo
			if now, err = os.Lstat(d.in(lockName)); err == nil && os.SameFile(mine, now) {
				d.lock = f
				return d, nil
			}
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("lock service directory: %w", err)
		}
	}
}

// unlock lets others in. It may be called again.
func (d *dir) unlock() {
	_ = d.lock.Close()
}

// A record is what state.json holds: enough to clean up after a process that
// was killed, and for State.
type record struct {
	Name     string      `json:"name"`
	Root     string      `json:"root"` // root digest of the snapshot that the upper stands over
	Sequence uint64      `json:"sequence"`
	Owner    process     `json:"owner"`             // the process that starts and watches the service
	Init     process     `json:"init,omitzero"`     // pid 1 of the sandbox
	Since    time.Time   `json:"since"`             // of the start
	Ready    time.Time   `json:"ready,omitzero"`    // probes answered
	Stopped  time.Time   `json:"stopped,omitzero"`  // Stop is done
	Layered  bool        `json:"layered,omitempty"` // data-only layers
	Mark     string      `json:"mark"`              // see newMark
	Placed   Placed      `json:"placed,omitzero"`
	Units    []UnitState `json:"units,omitempty"`
	Mains    []process   `json:"mains,omitempty"`    // the main processes of these; a zero one is not known
	Outlives bool        `json:"outlives,omitempty"` // it goes on when Owner ends
}

// A process is known by its number and the moment it started, since numbers
// are used again.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot, as /proc/PID/stat has it
}

func (d *dir) save(r *record) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(d.in(stateName), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("record the state of the service: %w", err)
	}
	return nil
}

// load reads state.json. A missing file is an empty record.
func (d *dir) load() (*record, error) {
	f, err := os.Open(d.in(stateName))
	if errors.Is(err, fs.ErrNotExist) {
		return &record{}, nil
	} else if err != nil {
		return nil, fmt.Errorf("state of the service: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return nil, fmt.Errorf("state of the service: %w", err)
	}
	return decodeRecord(b)
}

// decodeRecord reads a state.json. The error wraps manifest.ErrInvalid.
func decodeRecord(b []byte) (*record, error) {
	var r record
	if len(b) > maxState {
		return nil, fmt.Errorf("%s exceeds %d bytes: %w", stateName, maxState, manifest.ErrInvalid)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", stateName, err, manifest.ErrInvalid)
	}
	if r.Root != "" {
		if _, err := manifest.ParseDigest(r.Root); err != nil {
			return nil, fmt.Errorf("%s: %w", stateName, err)
		}
	}
	if r.Mark != "" && !validMark(r.Mark) {
		return nil, fmt.Errorf("%s: mark %.80q: %w", stateName, r.Mark, manifest.ErrInvalid)
	}
	if r.Init.PID < 0 || r.Owner.PID < 0 || slices.ContainsFunc(r.Mains, func(p process) bool { return p.PID < 0 }) {
		return nil, fmt.Errorf("%s: negative process number: %w", stateName, manifest.ErrInvalid)
	}
	return &r, nil
}

// usage returns how many bytes the files below a folder take on disk. What
// vanishes meanwhile is not counted.
func usage(folder string) int64 {
	var n int64
	seen := map[[2]uint64]bool{}
	_ = filepath.WalkDir(folder, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it vanished: the service goes on while we count
		}
		info, err := e.Info()
		if err != nil {
			return nil //nolint:nilerr // the same
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !e.IsDir() {
			id := [2]uint64{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		n += st.Blocks * 512
		return nil
	})
	return n
}
