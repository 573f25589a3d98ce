package fs_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"srvfs/fs"
)

// An exec of a small dynamically linked program, warm: on the disk, on a plain
// overlay over it, in a root, and in a root with a stub of the program. The
// times want a quiet machine; upcalls/op is exact on any.
func BenchmarkExec(b *testing.B) {
	w := newWorld(b, func(dir string) {
		libs, err := shell(b, "ldd /bin/true")
		must(b, err)
		for _, f := range append([]string{"/bin/true"}, strings.Fields(libs)...) {
			if strings.HasPrefix(f, "/") {
				must(b, os.MkdirAll(dir+f[:strings.LastIndexByte(f, '/')], 0o755))
				copyFile(b, f, dir+f)
			}
		}
	})
	stubs := b.TempDir()
	s := w.serve(serveArgs{Layout: fs.Layers, Stubs: stubs})
	lower := fs.Lower(w.mnt, w.blobs)
	roots := []struct{ name, dir, lower string }{
		{"native", w.origin, ""}, {"plain-overlay", w.dir + "/a", w.origin}, {"root", w.dir + "/b", lower}, {"root-with-stubs", w.dir + "/c", stubs + ":" + lower},
	}
	for _, r := range roots {
		if r.lower != "" {
			for _, d := range []string{r.dir, r.dir + ".upper", r.dir + ".work"} {
				must(b, os.Mkdir(d, 0o755))
			}
			w.overlayOf(r.dir, r.lower, r.dir+".upper", r.dir+".work")
		}
	}
	exec := func(b *testing.B, root string) {
		p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{Chroot: root}})
		must(b, err)
		st, err := p.Wait()
		if err != nil || !st.Success() {
			b.Fatal(st, err)
		}
	}
	for _, r := range roots {
		b.Run(r.name, func(b *testing.B) {
			exec(b, r.dir)
			before := s.stats().Total()
			for b.Loop() {
				exec(b, r.dir)
			}
			b.ReportMetric(float64(s.stats().Total()-before)/float64(b.N), "upcalls/op")
		})
	}
}

// A warm walk with find, of the disk and of the same names in a plain view and in
// a root, in turn; the metrics are medians of the same rounds.
func BenchmarkWarmWalk(b *testing.B) {
	const dirs, each = 100, 1000
	patience = "300"
	for _, layout := range []fs.Layout{fs.Plain, fs.Layers} {
		b.Run(layout.String(), func(b *testing.B) {
			w := newWorld(b, func(string) {})
			w.source.Tree = synthetic(b, dirs, each)
			for d := range dirs {
				dir := fmt.Sprintf("%s/dir-%05d", w.origin, d)
				must(b, os.Mkdir(dir, 0o755))
				for i := range each {
					must(b, os.WriteFile(fmt.Sprintf("%s/file-%07d.txt", dir, i), nil, 0o644))
				}
			}
			w.mount(fs.Options{Layout: layout})
			root := w.mnt
			if layout == fs.Layers {
				root = w.overlay()
			}
			walk(b, root, dirs*each)
			walk(b, w.origin, dirs*each)
			var native, ours []float64
			before := w.view.Stats().Total()
			for b.Loop() {
				for _, r := range []struct {
					dir   string
					times *[]float64
				}{{w.origin, &native}, {root, &ours}} {
					start := time.Now()
					walk(b, r.dir, dirs*each)
					*r.times = append(*r.times, time.Since(start).Seconds())
				}
			}
			slices.Sort(native)
			slices.Sort(ours)
			b.ReportMetric(ours[len(ours)/2]/native[len(native)/2], "times-native")
			b.ReportMetric(float64(w.view.Stats().Total()-before)/float64(len(ours)), "upcalls/walk")
		})
	}
}
