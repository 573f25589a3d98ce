package test

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"srvfs/capture/elf"
	"srvfs/capture/rootfs"
	"srvfs/test/world"
)

// Of every ELF file of every test root, the closure over libraries is what ldd says
// there. What a root has in common with one before it is looked at once.
func TestServicesLibrariesAsLdd(t *testing.T) {
	s := bareSite(t, world.SourceRoot, world.StandbyRoot)
	hosts := []*world.Host{s.standby, s.source}
	for _, kind := range world.ServiceRoots() {
		hosts = append(hosts, must(s.world.Host(s.ctx, kind.Name, kind))(t))
	}
	seen := map[string]bool{}
	for _, h := range hosts {
		t.Run(h.Name, func(t *testing.T) {
			root := must(rootfs.New(h.Root))(t)
			defer func() { _ = root.Close() }()
			l := elf.New(root)
			files := elfFiles(t, h.Root, l, seen)
			for batch := range slices.Chunk(files, 500) {
				// A file that is not dynamic makes ldd fail.
				out := must(h.Shell(s.ctx, "for f in "+strings.Join(batch, " ")+`; do echo "# $f"; ldd $f 2>&1 || true; done`))(t)
				for part := range strings.SplitSeq(out, "# ") {
					if name, said, ok := strings.Cut(part, "\n"); ok {
						compareLdd(t, root, l, name, said)
					}
				}
			}
			t.Logf("%d files", len(files))
		})
	}
	if len(seen) < 1000 {
		t.Errorf("only %d ELF files in all roots", len(seen))
	}
}

// elfFiles returns the ELF files for this machine below dir that were not seen.
func elfFiles(t *testing.T, dir string, l *elf.Linker, seen map[string]bool) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(p, dir)
		if err != nil || d.IsDir() && slices.Contains([]string{"/proc", "/sys", "/dev"}, name) {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() || strings.ContainsAny(name, " '\"$") {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode()&0o111 == 0 && !strings.Contains(name, ".so") {
			return nil
		}
		key := fmt.Sprint(name, info.Size(), info.ModTime())
		if !seen[key] && l.IsELF(name) {
			seen[key] = true
			files = append(files, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func compareLdd(t *testing.T, root *rootfs.Root, l *elf.Linker, name, said string) {
	t.Helper()
	if strings.Contains(said, "not a dynamic executable") {
		said = ""
	}
	want := map[string]bool{}
	for line := range strings.Lines(said) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 4 && f[1] == "=>" && f[2] == "not":
			want["missing "+f[0]] = true
			continue
		case len(f) >= 3 && f[1] == "=>":
			f = f[2:]
		case len(f) != 2 || !strings.HasPrefix(f[0], "/"):
			continue
		}
		want[must(canonical(root, f[0]))(t)] = true
	}
	needed, missing, err := l.Needed(name, nil)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	got := map[string]bool{}
	for _, n := range needed {
		if !n.Variant { // of a library for other processors; ldd shows that of this one
			got[must(canonical(root, n.Path))(t)] = true
		}
	}
	for _, m := range missing {
		got["missing "+m.Name] = true
	}
	for p := range want {
		if !got[p] && !strings.Contains(p, "/ld-linux") { // ldd runs it, whether it is needed or not
			t.Errorf("%s: ldd finds %s:\n%s", name, p, said)
		}
	}
	for p := range got {
		if !want[p] && !strings.Contains(p, "/ld-linux") {
			t.Errorf("%s: ldd does not find %s:\n%s", name, p, said)
		}
	}
}

func canonical(root *rootfs.Root, p string) (string, error) {
	c, _, err := root.Resolve(p)
	return c, err
}
