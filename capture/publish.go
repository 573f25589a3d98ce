package capture

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// An edition is what is published together.
type edition struct {
	snapshot []byte
	meta     metaSet
	index    []byte
	scope    []byte // JSON; see scope
	// frozen are the files of which there are copies, in the folder copies.
	frozen []manifest.Digest
	copies string
}

// nextSequence returns the number for a new snapshot of service. It holds only
// for whoever holds the lock.
func (l *Library) nextSequence(service string) (uint64, error) {
	all, err := l.all()
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if p.Service == service {
			return p.Sequence + 1, nil
		}
	}
	return 1, nil
}

// publish numbers snap, and makes it the latest of its service. The edition's
// snapshot is encoded here, since only the holder of the lock knows the number.
func (l *Library) publish(snap *manifest.Snapshot, ed edition) (p Published, err error) {
	unlock, err := l.lock()
	if err != nil {
		return Published{}, err
	}
	defer unlock()
	defer func() {
		if err != nil {
			if errors.Is(err, unix.ENOSPC) {
				err = fmt.Errorf("%w: %w", manifest.ErrNoSpace, err)
			}
			err = fmt.Errorf("publish %s in %s: %w", snap.Service, l.dir, err)
		}
	}()
	all, err := l.all()
	if err != nil {
		return Published{}, err
	}
	if snap.Sequence, err = l.nextSequence(snap.Service); err != nil {
		return Published{}, err
	}
	if ed.snapshot, err = snap.Encode(); err != nil {
		return Published{}, err
	}
	p = Published{Service: snap.Service, Sequence: snap.Sequence, Digest: manifest.Sum(ed.snapshot), Created: snap.Created}
	if i := slices.IndexFunc(all, func(q Published) bool { return q.Service == p.Service }); i >= 0 {
		if slim, err := l.slim(all[i], ed); err == nil {
			ed = slim
		} // else the earlier ones can't be read, and the new one had better be whole
	}
	if err := l.adopt(ed.copies, ed.frozen); err != nil {
		return Published{}, err
	}
	return p, l.put(p, ed, all)
}

// put writes an edition and makes it the latest, besides all that there are. All that is
// written is flushed at once: each flush of its own would be a commit of the file
// system's journal, for which whoever else writes there waits too.
func (l *Library) put(p Published, ed edition, all []Published) error {
	kept := retain(append([]Published{p}, all...))
	var files unflushed
	defer files.close()
	parent := filepath.Dir(l.folder(p))
	made := os.Mkdir(parent, 0o700)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return made
	}
	tmp, err := os.MkdirTemp(parent, tempPrefix)
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := ed.write(tmp, &files); err != nil {
		return err
	}
	if err := l.writeCurrent(kept, &files); err != nil {
		return err
	}
	if err := files.flush(); err != nil {
		return err
	}
	// A folder of this number that "current" does not name is what a crash left.
	if err := os.RemoveAll(l.folder(p)); err != nil {
		return err
	}
	if err := os.Rename(tmp, l.folder(p)); err != nil {
		return err
	}
	if err := syncDir(parent); err != nil {
		return err
	}
	if made == nil {
		if err := syncDir(filepath.Dir(parent)); err != nil {
			return err
		}
	}
	if err := l.renameCurrent(); err != nil {
		return err
	}
	return errors.Join(l.sweep(kept), l.sweepFrozen(kept))
}

// retain returns what is kept of all snapshots, of which those of a service come
// latest first.
func retain(all []Published) []Published {
	created := map[string][]int64{}
	for _, p := range all {
		created[p.Service] = append(created[p.Service], p.Created)
	}
	keep := map[string][]bool{}
	for service, times := range created {
		keep[service] = manifest.Keep(times)
	}
	return slices.DeleteFunc(slices.Clone(all), func(p Published) bool {
		yes := keep[p.Service][0]
		keep[p.Service] = keep[p.Service][1:]
		return !yes
	})
}

// write writes all of an edition into a folder.
func (ed *edition) write(dir string, files *unflushed) error {
	parts := map[string]func(*bufio.Writer) error{
		"snapshot": func(w *bufio.Writer) error { _, err := w.Write(ed.snapshot); return err },
		"index":    func(w *bufio.Writer) error { _, err := w.Write(ed.index); return err },
		"meta":     ed.meta.writeTo,
		"scope":    func(w *bufio.Writer) error { _, err := w.Write(ed.scope); return err },
	}
	if len(ed.frozen) > 0 {
		parts[frozenFolder] = func(w *bufio.Writer) error {
			for _, d := range ed.frozen {
				if _, err := w.Write(d[:]); err != nil {
					return err
				}
			}
			return nil
		}
	}
	for name, write := range parts {
		if err := files.write(filepath.Join(dir, name), write); err != nil {
			return err
		}
	}
	return files.open(dir)
}

