package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"srvfs/manifest"
)

// crashDir tells the re-executed test binary to fetch into a store until it is killed.
const crashDir = "SRVFS_STORE_TEST_CRASH_DIR"

// crashTree is the same in parent and child.
func crashTree(o *memoryOrigin) (*manifest.Snapshot, map[string][]byte) {
	files := map[string][]byte{}
	for i := range 60 {
		files[name(i)] = random(200+i*531, uint64(i)+1000)
	}
	for i := range 4 {
		files[fmt.Sprintf("/var/big%d", i)] = random((5+3*i)*chunk+i*999, uint64(i)+2000)
	}
	return o.tree(files, name(3), "/var/big1"), files
}

func crashChild(dir string) {
	o := newOrigin()
	snap, files := crashTree(o)
	o.gate = func(context.Context) error { time.Sleep(rand.N(200 * time.Microsecond)); return nil }
	s, err := Open(Options{Dir: dir})
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(3)
	}
	fmt.Println("ready")
	r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
	go func() {
		for {
			i := rand.IntN(4)
			p := fmt.Sprintf("/var/big%d", i)
			f, err := r.Open(context.Background(), newOrigin().file(p, files[p]))
			if err != nil {
				continue
			}
			_, _ = f.ReadAt(context.Background(), make([]byte, 1000), rand.Int64N(int64(len(files[p])-1000)))
			_ = f.Close()
		}
	}()
	if err := r.Prefetch(context.Background(), snap, nil); err != nil {
		fmt.Println("prefetch:", err)
		os.Exit(4)
	}
	select {}
}

// A process killed at any point leaves a store in which every blob is what its
// name says, and the next one goes on.
func TestKill(t *testing.T) {
	o := newOrigin()
	snap, files := crashTree(o)
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	var dir string
	for round := range rounds {
		if round%3 == 0 { // some go on in the store of the one before
			dir = filepath.Join(t.TempDir(), "store")
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 100)
		if n, _ := out.Read(line); string(line[:n]) != "ready\n" {
			t.Fatalf("child says %q", line[:n])
		}
		time.Sleep(rand.N(40 * time.Millisecond))
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		verifyBlobs(t, dir)
		if round%3 != 2 {
			continue
		}
		s, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		r := s.Reader(Source{Name: "origin", Origin: batchOrigin{o}})
		if err := r.Prefetch(ctxOf(t), snap, nil); err != nil {
			t.Fatal(err)
		}
		tally, err := r.Tally(ctxOf(t), snap)
		if err != nil || !tally.Detached {
			t.Errorf("after the crashes: %+v, %v", tally, err)
		}
		for p, b := range files {
			mustRead(t, s.Reader(), newOrigin().file(p, b), b)
		}
		if st := s.Stats(); st.Dropped != 0 {
			t.Errorf("%d damaged files after a kill", st.Dropped)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		verifyBlobs(t, dir)
		for _, sub := range []string{"tmp", "partial"} {
			if left, _ := os.ReadDir(filepath.Join(dir, sub)); len(left) != 0 {
				t.Errorf("%d files left in %s, such as %s", len(left), sub, left[0].Name())
			}
		}
	}
}
