package capture

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"srvfs/capture/pkgdb"
	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// A Miss is a path that a service on a standby looked for in vain, and that
// exists on the source: what the capture did not see.
type Miss struct {
	Path    string           `json:"path"`    // canonical
	Standby string           `json:"standby"` // its name
	Time    time.Time        `json:"time"`
	Verdict manifest.Verdict `json:"verdict"` // never VerdictAbsent
	// Since is the number of the snapshot since which it is in; 0: it is not yet.
	Since uint64 `json:"since,omitempty"`
}

// maxKeptMisses bounds what is kept of one service: there are few, or the
// service lacks a whole folder that somebody should name.
const maxKeptMisses = 4096

const maxMissesFile = 32 << 20

func (l *Library) missesFile(service string) string {
	return filepath.Join(l.dir, "misses", service)
}

// Misses returns what standbys have reported of the service, sorted by path: what
// is not yet in a snapshot, and what came in so and is taken again by every capture.
func (l *Library) Misses(service string) ([]Miss, error) {
	if !manifest.ValidService(service) {
		return nil, fmt.Errorf("service %.80q: not a service name: %w", service, manifest.ErrInvalid)
	}
	b, err := os.ReadFile(l.missesFile(service))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		var all []Miss
		if all, err = decodeMisses(b); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("misses of %s: %w", service, err)
}

func decodeMisses(b []byte) ([]Miss, error) {
	if len(b) > maxMissesFile {
		return nil, fmt.Errorf("%d bytes: %w", len(b), manifest.ErrInvalid)
	}
	var all []Miss
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("%w: %w", err, manifest.ErrInvalid)
	}
	for _, m := range all {
		if !manifest.ValidPath(m.Path) || !m.Verdict.Valid() {
			return nil, fmt.Errorf("%.300q, %v: %w", m.Path, m.Verdict, manifest.ErrInvalid)
		}
	}
	return all, nil
}

