package cli

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"srvfs/store/archive"
)

// Export holds the flags of a command that writes an archive.
type Export struct {
	Dest string
	archive.Options
}

// Destinations explains -o in a help text.
const Destinations = `The archive is an OCI image, which podman runs, skopeo copies and umoci unpacks, and
from which srvfs mounts. -o says where it is:

  DIR                                  a folder, an OCI image layout
  FILE.tar                             such a layout in a file (skopeo: oci-archive)
  docker://REGISTRY/REPOSITORY:TAG     a registry; log in with podman or docker

If the service was exported there before, a layer with what has changed is added, and
earlier snapshots stay; if nothing has, nothing is written. --compact writes one new layer
instead, and leaves the newest snapshot alone. --encrypt age1... encrypts a FILE.tar for
who has the key, and may be given several times; adding to one needs --identity too.
Whenever it is interrupted, the archive is what it was before.`

// Add adds the flags to a command.
func (e *Export) Add(c *cobra.Command) {
	f := c.Flags()
	f.StringVarP(&e.Dest, "output", "o", "", "where the archive is: DIR, FILE.tar or docker://REGISTRY/REPOSITORY:TAG")
	f.BoolVar(&e.Compact, "compact", false, "write one layer, with the newest snapshot alone")
	f.StringArrayVar(&e.Recipients, "encrypt", nil, "encrypt a FILE.tar for this age recipient, age1...")
	f.StringVar(&e.Identity, "identity", "", "file with the age key of an encrypted FILE.tar that is there")
	f.BoolVar(&e.Insecure, "insecure", false, "reach the registry by plain HTTP, or by TLS with any certificate")
}

// Check looks at the flags, and makes paths absolute: the command may be carried out by
// another process.
func (e *Export) Check(c *cobra.Command) (err error) {
	if e.Dest == "" {
		return UsageError(c, "-o is missing, which says %s", c.Flags().Lookup("output").Usage)
	}
	if e.Identity != "" {
		if e.Identity, err = filepath.Abs(e.Identity); err != nil {
			return err
		}
	}
	e.Dest, err = archive.Absolute(e.Dest)
	return err
}

// PrintWritten tells what an export did.
func PrintWritten(w io.Writer, r *archive.Written) error {
	name := fmt.Sprintf("snapshot %d of %s", r.Sequence, r.Service)
	if r.Unchanged {
		_, err := fmt.Fprintf(w, "%s has this state already, as %s: nothing was written\n", r.Dest, name)
		return err
	}
	lines := []string{name + " is in " + r.Dest}
	if r.Members > 0 {
		lines = append(lines, fmt.Sprintf("new layer: %d entries, %s of files; the image has %d", r.Members, Bytes(uint64(r.Bytes)), r.Layers))
	} else {
		lines = append(lines, fmt.Sprintf("no file has changed: no new layer; the image has %d", r.Layers))
	}
	lines = append(lines, fmt.Sprintf("added: %s; image %v", Bytes(uint64(r.Added)), r.Image))
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}
