package unit

import (
	"fmt"
	"slices"
	"strings"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// notFound returns the error for a unit that is not there, with up to three
// names that may have been meant.
func notFound(root *rootfs.Root, full string) error {
	hint := ""
	base, _ := cutSuffix(full)
	if near := nearest(base, known(root)); len(near) > 0 {
		hint = "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("unit %s in %s: %w%s", full, root, manifest.ErrNotFound, hint)
}

// known returns the names of all units and SysV scripts, without ".service".
func known(root *rootfs.Root) []string {
	var names []string
	for _, d := range searchPath {
		entries, err := root.ReadDir(d)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if n, ok := strings.CutSuffix(e.Name(), ".service"); ok {
				names = append(names, n)
			}
		}
	}
	if entries, err := root.ReadDir("/etc/init.d"); err == nil {
		for _, e := range entries {
			if isScript(root, "/etc/init.d/"+e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// nearest returns the names that differ from want in a few letters, or that
// begin or end with it, the best first.
func nearest(want string, names []string) []string {
	type scored struct {
		name  string
		score int
	}
	var near []scored
	for _, n := range names {
		s := distance(want, n)
		if len(want) >= 3 && len(n) >= 3 && (strings.HasPrefix(n, want) || strings.HasPrefix(want, n) || strings.HasSuffix(n, want)) {
			s = min(s, 2)
		}
		if s <= max(1, min(len(want), 12)/4) || s <= 2 && len(want) > 3 {
			near = append(near, scored{n, s})
		}
	}
	slices.SortStableFunc(near, func(a, b scored) int { return a.score - b.score })
	var out []string
	for _, s := range near[:min(3, len(near))] {
		out = append(out, s.name)
	}
	return out
}

// distance is the number of letters to insert, remove, replace or swap with
// their neighbour in order to turn a into b (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 255 || len(b) > 255 {
		return 255
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