// Missed takes a standby's report of paths that the service there looked for in
// vain, and notes those that exist here. The verdicts are for the standby: what
// exists outside of the service, or stays out, is absent for it. The error wraps
// [manifest.ErrNotFound] if the service is unknown, and [manifest.ErrInvalid] if
// there are more than [manifest.MaxMisses].
func (l *Library) Missed(ctx context.Context, service, standby string, paths []string) ([]manifest.Verdict, error) {
	if len(paths) > manifest.MaxMisses {
		return nil, fmt.Errorf("report of %d paths: at most %d: %w", len(paths), manifest.MaxMisses, manifest.ErrInvalid)
	}
	var j *judge
	err := l.again(manifest.Ref{Service: service}, func(p Published) error {
		x, err := l.index(p)
		if err != nil {
			return err
		}
		s, err := l.scope(p)
		if err != nil {
			return fmt.Errorf("snapshot %d of %s: %w: capture the service again", p.Sequence, p.Service, err)
		}
		root, err := rootfs.New(x.root)
		if err != nil {
			return fmt.Errorf("%w: %w", err, manifest.ErrUnavailable)
		}
		if j, err = newJudge(s, root); err != nil {
			return errors.Join(err, root.Close())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = j.root.Close() }()
	verdicts := make([]manifest.Verdict, len(paths))
	var found []Miss
	now := time.Now().Round(time.Second)
	for i, p := range paths {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		v, canonical, err := j.verdict(p)
		if err != nil {
			return nil, err
		}
		if v != manifest.VerdictAbsent {
			found = append(found, Miss{Path: canonical, Standby: standby, Time: now, Verdict: v})
		}
		if v == manifest.VerdictNoted {
			verdicts[i] = v
		}
	}
	if len(found) == 0 {
		return verdicts, nil
	}
	return verdicts, l.note(service, found)
}

// note adds to the misses of a service.
func (l *Library) note(service string, found []Miss) error {
	return l.changeMisses(service, func(all []Miss) []Miss {
		known := map[string]int{}
		for i, m := range all {
			known[m.Path] = i
		}
		for _, m := range found {
			if i, ok := known[m.Path]; ok {
				all[i].Verdict = m.Verdict // the service may have been captured with --learn since
				continue
			}
			if len(all) == maxKeptMisses {
				break
			}
			known[m.Path] = len(all)
			all = append(all, m)
		}
		return all
	})
}

// changeMisses replaces the misses of a service, if that changes them.
func (l *Library) changeMisses(service string, change func([]Miss) []Miss) error {
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	old, err := l.Misses(service)
	if err != nil {
		old = nil // damaged: what was in it will be reported again
	}
	all := change(slices.Clone(old))
	if slices.Equal(all, old) && err == nil {
		return nil
	}
	name := l.missesFile(service)
	if len(all) == 0 {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	slices.SortFunc(all, func(a, b Miss) int { return strings.Compare(a.Path, b.Path) })
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if err := writeFile(name+".new", func(w *bufio.Writer) error { _, err := w.Write(b); return err }); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// missed adds what standbys have looked for in vain. It is judged again: since it
// was noted, a path may have come to lead elsewhere.
//
// Of a path with several names that are not in, the kernel asks for the first alone.
// So a folder stands for what was looked for in it: it comes with what the service's
// packages have there, or with all if the whole folder is learned.
func (c *capturing) missed(ctx context.Context) error {
	all, err := c.library.Misses(c.Name)
	if errors.Is(err, manifest.ErrInvalid) {
		c.warn(err.Error() + "; what standbys have reported is lost")
		err = nil
	}
	if err != nil || len(all) == 0 {
		return err
	}
	p, err := c.library.find(manifest.Ref{Service: c.Name})
	if errors.Is(err, manifest.ErrNotFound) {
		return nil // the service was removed
	}
	if err != nil {
		return err
	}
	s, err := c.library.scope(p)
	if err != nil {
		return err
	}
	s.Exclude, s.Learn = c.Exclude, c.Learn
	j, err := newJudge(s, c.root)
	if err != nil {
		return err
	}
	j.db, j.opened = c.service.db, true
	for _, m := range all {
		v, canonical, err := j.verdict(m.Path)
		if err != nil {
			return err
		}
		// What was learned from outside stays in, also when nothing more is to be learned.
		outside := v == manifest.VerdictOutside && m.Since > 0
		if v != manifest.VerdictNoted && !outside {
			continue
		}
		r := Reason{ClassTraced, fmt.Sprintf("looked for in vain on the standby %s, %s", m.Standby, m.Time.Local().Format(time.DateTime))}
		c.heals(canonical, r)
		info, err := c.root.Lstat(canonical)
		if err != nil || !info.IsDir() {
			continue
		}
		r.Text = canonical + " was " + r.Text
		if err := c.missedOfPackages(s, canonical, r); err != nil {
			return err
		}
		if c.Learn || outside {
			if err := c.missedFolder(ctx, canonical, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// heals adds one path.
func (c *capturing) heals(p string, r Reason) {
	if matchAny(secret, p) || matchAny(key, p) {
		return
	}
	_, known := c.closure.items[p]
	canonical, info, ok := c.closure.add(p, r)
	if !ok || !info.Mode().IsRegular() {
		return
	}
	c.closure.used[canonical] = true
	if !known && !slices.Contains(c.result.Healed, canonical) {
		c.result.Healed = append(c.result.Healed, canonical)
	}
}

// missedOfPackages adds what the service's packages have in a folder.
func (c *capturing) missedOfPackages(s *scope, dir string, r Reason) error {
	if c.service.db == nil {
		return nil
	}
	for _, id := range s.Packages {
		files, err := c.service.db.Files(id)
		if errors.Is(err, pkgdb.ErrUnknown) {
			continue // removed since
		}
		if err != nil {
			return fmt.Errorf("package %s: %w", id, err)
		}
		for _, f := range files {
			if inside(f, dir) {
				c.heals(f, r)
			}
		}
	}
	return nil
}

// maxMissedFolder bounds the names that come with a folder that was missed.
const maxMissedFolder = 10_000

// missedFolder adds all that is in a folder.
func (c *capturing) missedFolder(ctx context.Context, top string, r Reason) error {
	queue, n := []string{top}, 0
	for len(queue) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := queue[0]
		queue = queue[1:]
		entries, err := c.root.ReadDir(dir)
		if err != nil {
			continue // it vanished
		}
		if n += len(entries); n > maxMissedFolder {
			c.warn(fmt.Sprintf("a standby missed %s, which holds more than %d names: only some are in; name it with --include", top, maxMissedFolder))
			return nil
		}
		for _, e := range entries {
			p := path.Join(dir, e.Name())
			c.heals(p, r)
			if e.IsDir() && c.closure.items[p] != nil {
				queue = append(queue, p)
			}
		}
	}
	return nil
}

// heal notes which misses the snapshot of that number holds, and forgets what has
// vanished.
func (c *capturing) heal(sequence uint64) error {
	return c.library.changeMisses(c.Name, func(all []Miss) []Miss {
		kept := all[:0]
		for _, m := range all {
			_, in := c.tree.find(m.Path)
			if _, err := c.root.Lstat(m.Path); err != nil && !in {
				continue
			}
			switch {
			case !in:
				m.Since = 0
			case m.Since == 0:
				m.Since = sequence
			}
			kept = append(kept, m)
		}
		return kept
	})
}
