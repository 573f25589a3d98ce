package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// DefaultDeadline is how long a fetch may make no progress.
const DefaultDeadline = 10 * time.Second

// Options says where a store is and how it behaves.
type Options struct {
	// Dir is the store's folder. It is made if it is missing, its parent not.
	Dir string
	// HostRoot is the folder under which identical files of the host are
	// looked for, usually "/". Empty: nowhere.
	HostRoot string
	// Deadline is how long a fetch may make no progress, over all origins
	// together. Zero means DefaultDeadline.
	Deadline time.Duration
	// Log gets one line for each file that fails. Nil: nobody does.
	Log *slog.Logger
}

// A Store is content on disk. Its methods may be called from several
// goroutines. One process at a time has a store open.
type Store struct {
	dir      string
	deadline time.Duration
	log      *slog.Logger
	quiet    limiter
	stats    counters

	lock  *os.File
	blobs *os.File // the folder
	meta  *os.File // the folder
	tmp   *os.File // the folder
	stat  *statcache.Cache
	pins  *pinIndex
	host  *host // nil: there is none

	flights    flights
	demand     demand
	ahead      ahead
	histories  histories
	naming     sync.Mutex // held by who makes or removes a name in blobs or meta; taken before mu
	mu         sync.Mutex
	partials   map[manifest.Digest]*partial
	origins    map[string]*counter               // verified bytes by the name of the source
	pending    map[manifest.Digest]statcache.Key // verified blobs that are not flushed yet
	collecting sync.Mutex                        // held by Collect
	arrived    map[manifest.Digest]bool          // what has come in since Collect began; nil while it does not run
	flush      chan struct{}                     // wakes the flusher
	flushing   sync.Mutex
	metaNew    atomic.Bool // metadata was written that is not flushed yet
	temp       counter

	ctx  context.Context // of everything that outlives a call
	stop context.CancelFunc
	work sync.WaitGroup
}

// Open opens the store in o.Dir, and makes it if there is none. It fails if
// another process has it open, and names that process.
func Open(o Options) (*Store, error) {
	s := &Store{
		dir: o.Dir, deadline: o.Deadline, log: o.Log,
		partials: map[manifest.Digest]*partial{}, pending: map[manifest.Digest]statcache.Key{}, origins: map[string]*counter{},
		flush: make(chan struct{}, 1),
	}
	if s.deadline <= 0 {
		s.deadline = DefaultDeadline
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.open(o.HostRoot); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("store %s: %w", o.Dir, err)
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.flights.ctx, s.flights.work = s.ctx, &s.work
	s.work.Go(s.flusher)
	return s, nil
}

func (s *Store) open(hostRoot string) (err error) {
	// Blobs hold what only some may read on the source, such as private keys:
	// their own mode doesn't say so, hence the folder's does.
	if err := os.Mkdir(s.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if s.lock, err = lockFile(filepath.Join(s.dir, "lock")); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(s.dir, "tmp")); err != nil {
		return err
	}
	for _, name := range []string{"blobs", "partial", "meta", "snapshots", "tmp"} {
		if err := os.Mkdir(filepath.Join(s.dir, name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := tidyPartials(filepath.Join(s.dir, "partial")); err != nil {
		return err
	}
	for name, folder := range map[string]**os.File{"blobs": &s.blobs, "meta": &s.meta, "tmp": &s.tmp} {
		if *folder, err = os.Open(filepath.Join(s.dir, name)); err != nil {
			return err
		}
	}
	if s.stat, err = statcache.Open(filepath.Join(s.dir, "statcache")); err != nil {
		return err
	}
	if s.pins, err = openPins(filepath.Join(s.dir, "pins")); err != nil {
		return err
	}
	if hostRoot != "" {
		s.host, err = openHost(hostRoot, s.stat)
	}
	return err
}

// Close cancels all fetches, waits for them, flushes what was fetched, and
// lets another process open the store. Files that are open stay readable as
// far as they are whole.
func (s *Store) Close() error {
	s.flights.close()
	s.stop()
	s.work.Wait()
	err := s.flushPending()
	s.closeFiles()
	return err
}

func (s *Store) closeFiles() {
	for _, p := range s.partials {
		p.closeFiles()
	}
	// Nothing is buffered in any of them. The lock comes last.
	if s.host != nil {
		_ = s.host.Close()
	}
	if s.pins != nil {
		_ = s.pins.Close()
	}
	if s.stat != nil {
		_ = s.stat.Close()
	}
	for _, f := range []*os.File{s.blobs, s.meta, s.tmp, s.lock} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Dir returns the store's folder.
func (s *Store) Dir() string { return s.dir }

// BlobDir returns the folder that overlayfs can use as a data-only layer: the
// content with digest d is the file d.Hex() in it.
func (s *Store) BlobDir() string { return filepath.Join(s.dir, "blobs") }

func (s *Store) blobPath(d manifest.Digest) string { return filepath.Join(s.dir, "blobs", d.Hex()) }
func (s *Store) metaPath(d manifest.Digest) string { return filepath.Join(s.dir, "meta", d.Hex()) }
func (s *Store) partialPath(d manifest.Digest) string {
	return filepath.Join(s.dir, "partial", d.Hex())
}

// tempName returns a name in tmp that no other writer uses, tempPath its path.
func (s *Store) tempName() string { return strconv.FormatUint(s.temp.next(), 10) }
func (s *Store) tempPath() string { return filepath.Join(s.dir, "tmp", s.tempName()) }

// lockFile takes the lock at path for this process.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 20))
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("in use by process %s: stop it, or choose another folder", strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
