package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"srvfs/test/world"
)

// collectProfiles moves the profiles that the programs of a run have written to
// the folder of the run. A program writes them when it ends: srvd, which ends
// with the site, has none of its own.
func (s *Site) collectProfiles(r *Row, run Run) error {
	if s.profiles == "" {
		return nil
	}
	plain := regexp.MustCompile(`[^a-zA-Z0-9]+`)
	dir := filepath.Join(s.profiles, strings.Trim(plain.ReplaceAllString(r.Name, "-"), "-"), strings.Trim(plain.ReplaceAllString(run.Name, "-"), "-"))
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
