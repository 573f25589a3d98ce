package capture

import (
	"cmp"
	"path"
	"slices"

	"srvfs/capture/trace"
	"srvfs/manifest"
)

// largeFile is the size in bytes above which the profile has the touched ranges
// of a file in place of the whole.
//
// To see reads costs a stop for each of them, so only a run that is known to
// read large files pays for it: the first run tells which were opened, and if
// there are any the run from the snapshot, which is traced anyway, is traced with
// its reads. Programs and libraries are mapped, which tells nothing of what is
// touched; they are fetched whole.
const largeFile = 1 << 20

// largeFiles returns the canonical paths of the large files that were opened
// for reading alone, or nil. What is written to is needed whole.
func (c *closure) largeFiles(accesses []trace.Access) map[string]bool {
	var large map[string]bool
	written := map[string]bool{}
	for _, a := range accesses {
		if a.Op != trace.Open && a.Op != trace.Exec {
			continue
		}
		root, prefix, p := c.rootOf(a)
		canonical, _, err := root.Resolve(p)
		if err != nil {
			continue
		}
		canonical = path.Join(prefix, canonical)
		if a.Write {
			written[canonical] = true
		}
		if large[canonical] {
			continue
		}
		info, err := c.root.Lstat(canonical)
		if err != nil || !info.Mode().IsRegular() || info.Size() <= largeFile || c.linker.IsELF(canonical) {
			continue
		}
		if large == nil {
			large = map[string]bool{}
		}
		large[canonical] = true
	}
	for p := range written {
		delete(large, p)
	}
	return large
}

// narrow replaces the touches of large files by what was read of them, in whole
// chunks, each at the place of its first use. Of a large file that was opened
// and not read nothing is left: opening it moves no content.
func (c *closure) narrow(touches []manifest.Touch, large map[string]bool, accesses []trace.Access, reads []trace.Read) []manifest.Touch {
	if len(large) == 0 {
		return touches
	}
	first := map[string]int{} // canonical path -> number of its first access
	for i, a := range accesses {
		root, prefix, p := c.rootOf(a)
		if canonical, _, err := root.Resolve(p); err == nil {
			canonical = path.Join(prefix, canonical)
			if _, ok := first[canonical]; !ok && (a.Op == trace.Open || a.Op == trace.Exec) {
				first[canonical] = i
			}
		}
	}
	type placed struct {
		manifest.Touch
		at int
	}
	var all []placed
	whole := map[string]manifest.Touch{}
	at := 0
	for _, t := range touches {
		if i, ok := first[t.Path]; ok {
			at = max(at, i)
		} // else the kernel opens it with what stands before it
		if large[t.Path] && !t.Write && t.Len > largeFile {
			whole[t.Path] = t
			continue
		}
		all = append(all, placed{t, at})
	}
	seen := map[string]map[int64]bool{}
	for _, r := range reads {
		t, ok := whole[r.Path]
		if !ok || r.After > len(accesses) {
			continue
		}
		chunks := seen[r.Path]
		if chunks == nil {
			chunks = map[int64]bool{}
			seen[r.Path] = chunks
		}
		for k := r.Off / manifest.ChunkSize; k*manifest.ChunkSize < min(r.Off+r.Len, t.Len); k++ {
			if chunks[k] {
				continue
			}
			chunks[k] = true
			piece := t
			piece.Off = k * manifest.ChunkSize
			piece.Len = min(manifest.ChunkSize, t.Len-piece.Off)
			if n := len(all) - 1; n >= 0 && all[n].Path == piece.Path && all[n].at == r.After && all[n].Off+all[n].Len == piece.Off {
				all[n].Len += piece.Len
				continue
			}
			all = append(all, placed{piece, r.After})
		}
	}
	slices.SortStableFunc(all, func(a, b placed) int { return cmp.Compare(a.at, b.at) })
	out := make([]manifest.Touch, len(all))
	for i, p := range all {
		out[i] = p.Touch
	}
	return out
}