// tempPrefix begins the names of what is not complete. No service has such a
// name, and no snapshot such a number.
const tempPrefix = ".new-"

// setCurrent makes what all says what there is.
func (l *Library) setCurrent(all []Published) error {
	var files unflushed
	defer files.close()
	if err := l.writeCurrent(all, &files); err != nil {
		return err
	}
	if err := files.flush(); err != nil {
		return err
	}
	return l.renameCurrent()
}

// writeCurrent writes it down, and renameCurrent makes it count.
func (l *Library) writeCurrent(all []Published, files *unflushed) error {
	return files.write(filepath.Join(l.dir, currentName)+".new", func(w *bufio.Writer) error {
		if _, err := fmt.Fprintln(w, currentMagic); err != nil {
			return err
		}
		for _, p := range all {
			if _, err := fmt.Fprintf(w, "%s %d %s %d\n", p.Service, p.Sequence, p.Digest, p.Created); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *Library) renameCurrent() error {
	name := filepath.Join(l.dir, currentName)
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	return syncDir(l.dir)
}

// sweep removes the folders that "current" does not name and that none of those
// lies on: retired snapshots, and what a crash left. Where it can't be seen what a
// snapshot lies on, nothing of the service is removed.
func (l *Library) sweep(kept []Published) error {
	keep := map[string]bool{}
	unclear := map[string]bool{}
	for _, p := range kept {
		keep[filepath.Dir(l.folder(p))] = true
		for p.Sequence != 0 && !keep[l.folder(p)] {
			keep[l.folder(p)] = true
			base, err := l.baseOf(p)
			if err != nil {
				unclear[filepath.Dir(l.folder(p))] = true
			}
			p.Sequence = base
		}
	}
	services, err := os.ReadDir(filepath.Join(l.dir, "snapshots"))
	if err != nil {
		return err
	}
	for _, s := range services {
		dir := filepath.Join(l.dir, "snapshots", s.Name())
		if !keep[dir] {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			continue
		}
		if unclear[dir] {
			continue
		}
		editions, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range editions {
			if d := filepath.Join(dir, e.Name()); !keep[d] {
				if err := os.RemoveAll(d); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Remove takes the service and all its snapshots out of the library. The error
// wraps [manifest.ErrNotFound] if it is unknown.
func (l *Library) Remove(service string) error {
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := l.History(service); err != nil {
		return err
	}
	all, err := l.all()
	if err != nil {
		return err
	}
	kept := slices.DeleteFunc(all, func(p Published) bool { return p.Service == service })
	if err := l.setCurrent(kept); err != nil {
		return fmt.Errorf("remove %s from %s: %w", service, l.dir, err)
	}
	_ = os.Remove(l.missesFile(service)) // they mean nothing without it
	return errors.Join(l.sweep(kept), l.sweepFrozen(kept), l.sweepRoots(service))
}

// lock waits for whoever else publishes: the time of some writes and an fsync.
func (l *Library) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(l.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("library %s: %w", l.dir, err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			_ = f.Close()
			return nil, fmt.Errorf("library %s: lock: %w", l.dir, err)
		}
		time.Sleep(5 * time.Millisecond) // flock with a deadline does not exist
	}
}

// unflushed are files, and folders, that may not be on the disk yet.
type unflushed []*os.File

// write writes a file, which is not flushed.
func (u *unflushed) write(name string, write func(*bufio.Writer) error) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	*u = append(*u, f)
	w := bufio.NewWriterSize(f, 1<<16)
	if err := write(w); err != nil {
		return err
	}
	return w.Flush()
}

// open adds a folder.
func (u *unflushed) open(dir string) error {
	f, err := os.Open(dir)
	if err == nil {
		*u = append(*u, f)
	}
	return err
}

// flush waits until all are on the disk: together, so that the file system makes one
// commit of them.
func (u *unflushed) flush() error {
	errs := make([]error, len(*u))
	var wg sync.WaitGroup
	for i, f := range *u {
		wg.Go(func() { errs[i] = errors.Join(f.Sync(), f.Close()) })
	}
	wg.Wait()
	*u = nil
	return errors.Join(errs...)
}

func (u *unflushed) close() {
	for _, f := range *u {
		_ = f.Close()
	}
}

func writeFile(name string, write func(*bufio.Writer) error) error {
	var files unflushed
	defer files.close()
	if err := files.write(name, write); err != nil {
		return err
	}
	return files.flush()
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
