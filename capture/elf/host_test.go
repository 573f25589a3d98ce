package elf

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"srvfs/capture/rootfs"
)

// These tests compare with ldd and with the kernel, on the host's own files.

func hostRoot(t testing.TB) *rootfs.Root {
	t.Helper()
	root, err := rootfs.New("/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// elfFiles returns the real ELF files below dirs, sorted.
func elfFiles(t testing.TB, l *Linker, dirs ...string) []string {
	t.Helper()
	var found []string
	for _, d := range dirs {
		err := filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			ext := path.Ext(p)
			if ext == ".so" || strings.Contains(p, ".so.") || ext == "" {
				if l.IsELF(p) {
					found = append(found, p)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

func TestNeededAsLdd(t *testing.T) {
	root := hostRoot(t)
	l := New(root)
	bins := elfFiles(t, l, "/usr/bin", "/usr/sbin")
	libs := elfFiles(t, l, "/usr/lib/x86_64-linux-gnu")
	if len(bins) < 100 || len(libs) < 100 {
		t.Fatalf("only %d programs and %d libraries on this host", len(bins), len(libs))
	}
	rng := rand.New(rand.NewPCG(3, 4))
	var files []string
	for _, all := range [][]string{bins, libs} {
		for _, i := range rng.Perm(len(all))[:min(200, len(all))] {
			files = append(files, all[i])
		}
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for _, p := range files {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			cmd := exec.Command("ldd", p)
			cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin"}
			out, err := cmd.CombinedOutput()
			if err != nil && !strings.Contains(string(out), "not a dynamic executable") {
				t.Errorf("ldd %s: %v %s", p, err, out)
				return
			}
			want, wantMissing := lddOutput(root, string(out))
			needed, missing, err := l.Needed(p, nil)
			if err != nil {
				t.Error(err)
				return
			}
			got, gotMissing := map[string]bool{}, map[string]bool{}
			for _, n := range needed {
				if c, _, err := root.Resolve(n.Path); err != nil {
					t.Errorf("%s: %+v: %v", p, n, err)
				} else if !n.Variant && !strings.Contains(c, "/ld-linux") { // ldd runs it, whether it is needed or not
					got[c] = true
				}
			}
			for _, m := range missing {
				gotMissing[m.Name] = true
			}
			if d := difference(got, want); d != "" {
				t.Errorf("%s: %s\nldd says:\n%s", p, d, out)
			}
			if d := difference(gotMissing, wantMissing); d != "" {
				t.Errorf("%s: missing libraries: %s\nldd says:\n%s", p, d, out)
			}
		})
	}
	wg.Wait()
}

func lddOutput(root *rootfs.Root, out string) (found, missing map[string]bool) {
	found, missing = map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 4 && f[1] == "=>" && f[2] == "not":
			missing[f[0]] = true
		case len(f) >= 3 && f[1] == "=>":
			f = f[2:]
			fallthrough
		case len(f) == 2 && strings.HasPrefix(f[0], "/"):
			c, _, _ := root.Resolve(f[0])
			if !strings.Contains(c, "/ld-linux") {
				found[c] = true
			}
		}
	}
	return found, missing
}

func difference(got, want map[string]bool) string {
	var d []string
	for g := range got {
		if !want[g] {
			d = append(d, "too much: "+g)
		}
	}
	for w := range want {
		if !got[w] {
			d = append(d, "not found: "+w)
		}
	}
	slices.Sort(d)
	return strings.Join(d, ", ")
}

// TestInterpretersAsKernel lets the kernel run chains of scripts and
// odd #! lines, and compares.
func TestInterpretersAsKernel(t *testing.T) {
	root := hostRoot(t)
	dir, err := os.MkdirTemp("/tmp", "s") // short: the path must fit into the line
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	files := []string{}
	last := "/usr/bin/true"
	for i := range 9 {
		last = write(fmt.Sprint("chain", i), "#!"+last+"\n")
		files = append(files, last)
	}
	for i, text := range []string{
		"#!/usr/bin/true", "#!  \t/usr/bin/true\t x y \n", "#!/usr/bin/true\x00junk", "#!", "#!\n", "#! \t \n/usr/bin/true", "#!/none\n", "#!usr/bin/true\n",
		"#!/" + strings.Repeat("/", 235) + "usr/bin/true\n", "#!/" + strings.Repeat("/", 240) + "usr/bin/true\n", "#!/" + strings.Repeat("/", 241) + "usr/bin/true\n", "#!/" + strings.Repeat("/", 242) + "usr/bin/true\n", "#!/" + strings.Repeat("/", 243) + "usr/bin/true",
		"#!/usr/bin/true " + strings.Repeat("x", 500) + "\n", "#!/usr/bin\n", "#!" + strings.Repeat(" ", 300) + "/usr/bin/true\n",
	} {
		files = append(files, write(fmt.Sprint("line", i), text))
	}
	for _, p := range files {
		cmd := exec.Command(p)
		cmd.Dir = "/"
		runs := cmd.Run() == nil
		chain, err := Interpreters(root, p)
		ours := err == nil && len(chain) > 0 && path.Base(chain[len(chain)-1]) == "true"
		if runs != ours {
			text, _ := os.ReadFile(p)
			t.Errorf("%.60q (%d bytes): the kernel runs it: %v; we say %q %v", text, len(text), runs, chain, err)
		}
	}
}

func BenchmarkNeeded(b *testing.B) {
	root := hostRoot(b)
	files := elfFiles(b, New(root), "/usr/bin")
	for b.Loop() {
		l := New(root)
		for _, p := range files {
			if _, _, err := l.Needed(p, nil); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(len(files)), "programs")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(files)), "us/program")
}
