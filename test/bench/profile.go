package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"srvfs/test/world"
)

// collectProfiles moves the profiles that the programs of a run have written, as
// each does when it ends, to the folder of the run.
func (s *Site) collectProfiles(r *Row, run Run) error {
	plain := regexp.MustCompile(`[^a-zA-Z0-9]+`)
	return s.moveProfiles(strings.Trim(plain.ReplaceAllString(r.Name, "-"), "-"), strings.Trim(plain.ReplaceAllString(run.Name, "-"), "-"))
}

// endSource ends srvd, so that it writes its profiles too: those of all runs.
func (s *Site) endSource(ctx context.Context) error {
	if s.profiles == "" || s.srvd == nil {
		return nil
	}
	if err := s.srvd.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if _, err := s.srvd.Wait(ctx); err != nil {
		return err
	}
	return s.moveProfiles("srvd")
}

func (s *Site) moveProfiles(folder ...string) error {
	if s.profiles == "" {
		return nil
	}
	dir := filepath.Join(append([]string{s.profiles}, folder...)...)
	var errs []error
	for _, h := range []*world.Host{s.Source, s.Standby, s.Twin} {
		files, err := filepath.Glob(filepath.Join(h.Root, "root/profiles/*.pprof"))
		errs = append(errs, err)
		for _, f := range files {
			errs = append(errs, os.MkdirAll(dir, 0o755), moveFile(f, filepath.Join(dir, h.Name+"-"+filepath.Base(f))))
		}
	}
	return errors.Join(errs...)
}

func moveFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(to, b, 0o644), os.Remove(from))
}
