package transfer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"srvfs/rpc"
)

// perFile adds the processor time of both ends, and the clock's, for one file.
func perFile(b *testing.B, files int) func() {
	start := cpuTime(b)
	return func() {
		n := float64(b.N * files)
		b.ReportMetric(float64(cpuTime(b)-start)/1e3/n, "cpu-us/file")
		b.ReportMetric(float64(b.Elapsed().Microseconds())/n, "us/file")
	}
}

// BenchmarkPrefetchSmall brings 4,500 small files into an empty store; rsync
// copies the same tree from its daemon's end of a pipe, and plain writes its
// files from memory: the least that must be done.
func BenchmarkPrefetchSmall(b *testing.B) {
	s := newSite(b, smallTree(b, 4500), rpc.ClientOptions{})
	b.Run("store", func(b *testing.B) {
		b.SetBytes(s.bytes)
		b.ReportAllocs()
		defer perFile(b, s.files)()
		for i := 0; b.Loop(); i++ {
			st, r := s.reader(b, fmt.Sprint("small", i))
			if err := r.Prefetch(b.Context(), s.snap, nil); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := st.Close(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("rsync", func(b *testing.B) {
		b.SetBytes(s.bytes)
		for i := 0; b.Loop(); i++ {
			to := filepath.Join(stores(b), fmt.Sprint("rsync", i))
			if out, err := exec.CommandContext(b.Context(), "rsync", "-a", s.tree+"/", to).CombinedOutput(); err != nil {
				b.Fatal(err, string(out))
			}
			if out, err := exec.CommandContext(b.Context(), "sync", "-f", to).CombinedOutput(); err != nil {
				b.Fatal(err, string(out))
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*s.files), "us/file")
	})
	b.Run("plain", func(b *testing.B) {
		var files [][]byte
		err := filepath.WalkDir(s.tree, func(p string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			data, err := os.ReadFile(p)
			files = append(files, data)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(s.bytes)
		defer perFile(b, len(files))()
		for i := 0; b.Loop(); i++ {
			to := filepath.Join(stores(b), fmt.Sprint("plain", i))
			if err := os.Mkdir(to, 0o700); err != nil {
				b.Fatal(err)
			}
			for j, data := range files {
				if err := os.WriteFile(filepath.Join(to, fmt.Sprint(j)), data, 0o444); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// BenchmarkPrefetchLarge brings one file of 256 MiB into an empty store.
func BenchmarkPrefetchLarge(b *testing.B) {
	s := newSite(b, largeTree(b, 256<<20), rpc.ClientOptions{})
	b.SetBytes(s.bytes)
	b.ReportAllocs()
	defer perFile(b, s.files)()
	for i := 0; b.Loop(); i++ {
		st, r := s.reader(b, fmt.Sprint("large", i))
		if err := r.Prefetch(b.Context(), s.snap, nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := st.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// wires are what a standby may be at the end of.
var wires = []struct {
	name string
	wire wire
}{
	{"1Gbit-0ms", wire{125e6, 0}},
	{"1Gbit-10ms", wire{125e6, 10 * time.Millisecond}},
	{"1Gbit-50ms", wire{125e6, 50 * time.Millisecond}},
}

// BenchmarkReadLarge reads one file of 256 MiB in sequence, 256 KiB at a time as
// the kernel does, from an empty store.
func BenchmarkReadLarge(b *testing.B) {
	tree := largeTree(b, 256<<20)
	buf := make([]byte, 256<<10)
	read := func(b *testing.B, name string, opts rpc.ClientOptions) {
		s := newSite(b, tree, opts)
		c := s.content(b, "srv/large")
		b.SetBytes(c.Size)
		b.ReportAllocs()
		defer perFile(b, 1)()
		for i := 0; b.Loop(); i++ {
			st, r := s.reader(b, fmt.Sprint(name, i))
			f, err := r.Open(b.Context(), c)
			if err != nil {
				b.Fatal(err)
			}
			for off := int64(0); off < c.Size; off += int64(len(buf)) {
				if _, err := f.ReadAt(b.Context(), buf, off); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			_ = f.Close()
			if err := st.Close(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
	b.Run("loopback", func(b *testing.B) { read(b, "loopback", rpc.ClientOptions{}) })
	for _, w := range wires {
		b.Run(w.name, func(b *testing.B) { read(b, w.name, rpc.ClientOptions{Dial: w.wire.dial}) })
	}
}

// BenchmarkPrefetchWire brings 4,500 small files and one of 64 MiB over a wire.
func BenchmarkPrefetchWire(b *testing.B) {
	for kind, tree := range map[string]string{"small": smallTree(b, 4500), "large": largeTree(b, 256<<20)} {
		for _, w := range wires {
			b.Run(kind+"/"+w.name, func(b *testing.B) {
				s := newSite(b, tree, rpc.ClientOptions{Dial: w.wire.dial})
				b.SetBytes(s.bytes)
				var fetches uint64
				for i := 0; b.Loop(); i++ {
					st, r := s.reader(b, fmt.Sprint(kind, w.name, i))
					if err := r.Prefetch(b.Context(), s.snap, nil); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					fetches = st.Stats().Fetches
					if err := st.Close(); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
				b.ReportMetric(float64(fetches), "requests")
			})
		}
	}
}
