package rpc

import (
	"bytes"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

const benchSize = 64 << 20

// benchContents are what a service consists of: bytes that don't compress (a
// packed file) and bytes that do (a program: this one).
func benchContents(b *testing.B) map[string][]byte {
	random := make([]byte, benchSize)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(random)
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		b.Fatal(err)
	}
	return map[string][]byte{"random": random, "program": bytes.Repeat(program, benchSize/len(program)+1)[:benchSize]}
}

// reportCPU adds the processor time of both sides for a byte: on a busy machine
// it says more than the clock.
func reportCPU(b *testing.B, size int64) func() {
	start := cpuTime(b)
	return func() { b.ReportMetric(float64(cpuTime(b)-start)/float64(size*int64(b.N)), "cpu-ns/B") }
}

func cpuTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkFetch reads 64 MiB; "copy" is the same over a bare TLS 1.3
// connection, which nothing on this wire can beat.
func BenchmarkFetch(b *testing.B) {
	w := newWorld(b, ServerOptions{})
	c := w.pair(ClientOptions{})
	for name, data := range benchContents(b) {
		d := w.lib.add("web", data)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(benchSize)
			b.ReportAllocs()
			defer reportCPU(b, benchSize)()
			for b.Loop() {
				body, err := c.Fetch(b.Context(), d, 0, benchSize)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, body); err != nil || n != benchSize {
					b.Fatal(n, err)
				}
				_ = body.Close()
				<-w.lib.closed
			}
		})
	}
	b.Run("copy", func(b *testing.B) { benchCopy(b, w, benchSize) })
}

const (
	smallFiles = 4500
	smallSize  = 4 << 10
)

// BenchmarkFetchBatch reads 4,500 files of 4 KiB in two batches; "single" is
// one Fetch after the other, and "copy" the bytes alone.
func BenchmarkFetchBatch(b *testing.B) {
	w := newWorld(b, ServerOptions{})
	c := w.pair(ClientOptions{})
	rng := rand.NewChaCha8([32]byte{3})
	var want []manifest.Range
	for range smallFiles {
		data := make([]byte, smallSize)
		_, _ = rng.Read(data)
		want = append(want, manifest.Range{Digest: w.lib.add("web", data), Len: smallSize})
	}
	b.Run("batch", func(b *testing.B) {
		b.SetBytes(smallFiles * smallSize)
		b.ReportAllocs()
		defer reportCPU(b, smallFiles*smallSize)()
		for b.Loop() {
			for _, part := range [][]manifest.Range{want[:manifest.MaxBatch], want[manifest.MaxBatch:]} {
				if err := c.FetchBatch(b.Context(), part, func(_ int, _ []byte, err error) error { return err }); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("single", func(b *testing.B) {
		b.SetBytes(smallFiles * smallSize)
		defer reportCPU(b, smallFiles*smallSize)()
		for b.Loop() {
			for _, r := range want {
				if _, err := readAll(c.Fetch(b.Context(), r.Digest, 0, r.Len)); err != nil {
					b.Fatal(err)
				}
				<-w.lib.closed
			}
		}
	})
	b.Run("copy", func(b *testing.B) { benchCopy(b, w, smallFiles*smallSize) })
}

// benchCopy sends size bytes over TLS for each round.
func benchCopy(b *testing.B, w *world, size int64) {
	l, err := tls.Listen("tcp", "127.0.0.1:0", w.source.serverTLS())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		buf := make([]byte, pieceSize)
		for {
			var round [1]byte
			if _, err := io.ReadFull(conn, round[:]); err != nil {
				return
			}
			for left := size; left > 0; left -= int64(len(buf)) {
				if _, err := conn.Write(buf[:min(left, int64(len(buf)))]); err != nil {
					return
				}
			}
		}
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), w.standby.clientTLS(w.source.Fingerprint()))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	buf := make([]byte, pieceSize)
	b.SetBytes(size)
	defer reportCPU(b, size)()
	for b.Loop() {
		if _, err := conn.Write([]byte{1}); err != nil {
			b.Fatal(err)
		}
		for left := size; left > 0; {
			n, err := conn.Read(buf)
			if err != nil {
				b.Fatal(err)
			}
			left -= int64(n)
		}
	}
}

func BenchmarkPack(b *testing.B) {
	for name, data := range benchContents(b) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(pieceSize)
			b.ReportAllocs()
			defer reportCPU(b, pieceSize)()
			var pk packer
			for b.Loop() {
				pk.pack(data[:pieceSize])
			}
		})
	}
}

// BenchmarkBatch makes messages of 1,024 files of 4 KiB and reads them, without a
// wire; copy moves the same bytes once.
func BenchmarkBatch(b *testing.B) {
	const files, size = 1024, 4 << 10
	data := make([]byte, files*size)
	_, _ = rand.NewChaCha8([32]byte{4}).Read(data)
	file := func(i int) []byte { return data[i*size : (i+1)*size] }
	want := make([]manifest.Range, files)
	for i := range want {
		want[i] = manifest.Range{Digest: manifest.Sum(file(i)), Len: size}
	}
	encode := func(b *testing.B, send func(*message) error) {
		w := newBatchWriter(send)
		defer w.close()
		for i := range files {
			if err := w.add(i, file(i), nil); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.flush(); err != nil {
			b.Fatal(err)
		}
	}
	var messages [][]byte
	encode(b, func(m *message) error {
		messages = append(messages, bytes.Clone(m.body()))
		m.free()
		return nil
	})
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(files * size)
		b.ReportAllocs()
		for b.Loop() {
			encode(b, func(m *message) error { m.free(); return nil })
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(files * size)
		b.ReportAllocs()
		for b.Loop() {
			a := assembler{want: want, yield: func(_ int, _ []byte, err error) error { return err }}
			for _, raw := range messages {
				if err := a.add(raw); err != nil {
					b.Fatal(err)
				}
			}
			if err := a.end(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("copy", func(b *testing.B) {
		b.SetBytes(files * size)
		to := make([]byte, len(data))
		for b.Loop() {
			copy(to, data)
		}
	})
}

func BenchmarkAdmit(b *testing.B) {
	w := newWorld(b, ServerOptions{})
	w.pair(ClientOptions{})
	for b.Loop() {
		if _, err := w.peers.lookup(w.standby.Fingerprint()); err != nil {
			b.Fatal(err)
		}
	}
}
