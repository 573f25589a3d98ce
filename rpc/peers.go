package rpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A Peer is a host that was paired with this source.
type Peer struct {
	Fingerprint Fingerprint `json:"fingerprint"`
	Name        string      `json:"name"`               // what the host called itself: for people, not to be relied on
	Address     string      `json:"address"`            // from where it paired
	Services    []string    `json:"services,omitempty"` // sorted; empty: all
	Paired      time.Time   `json:"paired"`
	Revoked     time.Time   `json:"revoked,omitzero"` // zero: it may read
}

// ID returns the name by which [Peers.Revoke] knows the peer.
func (p *Peer) ID() string { return p.Fingerprint.ID() }

// May reports whether the peer may read the service.
func (p *Peer) May(service string) bool {
	return p.Revoked.IsZero() && (len(p.Services) == 0 || slices.Contains(p.Services, service))
}

// Peers holds whom a source lets in: one file for each peer and each token, in
// a folder that several processes share. Files are replaced atomically, changes
// are made one at a time under a lock file, and readers need no lock. A Peers
// may be used by several goroutines.
type Peers struct {
	dir        string
	pair, list string // the commands of this host that make a token, and list peers

	mu    sync.Mutex
	cache map[Fingerprint]cachedPeer
}

// A cachedPeer is a peer's file as it was read, with the stat that shows that
// it is still the same one: a replaced file has another inode.
type cachedPeer struct {
	stat os.FileInfo
	peer Peer
}

const (
	maxRecord = 64 << 10 // bytes of a peer's, token's or source's file
	minPrefix = 4        // characters of an ID that a person must type
)

// OpenPeers opens the peers that are kept in the source's state folder dir,
// which must exist.
func OpenPeers(dir string) (*Peers, error) { return OpenPeersOf(dir, "srvd pair", "srvd peers") }

// OpenPeersOf is OpenPeers for a host where other commands make a token and list the
// peers.
func OpenPeersOf(dir, pair, list string) (*Peers, error) {
	for _, sub := range []string{"peers", "tokens"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("peers: %w", err)
		}
	}
	return &Peers{dir: dir, pair: pair, list: list, cache: map[Fingerprint]cachedPeer{}}, nil
}

// List returns the peers that may read, by the time they were paired. A file
// that can't be read is reported in the error, beside the peers of the others.
func (p *Peers) List() ([]Peer, error) {
	all, err := readRecords[Peer](filepath.Join(p.dir, "peers"))
	all = slices.DeleteFunc(all, func(v Peer) bool { return !v.Revoked.IsZero() })
	slices.SortFunc(all, func(a, b Peer) int { return a.Paired.Compare(b.Paired) })
	return all, err
}

// Revoke ends what a peer or a token that was not yet used may do, at once and
// also for transfers under way. The id is its ID or any beginning of it that
// has at least four characters and means one thing only. It returns what
// it revoked, for people. The error wraps ErrNotFound or ErrInvalid.
func (p *Peers) Revoke(id string) (string, error) {
	unlock, err := p.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	peers, err := readRecords[Peer](filepath.Join(p.dir, "peers"))
	tokens, tokenErr := readRecords[tokenRecord](filepath.Join(p.dir, "tokens"))
	if err := errors.Join(err, tokenErr); err != nil {
		return "", fmt.Errorf("revoke: %w", err)
	}
	peers = slices.DeleteFunc(peers, func(v Peer) bool {
		return !v.Revoked.IsZero() || !strings.HasPrefix(v.Fingerprint.String(), id)
	})
	now := time.Now()
	tokens = slices.DeleteFunc(tokens, func(t tokenRecord) bool {
		return !t.pending(now) || !strings.HasPrefix(t.Hash.String(), id)
	})
	switch n := len(peers) + len(tokens); {
	case len(id) < minPrefix:
		return "", fmt.Errorf("revoke %q: give at least %d characters: %w", id, minPrefix, manifest.ErrInvalid)
	case n == 0:
		return "", fmt.Errorf("revoke %.80q: no such peer or token (`%s` lists them): %w", id, p.list, manifest.ErrNotFound)
	case n > 1:
		return "", fmt.Errorf("revoke %.80q: %d peers and tokens begin so, give more of it: %w", id, n, manifest.ErrInvalid)
	}
	if len(peers) == 1 {
		v := peers[0]
		v.Revoked = now
		return fmt.Sprintf("peer %s (%s)", v.ID(), v.Name), p.writePeer(&v)
	}
	t := tokens[0]
	t.Revoked = now
	return "token " + t.Hash.ID(), p.writeToken(&t)
}

