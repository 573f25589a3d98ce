package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"srvfs/manifest"
	"srvfs/manifest/statcache"
)

// Files that the service writes to are copied into the library, all as they were
// at one moment, so that the snapshot of a database is one that its own recovery
// understands, and stays what it is while the service goes on writing. A file
// system with reflinks makes that nearly free.
//
// The moment: when all are copied, all are looked at again, and those that have
// changed since they were copied are copied once more. When a look finds none
// changed, each was, when that look began, what its copy is. A freeze command makes
// that certain at the first try. A change through a mapping shows in no stat
// until the kernel writes it back: whoever has a database that writes so needs
// a freeze command.

const (
	frozenFolder = "frozen"
	// momentTries is how often files that go on changing are looked at. On a file
	// system with reflinks a try takes some 20 us for each that has changed;
	// without, copying ends when so many times their size has been written.
	momentTries = 50
	copyTimes   = 3
	// hookTimeout bounds a freeze or thaw command.
	hookTimeout = 30 * time.Second
)

// freelyCopied is how many bytes are copied, where there are no reflinks, without
// a freeze command: above that the copies would surprise by their space.
var freelyCopied int64 = 256 << 20

// A frozen is one file as it was at the moment.
type frozen struct {
	id      Identity // of the file on the source
	mtime   manifest.Time
	digest  manifest.Digest
	chunks  manifest.Digest
	name    string // of its copy, in the folder of this capture; its digest when that is known
	cloned  bool   // by reflink
	linked  bool   // an earlier capture's copy is still what it is
	started time.Time
	written int64 // bytes, for all copies of it that were made
}

// freeze copies what must be of one moment and is not yet copied. It does
// nothing if that is nothing.
func (c *capturing) freeze(ctx context.Context) (err error) {
	if c.NoFreeze {
		return nil
	}
	paths := c.closure.changing()
	fresh := slices.ContainsFunc(paths, func(p string) bool { return c.hasher.frozen[p] == nil && !c.unfrozen[p] })
	if !fresh {
		return nil
	}
	return c.step("freeze", func() (detail string, err error) {
		if err := c.holdFrozen(); err != nil {
			return "", err
		}
		c.unfrozen = map[string]bool{}
		all := map[string]*frozen{}
		var took time.Duration
		if took, err = c.moment(ctx, paths, all); err != nil {
			return "", err
		}
		if err := c.digestFrozen(ctx, all); err != nil {
			return "", err
		}
		c.hasher.frozen = all
		copied, cloned, bytes := 0, 0, int64(0)
		for _, f := range all {
			switch {
			case f.linked:
			case f.cloned:
				cloned++
			default:
				copied++
				bytes += f.id.Size
			}
		}
		return fmt.Sprintf("%d files as of one moment, within %.1f ms: %d unchanged, %d by reflink, %d copied (%.1f MB)",
			len(all), float64(took.Microseconds())/1e3, len(all)-copied-cloned, cloned, copied, float64(bytes)/1e6), nil
	})
}

