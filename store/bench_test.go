package store

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"srvfs/manifest"
)

// smallFiles are as many as a mail server's configuration and run-time.
func smallFiles(o *memoryOrigin) (cs []manifest.Content, total int64) {
	for i := range 4500 {
		c := o.file(name(i), random(1000+i%7000, uint64(i)+100))
		cs = append(cs, c)
		total += c.Size
	}
	return cs, total
}

// BenchmarkEnsureSmall fetches 4,500 small files from memory, one after the
// other; plain writes them to a folder, which is the least that must be done.
func BenchmarkEnsureSmall(b *testing.B) {
	o := newOrigin()
	cs, total := smallFiles(o)
	b.Run("store", func(b *testing.B) {
		b.SetBytes(total)
		for i := 0; b.Loop(); i++ {
			b.StopTimer()
			s := openStore(b, Options{Dir: filepath.Join(b.TempDir(), fmt.Sprint(i))})
			r := s.Reader(Source{Name: "origin", Origin: o})
			b.StartTimer()
			for _, c := range cs {
				if err := r.Ensure(b.Context(), c); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(cs)), "us/file")
	})
	b.Run("plain", func(b *testing.B) {
		b.SetBytes(total)
		for b.Loop() {
			b.StopTimer()
			dir := b.TempDir()
			b.StartTimer()
			for i, c := range cs {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), o.content[c.Digest], 0o644); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(cs)), "us/file")
	})
}

// BenchmarkAcceptSmall verifies and keeps one file of 4 KiB after the other;
// plain writes them to a folder.
func BenchmarkAcceptSmall(b *testing.B) {
	data := random(4<<10, 95)
	next := func(i int) []byte { // another file each time
		binary.LittleEndian.PutUint64(data, uint64(i))
		return data
	}
	b.Run("store", func(b *testing.B) {
		s := openStore(b, Options{})
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			file := next(i)
			if err := s.acceptSmall(manifest.Content{Digest: manifest.Sum(file), Size: int64(len(file)), Path: "/f"}, file); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("plain", func(b *testing.B) {
		dir := b.TempDir()
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), next(i), 0o444); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkEnsureThere is what a file that is in the store costs at each open.
func BenchmarkEnsureThere(b *testing.B) {
	o := newOrigin()
	c := o.file("/f", random(5000, 90))
	r := openStore(b, Options{}).Reader(Source{Name: "origin", Origin: o})
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Ensure(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadThrough reads a cold 64 MiB file in sequence, 128 KiB at a time,
// from an origin in memory; plain copies it to a file and reads that.
func BenchmarkReadThrough(b *testing.B) {
	o := newOrigin()
	data := random(64<<20, 91)
	c := o.file("/f", data)
	buf := make([]byte, 128<<10)
	b.Run("store", func(b *testing.B) {
		b.SetBytes(c.Size)
		for i := 0; b.Loop(); i++ {
			b.StopTimer()
			s := openStore(b, Options{Dir: filepath.Join(b.TempDir(), fmt.Sprint(i))})
			b.StartTimer()
			f, err := s.Reader(Source{Name: "origin", Origin: o}).Open(b.Context(), c)
			if err != nil {
				b.Fatal(err)
			}
			for off := int64(0); off < c.Size; off += int64(len(buf)) {
				if _, err := f.ReadAt(b.Context(), buf, off); err != nil {
					b.Fatal(err)
				}
			}
			_ = f.Close()
		}
	})
	b.Run("plain", func(b *testing.B) {
		b.SetBytes(c.Size)
		for b.Loop() {
			b.StopTimer()
			p := filepath.Join(b.TempDir(), "f")
			b.StartTimer()
			f, err := os.Create(p)
			if err != nil {
				b.Fatal(err)
			}
			for off := int64(0); off < c.Size; off += int64(len(buf)) {
				if _, err := f.WriteAt(data[off:off+int64(len(buf))], off); err != nil {
					b.Fatal(err)
				}
				if _, err := f.ReadAt(buf, off); err != nil {
					b.Fatal(err)
				}
			}
			_ = f.Close()
		}
	})
}

// BenchmarkReadWhole reads a file that is in the store; plain reads the same
// file itself. The difference is one fstat for each read.
func BenchmarkReadWhole(b *testing.B) {
	o := newOrigin()
	c := o.file("/f", random(8<<20, 92))
	s := openStore(b, Options{})
	r := s.Reader(Source{Name: "origin", Origin: o})
	if err := r.Ensure(b.Context(), c); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 128<<10)
	b.Run("store", func(b *testing.B) {
		f, err := r.Open(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		b.SetBytes(int64(len(buf)))
		for i := int64(0); b.Loop(); i++ {
			if _, err := f.ReadAt(b.Context(), buf, i*int64(len(buf))%c.Size); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("plain", func(b *testing.B) {
		f, err := os.Open(s.blobPath(c.Digest))
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		b.SetBytes(int64(len(buf)))
		for i := int64(0); b.Loop(); i++ {
			if _, err := f.ReadAt(buf, i*int64(len(buf))%c.Size); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkChunkVerify hashes one chunk.
func BenchmarkChunkVerify(b *testing.B) {
	data := random(chunk, 93)
	b.SetBytes(chunk)
	b.ReportAllocs()
	for b.Loop() {
		manifest.Sum(data)
	}
}
