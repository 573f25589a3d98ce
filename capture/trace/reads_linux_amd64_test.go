package trace

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestReads sees which parts of one file are read, by each way of reading that
// programs have, and nothing of another.
func TestReads(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"big", "other"} {
		f, err := os.Create(filepath.Join(w.shared, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(64 << 20); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	tr := NewWithReads(w.sb, func(path string) bool { return path == "/mnt/big" })
	const script = `
import os, mmap
f = os.open("/mnt/big", os.O_RDONLY)
os.lseek(f, 1 << 20, 0)
os.read(f, 10)
os.pread(f, 100, (1 << 20) + 65536)
os.preadv(f, [bytearray(100000), bytearray(100000)], 8 << 20)
mmap.mmap(f, 65536, prot=mmap.PROT_READ, offset=16 << 20)
r, p = os.pipe()
os.splice(f, p, 65536, offset_src=32 << 20)
os.pread(f, 10, 1 << 20)
os.pread(os.open("/mnt/other", os.O_RDONLY), 10, 0)
`
	for _, c := range []struct{ argv []string }{
		{[]string{"/usr/bin/python3", "-c", script}},
		{[]string{"dd", "if=/mnt/big", "of=/dev/null", "bs=64k", "skip=100", "count=2"}},
	} {
		p, err := tr.Start(w.ctx, command(c.argv...))
		if err != nil {
			t.Fatal(err)
		}
		if status, err := p.Wait(w.ctx); err != nil || !status.Success() {
			t.Fatalf("%v: %v, %v", c.argv, status, err)
		}
	}
	if _, err := tr.Finish(w.ctx); err != nil {
		t.Fatal(err)
	}
	var got [][2]int64
	for _, r := range tr.Reads() {
		if r.Path != "/mnt/big" || r.After == 0 {
			t.Errorf("%+v", r)
		}
		got = append(got, [2]int64{r.Off, r.Len})
	}
	want := [][2]int64{{1 << 20, 128 << 10}, {8 << 20, 256 << 10}, {16 << 20, 64 << 10}, {32 << 20, 64 << 10}, {100 << 16, 128 << 10}}
	if !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
}