// changing returns the files that must be of one moment: those that the service
// writes to, and what lies with them in a data folder, for the file beside a
// database may be its log.
func (c *closure) changing() []string {
	set := map[string]bool{}
	groups := map[string]bool{}
	for p, u := range c.uses {
		it := c.items[p]
		if !u.write || it == nil || it.fresh != "" {
			continue
		}
		set[p] = true
		for dir := range c.data {
			if inside(p, dir) {
				groups[dir] = true
			}
		}
	}
	for dir := range groups {
		var in []string
		for p, it := range c.items {
			if it.fresh == "" && inside(p, dir) {
				in = append(in, p)
			}
		}
		if len(in) > maxGroup {
			continue // a tree of mails: each is written once
		}
		for _, p := range in {
			set[p] = true
		}
	}
	var out []string
	for p := range set {
		if info, err := c.root.Lstat(p); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// maxGroup bounds what is taken for a database's folder.
const maxGroup = 20_000

// holdFrozen makes the folder of this capture, which others leave alone while it is
// locked. What is in it goes to the library's when the snapshot is published.
func (c *capturing) holdFrozen() error {
	if c.frozenDir != nil {
		return nil
	}
	parent := filepath.Join(c.StateDir, frozenFolder)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	unlock, err := c.library.lock() // nobody sweeps before it is held
	if err != nil {
		return err
	}
	defer unlock()
	dir, err := os.MkdirTemp(parent, tempPrefix)
	if err != nil {
		return err
	}
	c.frozenDir, err = holdRoot(dir)
	return err
}

// frozenFolder returns the folder of this capture's copies; "" if there are none.
func (c *capturing) frozenFolder() string {
	if c.frozenDir == nil {
		return ""
	}
	return c.frozenDir.Name()
}

// dropFrozen removes what a capture has copied and not published.
func (c *capturing) dropFrozen() {
	if c.frozenDir != nil {
		_ = os.RemoveAll(c.frozenDir.Name())
		_ = c.frozenDir.Close()
	}
}

// moment copies the files while the freeze command holds the service still, and
// tells how long that was.
func (c *capturing) moment(ctx context.Context, paths []string, all map[string]*frozen) (took time.Duration, err error) {
	var size int64
	for _, p := range paths {
		if info, err := c.root.Lstat(p); err == nil {
			size += info.Size()
		}
	}
	start := time.Now()
	if c.Freeze != "" {
		thaw := func() error {
			if c.Thaw == "" {
				return nil
			}
			if err := hook(context.WithoutCancel(ctx), "--thaw", c.Thaw, c.Name); err != nil {
				return fmt.Errorf("%w; the service may still be held: run it by hand: %s", err, c.Thaw)
			}
			return nil
		}
		if err := hook(ctx, "--freeze", c.Freeze, c.Name); err != nil {
			return 0, errors.Join(err, thaw())
		}
		defer func() {
			took = time.Since(start)
			err = errors.Join(err, thaw())
		}()
	}
	copyOne := func(p string) error {
		f, err := c.copyFrozen(p, all[p], size)
		switch {
		case errors.Is(err, errNotCopied):
			c.unfrozen[p] = true
			delete(all, p) // a copy of before is gone
		case err == nil && f != nil:
			all[p] = f
		case err == nil: // it is gone
			delete(all, p)
		default:
			return err
		}
		return nil
	}
	for _, p := range paths {
		if err := copyOne(p); err != nil {
			return 0, err
		}
	}
	written := func() (n int64) {
		for _, f := range all {
			n += f.written
		}
		return n
	}
	for range momentTries {
		if err := ctx.Err(); err != nil {
			return 0, context.Cause(ctx)
		}
		var changed []string
		for p, f := range all {
			if info, err := c.root.Lstat(p); err != nil || identify(info) != f.id {
				changed = append(changed, p)
			}
		}
		if len(changed) == 0 {
			if len(c.unfrozen) > 0 {
				c.warn(fmt.Sprintf("the service writes to %s in %d files, and this file system has no reflinks: they may be of different moments, and a standby can't have them when they have changed; give --freeze and --thaw, and they are copied", megabytes(size), len(c.unfrozen)))
			}
			return time.Since(start), nil
		}
		if written() > copyTimes*size {
			break
		}
		for _, p := range changed {
			if err := copyOne(p); err != nil {
				return 0, err
			}
		}
	}
	c.warn("what the service writes to went on changing while it was copied: the copies are of different moments; give --freeze and --thaw, or capture at a quieter time")
	return time.Since(start), nil
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// errNotCopied: without reflinks it would take too much space.
var errNotCopied = errors.New("not copied")

// copyFrozen copies one file, into the copy of before if there is one. total is what
// all would take without reflinks. It returns nil if the file is gone.
func (c *capturing) copyFrozen(p string, before *frozen, total int64) (*frozen, error) {
	live, err := openFile(c.dir, p)
	if err != nil && gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: p, Err: err}
	}
	from := os.NewFile(uintptr(live), p)
	defer func() { _ = from.Close() }()
	var st unix.Stat_t
	if err := fstat(live, &st); err != nil {
		return nil, fmt.Errorf("%s: stat: %w", p, err)
	}
	f := &frozen{id: identityOf(&st), mtime: manifest.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}, name: fmt.Sprintf("copy-%d", c.copies), started: time.Now()}
	c.copies++
	if before != nil {
		if f.written = before.written; !before.linked {
			f.name = before.name
		}
	}
	if c.linkFrozen(f) {
		return f, nil
	}
	name := filepath.Join(c.frozenDir.Name(), f.name)
	to, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlFileClone(int(to.Fd()), live); err == nil {
		f.cloned = true
		return f, to.Close()
	}
	if c.Freeze == "" && total > freelyCopied {
		return nil, errors.Join(errNotCopied, to.Close(), os.Remove(name))
	}
	// copy_file_range, by way of io: what the disk can share it may still share.
	n, err := io.Copy(to, from)
	f.written += n
	if err = errors.Join(err, to.Close()); errors.Is(err, unix.ENOSPC) {
		return nil, fmt.Errorf("copy %s into %s: %w: %w; the service writes to %s in all: make room, or leave them live with --no-freeze", p, c.frozenDir.Name(), manifest.ErrNoSpace, err, megabytes(total))
	} else if err != nil {
		return nil, fmt.Errorf("copy %s: %w", p, err)
	}
	return f, nil
}

// linkFrozen takes the copy that an earlier capture has made of the same bytes.
func (c *capturing) linkFrozen(f *frozen) bool {
	v, ok := c.cache.Get(f.id)
	if !ok || (f.id.Size > manifest.ChunkSize) == v.Chunks.IsZero() || !v.Chunks.IsZero() && !c.hasher.haveList(v.Chunks) {
		return false
	}
	old, own := filepath.Join(c.StateDir, frozenFolder, v.Digest.Hex()), filepath.Join(c.frozenDir.Name(), v.Digest.Hex())
	if info, err := os.Lstat(old); err != nil || info.Size() != f.id.Size {
		return false
	}
	if err := os.Link(old, own); err != nil && !errors.Is(err, fs.ErrExist) {
		return false
	}
	f.linked, f.digest, f.chunks, f.name = true, v.Digest, v.Chunks, v.Digest.Hex()
	return true
}

