package fs_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"srvfs/fs"
	"srvfs/fs/fstest"
	"srvfs/manifest"
)

// synthetic returns a tree of dirs directories with each names files of one
// content each.
func synthetic(b testing.TB, dirs, each int) *fstest.Tree {
	b.Helper()
	t := fstest.NewTree()
	top := make([]manifest.Entry, dirs)
	for d := range top {
		entries := make([]manifest.Entry, each)
		for i := range entries {
			n := uint64(d*each + i)
			entries[i] = manifest.Entry{Name: fmt.Sprintf("file-%07d.txt", i), Type: manifest.File, Mode: 0o644, UID: uint32(n % 5), Links: 1,
				Mtime: manifest.Time{Sec: 1_700_000_000 + int64(n), Nsec: 123_456_789}, Size: 1 + int64(n%5000), Digest: manifest.Sum(fmt.Append(nil, n))}
		}
		top[d] = manifest.Entry{Name: fmt.Sprintf("dir-%05d", d), Type: manifest.Dir, Mode: 0o755, Links: 2, Digest: directory(b, t, entries)}
	}
	t.Root = manifest.Entry{Type: manifest.Dir, Mode: 0o755, Links: uint32(2 + dirs), Digest: directory(b, t, top)}
	return t
}

// rss returns the resident memory of this process in bytes, garbage left out.
func rss(b testing.TB) int64 {
	runtime.GC()
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	must(b, err)
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			must(b, err)
			return kb << 10
		}
	}
	b.Fatal("no VmRSS")
	return 0
}

// A million names: memory of each, the time of a cold and of a warm walk.
func BenchmarkMillion(b *testing.B) {
	const dirs, each = 1000, 1000
	patience = "300"
	for _, layout := range []fs.Layout{fs.Plain, fs.Layers} {
		b.Run(layout.String(), func(b *testing.B) {
			w := newWorld(b, func(string) {})
			w.source.Tree = synthetic(b, dirs, each)
			for b.Loop() {
				b.StopTimer()
				w.mount(fs.Options{Layout: layout})
				root := w.mnt
				if layout == fs.Layers {
					root += "/tree"
				}
				before := rss(b)
				b.StartTimer()
				walk(b, root, dirs*each)
				b.ReportMetric(float64(b.Elapsed().Milliseconds()), "cold-ms")
				b.StopTimer()
				start := time.Now()
				walk(b, root, dirs*each)
				b.ReportMetric(float64(time.Since(start).Milliseconds()), "warm-ms")
				b.ReportMetric(float64(rss(b)-before)/(dirs*(each+1)), "RSS-bytes/entry")
				must(b, w.view.Unmount(context.Background()))
				b.StartTimer()
			}
		})
	}
}

func walk(b testing.TB, root string, files int) {
	out, err := shell(b, "find %s -type f -printf '%%s %%T@\\n' | wc -l", root)
	if got := strings.TrimSpace(out); err != nil || got != strconv.Itoa(files) {
		b.Fatalf("%s files, %v", got, err)
	}
}

// The kernel remembers names; a cold one is asked for once.
func BenchmarkColdLookup(b *testing.B) {
	const each = 1000
	w := newWorld(b, func(string) {})
	w.source.Tree = synthetic(b, 1+b.N/each, each)
	w.mount(fs.Options{})
	for i := range 1 + b.N/each {
		_, _ = os.Lstat(fmt.Sprintf("%s/dir-%05d/none", w.mnt, i)) // loads it
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if _, err := os.Lstat(fmt.Sprintf("%s/dir-%05d/file-%07d.txt", w.mnt, i/each, i%each)); err != nil {
			b.Fatal(err)
		}
	}
}

// Reads of a file that the kernel has no page of, by way of this process.
func BenchmarkColdRead(b *testing.B) {
	const size = 64 << 20
	w := newWorld(b, func(dir string) {
		must(b, os.WriteFile(dir+"/f", bytes.Repeat([]byte("0123456789abcdef"), size/16), 0o644))
	})
	w.mount(fs.Options{})
	b.SetBytes(size)
	for b.Loop() {
		b.StopTimer()
		must(b, w.view.Unmount(context.Background()))
		w.mount(fs.Options{})
		b.StartTimer()
		out, err := shell(b, "dd if=%s/f of=/dev/null bs=1M 2>&1", w.mnt)
		if err != nil {
			b.Fatal(out, err)
		}
	}
}

// First reads of small files, whose content is on this machine.
func BenchmarkFirstReads(b *testing.B) {
	for _, holding := range []bool{true, false} {
		b.Run(fmt.Sprintf("holding=%v", holding), func(b *testing.B) {
			const files = 2_000
			w := newWorld(b, func(dir string) {
				for i := range files {
					must(b, os.WriteFile(fmt.Sprintf("%s/%d", dir, i), pattern(4_500, byte(i)), 0o644))
				}
			})
			w.source.Holding = holding
			w.mount(fs.Options{})
			b.ResetTimer()
			for n := 0; n < b.N; n += files {
				b.StopTimer()
				must(b, w.view.Unmount(context.Background()))
				w.mount(fs.Options{})
				_, err := shell(b, "ls -l %s", w.mnt)
				must(b, err)
				b.StartTimer()
				for i := range min(files, b.N-n) {
					if _, err := os.ReadFile(fmt.Sprintf("%s/%d", w.mnt, i)); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// What opening, reading and closing a small file costs when all is warm, beside
// the same on the disk.
func BenchmarkWarmOpenReadClose(b *testing.B) {
	w := newWorld(b, func(dir string) { must(b, os.WriteFile(dir+"/f", pattern(8<<10, 1), 0o644)) }).mount(fs.Options{})
	l := newWorld(b, func(dir string) { must(b, os.WriteFile(dir+"/f", pattern(8<<10, 1), 0o644)) }).mount(fs.Options{Layout: fs.Layers})
	plain := filepath.Join(l.dir, "plain")
	for _, d := range []string{plain, l.dir + "/upper2", l.dir + "/work2"} {
		must(b, os.Mkdir(d, 0o755))
	}
	l.overlayOf(plain, l.origin, l.dir+"/upper2", l.dir+"/work2")
	root := l.overlay()
	buf := make([]byte, 16<<10)
	for _, c := range []struct{ name, file string }{
		{"native", w.origin + "/f"}, {"view", w.mnt + "/f"}, {"plain-overlay", plain + "/f"}, {"root", root + "/f"},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				f, err := os.Open(c.file)
				must(b, err)
				if n, err := f.Read(buf); n != 8<<10 {
					b.Fatal(n, err)
				}
				must(b, f.Close())
			}
		})
	}
}
