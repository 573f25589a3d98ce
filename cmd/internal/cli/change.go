package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"srvfs/manifest"
)

// A Change is a path at which two snapshots differ, as it is printed and put into JSON.
type Change struct {
	Path   string   `json:"path"`
	Change string   `json:"change"` // "added", "removed" or "changed"
	Type   string   `json:"type"`   // of what is there, or was
	What   []string `json:"what,omitempty"`
	Size   int64    `json:"size"` // of a file, in bytes
}

var changeMarks = map[string]string{"added": "+", "removed": "-", "changed": "~"}

// Changes puts what manifest.Compare found into words.
func Changes(all []manifest.Change) []Change {
	rows := make([]Change, len(all))
	for i, c := range all {
		now := c.After
		rows[i] = Change{Path: c.Path, Change: "changed"}
		switch {
		case c.Before == nil:
			rows[i].Change = "added"
		case c.After == nil:
			rows[i].Change, now = "removed", c.Before
		default:
			rows[i].What = whatChanged(c.Before, c.After)
		}
		rows[i].Type, rows[i].Size = now.Type.String(), now.Size
	}
	return rows
}

func whatChanged(a, b *manifest.Entry) (what []string) {
	say := func(changed bool, format string, args ...any) {
		if changed {
			what = append(what, fmt.Sprintf(format, args...))
		}
	}
	if a.Type != b.Type {
		return []string{fmt.Sprintf("type %v -> %v", a.Type, b.Type)}
	}
	say(a.Type == manifest.File && a.Digest != b.Digest && a.Size == b.Size, "content")
	say(a.Size != b.Size, "content %s -> %s", Bytes(a.Size), Bytes(b.Size))
	say(a.Target != b.Target, "target %s -> %s", Quote(a.Target), Quote(b.Target))
	say(a.Rdev != b.Rdev, "device %d -> %d", a.Rdev, b.Rdev)
	say(a.Mode != b.Mode, "mode %o -> %o", a.Mode, b.Mode)
	say(a.UID != b.UID || a.GID != b.GID, "owner %d:%d -> %d:%d", a.UID, a.GID, b.UID, b.GID)
	say(!slices.Equal(a.Xattrs, b.Xattrs), "extended attributes")
	say(len(what) == 0, "time of modification")
	return what
}

// PrintChanges prints one line for each, and a sum.
func PrintChanges(out io.Writer, rows []Change) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	count := map[string]uint64{}
	for _, r := range rows {
		count[r.Change]++
		detail := strings.Join(r.What, ", ")
		switch {
		case r.Change == "changed":
		case r.Type == manifest.File.String():
			detail = Bytes(r.Size)
		default:
			detail = r.Type
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", changeMarks[r.Change], detail, Quote(r.Path))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%d added, %d removed, %d changed\n", count["added"], count["removed"], count["changed"])
	return err
}

// Quote makes names with control characters, or bytes that are no UTF-8, safe
// to print; all others stay as they are.
func Quote(path string) string {
	if plain := fmt.Sprintf("%q", path); plain[1:len(plain)-1] == path {
		return path
	}
	return fmt.Sprintf("%+q", path)
}
