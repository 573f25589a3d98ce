package capture

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"srvfs/manifest"
)

// DefaultState is the source's state folder.
const DefaultState = "/var/lib/srvd"

// KeptFrozen is for how many snapshots of a service a Library keeps the copies of what
// changes. The others that it keeps (see [manifest.Keep]) are for standbys that still
// show them, and for looking back: as long as a file has not changed, it can be had.
const KeptFrozen = 3

// A Library is a folder of published snapshots:
//
//	current                     which snapshots there are; replaced by rename
//	lock                        held by whoever publishes or removes
//	snapshots/NAME/SEQUENCE/
//	    snapshot                the encoded [manifest.Snapshot]
//	    meta                    its directory pages and chunk lists
//	    index                   its entries, with reasons and live identities
//	                            (of both, what the snapshot that it lies on has not)
//	    scope                   what may be learned from its standbys
//	misses/NAME                 what they have looked for in vain
//
// A snapshot lies on an earlier one if it has much in common with that, whose folder
// then stays for as long as it is needed, whether "current" names it or not.
//
// A snapshot's folder is complete, and on disk, before "current" names it, and
// never changes afterwards. So a crash leaves the snapshots that were there, and
// a reader in another process needs no lock: it compares the stat of "current"
// with what it saw last.
//
// A Library is safe for concurrent use, in this process and among several.
type Library struct {
	dir string

	mu       sync.Mutex
	counters map[string]*followCounters // by service; see FollowStats
}

// OpenLibrary opens the library in the state folder dir, which is made, for
// root alone, if it does not exist.
func OpenLibrary(dir string) (*Library, error) {
	if err := os.MkdirAll(filepath.Join(dir, "snapshots"), 0o700); err != nil {
		return nil, fmt.Errorf("state folder %s: %w", dir, err)
	}
	return &Library{dir: dir}, nil
}

// Dir returns the state folder.
func (l *Library) Dir() string { return l.dir }

// A Published names one snapshot of a library.
type Published struct {
	Service  string
	Sequence uint64
	Digest   manifest.Digest // of the encoded snapshot
	Created  int64           // nanoseconds since 1970; 0 of one that an early version published
}

// currentName is the file that says which snapshots there are.
const currentName = "current"

// currentMagic is its first line. The first format had no times.
const (
	currentMagic      = "srvd current 2"
	currentMagicFirst = "srvd current 1"
)

// maxCurrent bounds the file "current": 100 bytes for each snapshot.
const maxCurrent = 16 << 20

// List returns the latest snapshot of each service, sorted by name.
func (l *Library) List() ([]Published, error) {
	all, err := l.all()
	if err != nil {
		return nil, err
	}
	return slices.CompactFunc(all, func(a, b Published) bool { return a.Service == b.Service }), nil
}

// all returns every snapshot: by service, latest first.
func (l *Library) all() ([]Published, error) {
	b, err := os.ReadFile(filepath.Join(l.dir, currentName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		var all []Published
		if all, err = parseCurrent(b); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("library %s: %w", l.dir, err)
}

func parseCurrent(b []byte) ([]Published, error) {
	if len(b) > maxCurrent {
		return nil, fmt.Errorf("current: %d bytes: %w", len(b), manifest.ErrInvalid)
	}
	scan := bufio.NewScanner(bytes.NewReader(b))
	if !scan.Scan() || scan.Text() != currentMagic && scan.Text() != currentMagicFirst {
		return nil, fmt.Errorf("current: not written by this program: %w", manifest.ErrInvalid)
	}
	fields := 4
	if scan.Text() == currentMagicFirst {
		fields = 3
	}
	var all []Published
	for scan.Scan() {
		f := strings.Fields(scan.Text())
		if len(f) != fields || !manifest.ValidService(f[0]) {
			return nil, fmt.Errorf("current: line %.200q: %w", scan.Text(), manifest.ErrInvalid)
		}
		seq, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("current: line %.200q: %w", scan.Text(), manifest.ErrInvalid)
		}
		d, err := manifest.ParseDigest(f[2])
		if err != nil {
			return nil, fmt.Errorf("current: %w", err)
		}
		p := Published{Service: f[0], Sequence: seq, Digest: d}
		if fields == 4 {
			if p.Created, err = strconv.ParseInt(f[3], 10, 64); err != nil {
				return nil, fmt.Errorf("current: line %.200q: %w", scan.Text(), manifest.ErrInvalid)
			}
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Published) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(b.Sequence, a.Sequence))
	})
	return all, scan.Err()
}

