package capture

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// recipe returns what a capture was asked for, as it is kept with its snapshots, so that
// it can be made again; nil if it can't: a process has another number the next time.
func (o *Options) recipe() *Options {
	if o.PID != 0 {
		return nil
	}
	r := *o
	r.Log, r.Progress = nil, nil
	return &r
}

// Again returns what the newest capture of a service was asked for. The error wraps
// ErrNotFound if it can't be made again, or nobody knows how.
func (l *Library) Again(service string) (Options, error) {
	var o Options
	err := l.again(manifest.Ref{Service: service}, func(p Published) error {
		s, err := l.scope(p)
		if err != nil {
			return err
		}
		if s.Recipe == nil {
			return fmt.Errorf("how %s was captured is not known, or was by the number of a process: say it once more, with --unit, --init or --exec: %w", service, manifest.ErrNotFound)
		}
		o = *s.Recipe
		o.Name, o.StateDir = service, l.dir
		return nil
	})
	return o, err
}

// mark names what the first step of a capture has found: how the service starts, and
// which packages, in which versions, it needs. As long as it is the same, what following
// does is enough; when it is another, there may be libraries that the snapshot does not
// have, and only a capture finds them.
func (s *service) mark() string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	_ = enc.Encode(s.units) // writes to a hash do not fail, nor has a unit what JSON has not
	for _, id := range slices.Sorted(maps.Keys(s.needed)) {
		p, _ := s.db.Package(id)
		_ = enc.Encode([]string{id, p.Version, p.Arch})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// markNow makes the first step of the capture that o asks for, and returns its mark.
func markNow(o *Options) (mark string, err error) {
	quiet := *o
	quiet.Log = slog.New(slog.DiscardHandler)
	root, err := rootfs.New(o.Root)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	s, _, err := find(&quiet, root)
	if err != nil {
		return "", err
	}
	if _, err := s.packages(root); err != nil {
		return "", err
	}
	return s.mark(), nil
}

// definedAt reports whether a change at a path of the root may be one of what a
// capture's first step finds.
func (s *scope) definedAt(p string) bool {
	for _, dir := range []string{
		"/var/lib/dpkg", "/var/lib/rpm", "/usr/lib/sysimage/rpm",
		"/etc/systemd", "/lib/systemd/system", "/usr/lib/systemd/system", "/usr/local/lib/systemd/system",
		"/etc/init.d", "/etc/passwd", "/etc/group",
	} {
		if inside(p, dir) {
			return s.Recipe != nil
		}
	}
	return s.Recipe != nil && slices.Contains(s.Defined, p)
}
