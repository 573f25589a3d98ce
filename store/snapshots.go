package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// A SnapshotRef names a stored snapshot.
type SnapshotRef struct {
	Source, Service string
	Sequence        uint64
	Digest          manifest.Digest // of its encoding
}

// sourceDir returns the folder of a source's snapshots. Any name will do, such
// as "web1:7411".
func (s *Store) sourceDir(source string) (string, error) {
	name := url.PathEscape(source)
	if source == "" || len(name) > manifest.MaxName || strings.HasPrefix(name, ".") {
		return "", fmt.Errorf("%.80q can't name a source: %w", source, manifest.ErrInvalid)
	}
	return filepath.Join(s.dir, "snapshots", name), nil
}

func (s *Store) serviceDir(source, service string) (string, error) {
	dir, err := s.sourceDir(source)
	if err == nil && !manifest.ValidService(service) {
		err = fmt.Errorf("%.80q can't name a service: %w", service, manifest.ErrInvalid)
	}
	return filepath.Join(dir, service), err
}

// SaveSnapshot keeps a snapshot under its source and service, besides those
// that are there. When it returns it is on the disk. The error wraps
// ErrInvalid or ErrNoSpace, or is one of the file system.
func (s *Store) SaveSnapshot(source string, snap *manifest.Snapshot) error {
	b, err := snap.Encode()
	if err != nil {
		return err
	}
	dir, err := s.serviceDir(source, snap.Service)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, fmt.Sprintf("%d-%s", snap.Sequence, manifest.Sum(b).Hex()))
	temp := s.tempPath()
	err = errors.Join(os.MkdirAll(dir, 0o700), writeSynced(temp, b))
	if err == nil {
		err = errors.Join(os.Rename(temp, name), syncDir(dir), syncDir(filepath.Dir(dir)), syncDir(filepath.Join(s.dir, "snapshots")))
	}
	if err != nil {
		_ = os.Remove(temp)
	}
	return s.onDisk(err, "snapshot of "+snap.Service, int64(len(b)))
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// LoadSnapshot returns the newest stored snapshot of a source's service: the
// one of the highest sequence number that is intact. The error wraps
// ErrNotFound if there is none.
func (s *Store) LoadSnapshot(source, service string) (*manifest.Snapshot, error) {
	return s.loadSnapshot(source, service, 0)
}

// LoadSnapshotAt is LoadSnapshot for one sequence number.
func (s *Store) LoadSnapshotAt(source, service string, sequence uint64) (*manifest.Snapshot, error) {
	return s.loadSnapshot(source, service, sequence)
}

func (s *Store) loadSnapshot(source, service string, sequence uint64) (*manifest.Snapshot, error) {
	dir, err := s.serviceDir(source, service)
	if err != nil {
		return nil, err
	}
	refs, err := snapshotsIn(dir, source, service)
	if err != nil {
		return nil, err
	}
	for i := len(refs) - 1; i >= 0; i-- {
		ref := refs[i]
		if sequence != 0 && ref.Sequence != sequence {
			continue
		}
		name := filepath.Join(dir, snapshotName(ref))
		b, err := os.ReadFile(name)
		if err == nil && manifest.Sum(b) != ref.Digest {
			err = manifest.ErrCorrupt
		}
		var snap *manifest.Snapshot
		if err == nil {
			snap, err = manifest.DecodeSnapshot(b)
		}
		if err == nil {
			return snap, nil
		}
		s.log.Warn("a stored snapshot can't be read", "path", name, "err", err)
	}
	return nil, fmt.Errorf("snapshot of %s from %s in %s: %w", service, source, s.dir, manifest.ErrNotFound)
}

// HasSnapshot reports whether a snapshot is stored under its source, and intact: the
// next process will find it.
func (s *Store) HasSnapshot(source string, snap *manifest.Snapshot) bool {
	d, err := snap.Digest()
	if err != nil {
		return false
	}
	dir, err := s.serviceDir(source, snap.Service)
	if err != nil {
		return false
	}
	b, err := os.ReadFile(filepath.Join(dir, snapshotName(SnapshotRef{Sequence: snap.Sequence, Digest: d})))
	return err == nil && manifest.Sum(b) == d
}

// snapshotsIn lists a service's snapshots by rising sequence number.
func snapshotsIn(dir, source, service string) (refs []SnapshotRef, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		number, hex, _ := strings.Cut(e.Name(), "-")
		seq, nerr := strconv.ParseUint(number, 10, 64)
		d, derr := manifest.ParseDigest(hex)
		if nerr == nil && derr == nil {
			refs = append(refs, SnapshotRef{Source: source, Service: service, Sequence: seq, Digest: d})
		}
	}
	sortRefs(refs)
	return refs, err
}

// Snapshots lists all stored snapshots: by source, service, and rising
// sequence number.
func (s *Store) Snapshots() ([]SnapshotRef, error) {
	var all []SnapshotRef
	top := filepath.Join(s.dir, "snapshots")
	sources, err := os.ReadDir(top)
	if err != nil {
		return nil, err
	}
	for _, src := range sources {
		source, err := url.PathUnescape(src.Name())
		if err != nil {
			continue
		}
		services, err := os.ReadDir(filepath.Join(top, src.Name()))
		if err != nil {
			return nil, err
		}
		for _, svc := range services {
			refs, err := snapshotsIn(filepath.Join(top, src.Name(), svc.Name()), source, svc.Name())
			if err != nil {
				return nil, err
			}
			all = append(all, refs...)
		}
	}
	sortRefs(all)
	return all, nil
}

func sortRefs(refs []SnapshotRef) {
	slices.SortFunc(refs, func(a, b SnapshotRef) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Sequence, b.Sequence),
			cmp.Compare(a.Digest.Hex(), b.Digest.Hex()))
	})
}

// RetainSnapshots forgets the stored snapshots that are not kept any more (see
// [manifest.Keep]), but for those of which used says that they are needed. Their
// content stays until it is collected.
func (s *Store) RetainSnapshots(used func(SnapshotRef) bool) error {
	refs, err := s.Snapshots()
	if err != nil {
		return err
	}
	for len(refs) > 0 {
		n := 1
		for n < len(refs) && refs[n].Source == refs[0].Source && refs[n].Service == refs[0].Service {
			n++
		}
		of := slices.Clone(refs[:n])
		refs = refs[n:]
		slices.Reverse(of)
		created := make([]int64, len(of))
		for i, ref := range of {
			snap, err := s.LoadSnapshotAt(ref.Source, ref.Service, ref.Sequence)
			if err != nil {
				return err
			}
			created[i] = snap.Created
		}
		for i, keep := range manifest.Keep(created) {
			if keep || used(of[i]) {
				continue
			}
			dir, err := s.serviceDir(of[i].Source, of[i].Service)
			if err == nil {
				err = os.Remove(filepath.Join(dir, snapshotName(of[i])))
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func snapshotName(ref SnapshotRef) string {
	return fmt.Sprintf("%d-%s", ref.Sequence, ref.Digest.Hex())
}

// RemoveSnapshots forgets all snapshots of a source's service. Their content
// stays.
func (s *Store) RemoveSnapshots(source, service string) error {
	dir, err := s.serviceDir(source, service)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Remove(filepath.Dir(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}
