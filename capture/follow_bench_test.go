package capture

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest/statcache"
)

// BenchmarkFollow shows what it takes to follow a service of many small files: a look at
// all of them when nothing has changed, and one that has changed, until it is published.
// SRVFS_BENCH_FILES says how many; 100,000 if it is not set; and SRVFS_BENCH_FOLDER how
// many of them are in a folder; 200.
func BenchmarkFollow(b *testing.B) {
	n := 100_000
	if s := os.Getenv("SRVFS_BENCH_FILES"); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil {
			b.Fatal(err)
		}
	}
	each := 200
	if s := os.Getenv("SRVFS_BENCH_FOLDER"); s != "" {
		if _, err := fmt.Sscan(s, &each); err != nil {
			b.Fatal(err)
		}
	}
	root, state := b.TempDir(), b.TempDir()
	for i := range n {
		name := fmt.Sprintf("%s/d%d/file%d", root, i/each, i)
		if i%each == 0 {
			check(b, os.Mkdir(filepath.Dir(name), 0o755))
		}
		check(b, os.WriteFile(name, fmt.Appendf(nil, "content %d", i), 0o644))
	}
	lib := must(OpenLibrary(state))(b)
	publishScoped(b, lib, "web", root, scope{Folders: []string{"/"}})
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	live := lib.Live()
	defer live.Close()
	cache := must(statcache.Open(filepath.Join(b.TempDir(), "digests")))(b)
	f := must(newFollower(lib, live, cache, slog.New(slog.DiscardHandler), "web"))(b)
	defer func() { f.close() }()
	look := func(b *testing.B, paths map[string]bool, want bool) {
		b.Helper()
		yes, _, err := f.update(b.Context(), paths, nil)
		if err != nil || yes != want {
			b.Fatal(yes, err)
		}
	}
	look(b, map[string]bool{"/": true}, false) // digests are known from now on
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.Run("restart", func(b *testing.B) {
		used := processorTime(b)
		for b.Loop() {
			f.close()
			f = must(newFollower(lib, live, cache, f.log, "web"))(b)
			look(b, map[string]bool{"/": true}, false)
		}
		b.ReportMetric(float64((processorTime(b)-used).Milliseconds())/float64(b.N), "cpu-ms/op")
	})
	b.Run("rescan", func(b *testing.B) {
		used := processorTime(b)
		for b.Loop() {
			look(b, map[string]bool{"/": true}, false)
		}
		b.ReportMetric(float64((processorTime(b)-used).Milliseconds())/float64(b.N), "cpu-ms/op")
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "files/s")
		b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/float64(n), "B/file")
	})
	b.Run("change", func(b *testing.B) {
		used := processorTime(b)
		defer func() {
			b.ReportMetric(float64((processorTime(b)-used).Microseconds())/float64(b.N)/1000, "cpu-ms/op")
		}()
		for i := 0; b.Loop(); i++ {
			p := fmt.Sprintf("/d%d/file%d", i%(n/each), i%(n/each)*each)
			check(b, os.WriteFile(root+p, fmt.Appendf(nil, "change %d", i), 0o644))
			look(b, map[string]bool{p: false, filepath.Dir(p): false}, true)
		}
	})
}

// processorTime is what this process has used: on a busy machine it says more than the clock.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	check(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