// digestFrozen names each copy by its digest.
func (c *capturing) digestFrozen(ctx context.Context, all map[string]*frozen) error {
	r := reader{hasher: c.hasher}
	defer r.record()
	for p, f := range all {
		if f.linked {
			continue
		}
		if err := c.digestOne(ctx, &r, f); err != nil {
			return fmt.Errorf("copy of %s: %w", p, err)
		}
	}
	return nil
}

func (c *capturing) digestOne(ctx context.Context, r *reader, f *frozen) error {
	name := filepath.Join(c.frozenDir.Name(), f.name)
	copied, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = copied.Close() }()
	info, err := copied.Stat()
	if err != nil {
		return err
	}
	if info.Size() > manifest.MaxChunks*manifest.ChunkSize {
		return fmt.Errorf("%d bytes exceed %d, the largest file that a snapshot can hold; leave it out with --exclude: %w", info.Size(), int64(manifest.MaxChunks*manifest.ChunkSize), manifest.ErrInvalid)
	}
	v, size, list, err := r.sum(ctx, int(copied.Fd()), info.Size())
	if err != nil {
		return err
	}
	if size != info.Size() {
		return fmt.Errorf("%d of %d bytes: %w", size, info.Size(), manifest.ErrCorrupt)
	}
	r.read += size
	if size == f.id.Size {
		r.records = append(r.records, statcache.Entry{Key: f.id, Value: v, Started: f.started})
	}
	f.id.Size = size // that of the copy, if it went on changing
	f.digest, f.chunks = v.Digest, v.Chunks
	if list != nil {
		c.hasher.mu.Lock()
		c.hasher.lists[v.Chunks] = list
		c.hasher.mu.Unlock()
	}
	f.name = v.Digest.Hex()
	return os.Rename(name, filepath.Join(c.frozenDir.Name(), f.name))
}

// hook runs a command of the administrator.
func hook(parent context.Context, flag, command, service string) error {
	ctx, cancel := context.WithTimeout(parent, hookTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env = append(os.Environ(), "SRVD_SERVICE="+service)
	cmd.WaitDelay = time.Second // what it has left running may hold its output
	out, err := cmd.CombinedOutput()
	switch {
	case parent.Err() != nil:
		return fmt.Errorf("%s %q: %w", flag, command, context.Cause(parent))
	case ctx.Err() != nil:
		err = fmt.Errorf("it did not return within %v", hookTimeout)
	}
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	said := strings.TrimSpace(string(out))
	if len(said) > 300 {
		said = said[:300] + "..."
	}
	if said != "" {
		said = "; it said: " + said
	}
	return fmt.Errorf("%s %q: %w%s", flag, command, err, said)
}

// frozenDigests returns what of the tree is frozen.
func (t *tree) frozenDigests() []manifest.Digest {
	var out []manifest.Digest
	seen := map[manifest.Digest]bool{}
	for _, n := range t.nodes {
		if n.frozen && !seen[n.entry.Digest] {
			seen[n.entry.Digest] = true
			out = append(out, n.entry.Digest)
		}
	}
	return out
}

// adopt moves the copies of a capture into the library. The caller holds the lock.
func (l *Library) adopt(from string, digests []manifest.Digest) error {
	if len(digests) == 0 {
		return nil
	}
	dir := filepath.Join(l.dir, frozenFolder)
	var group errgroup.Group
	group.SetLimit(16) // one commit of the disk's journal serves all that wait for it
	for _, d := range digests {
		group.Go(func() error {
			name := filepath.Join(from, d.Hex())
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				return err
			}
			return os.Rename(name, filepath.Join(dir, d.Hex()))
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return syncDir(dir)
}

// sweepFrozen removes the copies that none of the last snapshots has, and what a crash
// left of a capture. The caller holds the lock.
func (l *Library) sweepFrozen(kept []Published) error {
	dir := filepath.Join(l.dir, frozenFolder)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	used := map[string]bool{}
	count := map[string]int{}
	for _, p := range kept {
		if count[p.Service]++; count[p.Service] > KeptFrozen {
			continue
		}
		list, err := l.frozenList(p)
		if err != nil {
			return err
		}
		for _, d := range list {
			used[d.Hex()] = true
		}
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch {
		case used[e.Name()]:
		case strings.HasPrefix(e.Name(), tempPrefix):
			if err := sweepRoot(name); err != nil {
				return err
			}
		default:
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// frozenList returns the frozen files of a snapshot.
func (l *Library) frozenList(p Published) ([]manifest.Digest, error) {
	b, err := os.ReadFile(filepath.Join(l.folder(p), frozenFolder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || len(b)%manifest.DigestSize != 0 {
		return nil, fmt.Errorf("snapshot %d of %s: frozen files: %d bytes: %w", p.Sequence, p.Service, len(b), errors.Join(err, manifest.ErrCorrupt))
	}
	out := make([]manifest.Digest, len(b)/manifest.DigestSize)
	for i := range out {
		out[i] = manifest.Digest(b[i*manifest.DigestSize:])
	}
	return out, nil
}
