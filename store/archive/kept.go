package archive

import (
	"context"

	"srvfs/manifest"
)

// kept returns the lines of a layout's index.json that stay when an export is added, and
// the blobs that they lead to.
func (a *Archive) kept() (lines, blobs []descriptor, err error) {
	switch a.shelf.(type) {
	case *folder, *tarFile:
	default:
		return nil, nil, nil
	}
	ctx := context.Background()
	c, err := a.shelf.top(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, d := range c.all {
		if n := d.Annotations[noteName]; n == latest || n == latest+besideIt {
			continue
		}
		lines = append(lines, d)
	}
	seen := map[manifest.Digest]bool{}
	for _, d := range c.all {
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		b, err := a.shelf.manifest(ctx, d)
		if err == nil {
			err = verify(b, d.Digest, "manifest")
		}
		if err != nil {
			return nil, nil, err
		}
		m, err := parseManifest(b)
		if err != nil {
			return nil, nil, err
		}
		blobs = append(append(blobs, d, m.Config), m.Layers...)
	}
	return lines, blobs, nil
}