// History returns the snapshots of service that are kept, the latest first. The error
// wraps [manifest.ErrNotFound] if there are none.
func (l *Library) History(service string) ([]Published, error) {
	all, err := l.all()
	if err != nil {
		return nil, err
	}
	var names []string
	var found []Published
	for _, p := range all {
		if p.Service == service {
			found = append(found, p)
		}
		if n := len(names); n == 0 || names[n-1] != p.Service {
			names = append(names, p.Service)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	have := "there is none; make one with `srvd capture`"
	if len(names) > 0 {
		have = "there are " + strings.Join(names, ", ")
	}
	return nil, fmt.Errorf("service %q in %s: %w: %s", service, l.dir, manifest.ErrNotFound, have)
}

// find returns the snapshot that ref names. The error wraps [manifest.ErrNotFound] if
// there is none.
func (l *Library) find(ref manifest.Ref) (Published, error) {
	all, err := l.History(ref.Service)
	if err != nil {
		return Published{}, err
	}
	numbers := make([]string, len(all))
	for i, p := range all {
		if ref.Names(p.Sequence, p.Created) {
			return p, nil
		}
		numbers[i] = strconv.FormatUint(p.Sequence, 10)
	}
	return Published{}, fmt.Errorf("snapshot %s: %w: those that are kept are %s", ref, manifest.ErrNotFound, strings.Join(numbers, ", "))
}

func (l *Library) folder(p Published) string {
	return filepath.Join(l.dir, "snapshots", p.Service, strconv.FormatUint(p.Sequence, 10))
}

// again calls read with the snapshot that ref names, and once more if that
// one was retired in between by a newer.
func (l *Library) again(ref manifest.Ref, read func(Published) error) error {
	for {
		p, err := l.find(ref)
		if err != nil {
			return err
		}
		err = read(p)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if q, e := l.find(ref); e != nil || q == p {
			return err
		}
	}
}

// Encoded returns a snapshot as it was published. The error wraps
// [manifest.ErrNotFound] if there is none, and
// [manifest.ErrCorrupt] if the disk no longer holds what was published.
func (l *Library) Encoded(ref manifest.Ref) ([]byte, error) {
	var b []byte
	err := l.again(ref, func(p Published) (err error) {
		b, err = l.encoded(p)
		return err
	})
	return b, err
}

func (l *Library) encoded(p Published) ([]byte, error) {
	name := filepath.Join(l.folder(p), "snapshot")
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("snapshot %d of %s: %w", p.Sequence, p.Service, err)
	}
	if manifest.Sum(b) != p.Digest {
		return nil, fmt.Errorf("snapshot %d of %s: %s: %w: capture the service again", p.Sequence, p.Service, name, manifest.ErrCorrupt)
	}
	return b, nil
}

// Snapshot returns a snapshot, with the errors of Encoded.
func (l *Library) Snapshot(ref manifest.Ref) (*manifest.Snapshot, error) {
	b, err := l.Encoded(ref)
	if err != nil {
		return nil, err
	}
	return manifest.DecodeSnapshot(b)
}

// Entries yields every path of a snapshot, the root not
// included, in the byte order of the paths. An error ends it.
func (l *Library) Entries(ref manifest.Ref) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var x *layered
		err := l.again(ref, func(p Published) (err error) {
			x, err = l.layers(p)
			return err
		})
		if err != nil {
			yield(Entry{}, err)
			return
		}
		x.entries()(yield)
	}
}

// Root returns the folder on this host that is the "/" of the service's latest
// snapshot.
func (l *Library) Root(service string) (string, error) {
	var root string
	err := l.again(manifest.Ref{Service: service}, func(p Published) error {
		x, err := l.index(p)
		if err == nil {
			root = x.root
		}
		return err
	})
	return root, err
}

// index reads what a snapshot itself has.
func (l *Library) index(p Published) (*index, error) {
	x, err := openIndex(filepath.Join(l.folder(p), "index"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("snapshot %d of %s: %w", p.Sequence, p.Service, err)
	case err != nil:
		return nil, fmt.Errorf("snapshot %d of %s: %w: capture the service again", p.Sequence, p.Service, err)
	}
	return x, nil
}

// Why returns the reasons for which the path is in a snapshot, sorted by class. Symlinks
// in path are not followed. The error wraps
// [manifest.ErrNotFound] if there is no such snapshot or the path is not in, and
// then says the nearest folder above that is.
func (l *Library) Why(ref manifest.Ref, p string) ([]Reason, error) {
	p = path.Clean("/" + p)
	if p == "/" {
		return []Reason{{Class: ClassRule, Text: "the root"}}, nil
	}
	near := "/"
	for e, err := range l.Entries(ref) {
		if err != nil {
			return nil, err
		}
		if e.Path == p {
			return e.Reasons, nil
		}
		if e.Path > p {
			break
		}
		if strings.HasPrefix(p, e.Path+"/") && len(e.Path) > len(near) {
			near = e.Path
			if e.Type == manifest.Symlink {
				return nil, fmt.Errorf("%s in service %s: %w: %s is a symlink; ask for where it leads", p, ref, manifest.ErrNotFound, near)
			}
		}
	}
	return nil, fmt.Errorf("%s in service %s: %w: it has no such path below %s; add it with `srvd capture %s --include`", p, ref, manifest.ErrNotFound, near, ref.Service)
}
