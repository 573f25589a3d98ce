package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"srvfs/cmd/internal/cli"
	"srvfs/cmd/srvfs/internal/control"
	"srvfs/manifest"
	"srvfs/store/archive"
)

// archiveHelp goes into the help of the commands that take an archive.
const archiveHelp = `Instead of HOST/SERVICE an archive that "srvfs export" or "srvd archive" wrote will do,
with no source at all: DIR, FILE.tar, http(s)://.../FILE.tar, or
docker://REGISTRY/REPOSITORY:TAG. --archive names one that is asked when the source fails.`

// archiveFlags say how an archive is read, and which one is the fallback.
type archiveFlags struct {
	ref, identity string
	insecure      bool
}

func (f *archiveFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.ref, "archive", "", "an archive to be asked when the source fails: DIR, FILE.tar, http(s)://..., docker://...")
	f.addReading(c)
}

// addReading adds those that say how an archive is read.
func (f *archiveFlags) addReading(c *cobra.Command) {
	c.Flags().StringVar(&f.identity, "identity", "", "FILE with the age identity that the archive is encrypted to")
	c.Flags().BoolVar(&f.insecure, "insecure", false, "reach the archive's registry without TLS, or with a certificate that nobody vouches for")
}

// absolute makes a name absolute that the daemon will open: it works in another folder.
func absolute(ref string) (string, error) {
	if ref == "" || strings.Contains(ref, "://") {
		return ref, nil
	}
	return filepath.Abs(ref)
}

// archive returns the archive of that reference.
func (f *archiveFlags) archive(ref string) (*control.Archive, error) {
	a := &control.Archive{Insecure: f.insecure}
	var err error
	if a.Ref, err = absolute(ref); err == nil {
		a.Identity, err = absolute(f.identity)
	}
	return a, err
}

// isArchive reports whether a word names an archive, and not a host's service. Behind
// the last @ there may be a snapshot.
func isArchive(word string) bool {
	ref, _, _ := cutSnapshot(word)
	return archive.IsRef(ref)
}

// cutSnapshot cuts @12 or @2026-01-31 off an archive's reference.
func cutSnapshot(word string) (ref string, of manifest.Ref, err error) {
	i := strings.LastIndexByte(word, '@')
	if i < 0 {
		return word, of, nil
	}
	if _, err := os.Lstat(word); err == nil {
		return word, of, nil
	}
	of, err = manifest.ParseRef("x" + word[i:])
	if of.Service = ""; err != nil {
		return word, of, err // perhaps a digest
	}
	return word[:i], of, nil
}

// split reads HOST[:PORT]/SERVICE[@SNAPSHOT] or the reference of an archive.
func (f *archiveFlags) split(c *cobra.Command, word string) (s control.Snapshot, err error) {
	if isArchive(word) {
		if f.ref != "" {
			return s, cli.UsageError(c, "--archive is for a source that may fail; %s is an archive", word)
		}
		ref, of, _ := cutSnapshot(word)
		s.Ref = of
		if s.Archive, err = f.archive(ref); err == nil {
			s.Source = s.Archive.Ref
		}
		return s, err
	}
	if s, err = splitSpec(c, word); err != nil {
		return s, err
	}
	s.Archive, err = f.fallback(c)
	return s, err
}

// splitLocal reads the same, or NAME[@SNAPSHOT] of a service that is known here.
func (f *archiveFlags) splitLocal(c *cobra.Command, word string) (control.Snapshot, error) {
	if isArchive(word) {
		return f.split(c, word)
	}
	return splitLocal(c, word)
}

// open opens the archive that a word names.
func (f *archiveFlags) open(ctx context.Context, word string) (*archive.Archive, error) {
	return archive.Open(ctx, word, archive.OpenOptions{Identity: f.identity, Insecure: f.insecure})
}

// fallback returns what --archive names, or nil.
func (f *archiveFlags) fallback(c *cobra.Command) (*control.Archive, error) {
	if f.ref == "" {
		if f.identity != "" || f.insecure {
			return nil, cli.UsageError(c, "--identity and --insecure say how an archive is read, and none is named")
		}
		return nil, nil
	}
	return f.archive(f.ref)
}