// lookup returns the peer with the fingerprint, as its file is at this moment.
// The error wraps ErrDenied if it may read nothing.
func (p *Peers) lookup(f Fingerprint) (Peer, error) {
	name := p.peerFile(f)
	st, err := os.Stat(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Peer{}, fmt.Errorf("host %s is not paired with this source: run `%s` here and `srvfs pair TOKEN` there: %w", f.ID(), p.pair, manifest.ErrDenied)
		}
		return Peer{}, fmt.Errorf("peer %s: %w", f.ID(), err)
	}
	p.mu.Lock()
	c, ok := p.cache[f]
	p.mu.Unlock()
	if !ok || !os.SameFile(c.stat, st) || c.stat.Size() != st.Size() || !c.stat.ModTime().Equal(st.ModTime()) {
		// The file may be replaced between stat and read. Then the stat is the
		// old one's, and the next lookup reads again.
		v, err := readRecord[Peer](name)
		if err == nil && v.Fingerprint != f {
			err = fmt.Errorf("%s: is of peer %s: %w", name, v.ID(), manifest.ErrInvalid)
		}
		if err != nil {
			return Peer{}, fmt.Errorf("peer %s: %w", f.ID(), err)
		}
		c = cachedPeer{st, v}
		p.mu.Lock()
		p.cache[f] = c
		p.mu.Unlock()
	}
	if !c.peer.Revoked.IsZero() {
		return Peer{}, fmt.Errorf("peer %s was revoked on %s: run `%s` here and `srvfs pair TOKEN` there to let it in again: %w",
			f.ID(), c.peer.Revoked.Format(time.DateTime), p.pair, manifest.ErrDenied)
	}
	return c.peer, nil
}

func (p *Peers) peerFile(f Fingerprint) string {
	return filepath.Join(p.dir, "peers", f.String()+".json")
}

func (p *Peers) writePeer(v *Peer) error { return writeRecord(p.peerFile(v.Fingerprint), v) }

// lock makes this goroutine the only one, of all processes, that changes peers
// and tokens. The lock goes with its holder, however that ends.
func (p *Peers) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(p.dir, "peers", ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	for {
		// Held for some milliseconds at most: not worth a context.
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("peers: lock: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// writeRecord replaces the file with v as JSON, safe against a crash.
func writeRecord(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := renameio.WriteFile(name, append(b, '\n'), 0o600, renameio.WithTempDir(filepath.Dir(name))); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func readRecord[T any](name string) (v T, err error) {
	f, err := os.Open(name)
	if err != nil {
		return v, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return v, err
	}
	if len(b) > maxRecord {
		return v, fmt.Errorf("%s: larger than %d bytes: %w", name, maxRecord, manifest.ErrInvalid)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("%s: damaged (%w); remove it: %w", name, err, manifest.ErrInvalid)
	}
	return v, nil
}

// readRecords reads all records of a folder; what can't be read is in the error.
func readRecords[T any](dir string) ([]T, error) {
	names, err := filepath.Glob(filepath.Join(dir, "[^.]*.json"))
	if err != nil {
		return nil, err
	}
	var all []T
	var errs []error
	for _, name := range names {
		v, err := readRecord[T](name)
		switch {
		case err == nil:
			all = append(all, v)
		case !errors.Is(err, fs.ErrNotExist): // removed since Glob
			errs = append(errs, err)
		}
	}
	return all, errors.Join(errs...)
}
