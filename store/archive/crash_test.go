package archive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"srvfs/fs/fstest"
	"srvfs/manifest"
)

// exporting, in the environment of a test binary, makes it export instead:
// destination, folder and number of the snapshot.
const exporting = "ARCHIVE_TEST_EXPORT"

func TestMain(m *testing.M) {
	if job := os.Getenv(exporting); job != "" {
		if err := exportAsTold(strings.Split(job, "\n")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func exportAsTold(job []string) error {
	number, err := strconv.ParseUint(job[2], 10, 64)
	if err != nil {
		return err
	}
	tree, err := fstest.Scan(job[1])
	if err != nil {
		return err
	}
	s := tree.Snapshot("web")
	s.Sequence = number
	fmt.Println("begin")
	_, err = Write(context.Background(), job[0], s, disk{tree}, Options{Temp: job[3]})
	fmt.Println("end")
	return err
}

// An export that is killed, at whatever point, leaves an archive of which each snapshot is
// what it was, and the next one goes on. Nothing stays behind in the end.
func TestKilled(t *testing.T) {
	self, err := os.Executable()
	must(t, err)
	addr, _ := registryServer(t, "")
	base := t.TempDir()
	for _, dest := range []string{filepath.Join(base, "layout"), filepath.Join(base, "file.tar"), "docker://" + addr + "/web:v1"} {
		t.Run(filepath.Base(dest), func(t *testing.T) {
			rounds := 12
			if strings.HasPrefix(dest, registryPrefix) {
				rounds = 6
			}
			dir, temp := contentsDir(t), t.TempDir()
			run := func(number int, wait time.Duration) (killed bool, took time.Duration) {
				write(t, filepath.Join(dir, "changes", strconv.Itoa(number%5)), strings.Repeat(fmt.Sprint(rand.Uint64()), 20_000))
				c := exec.Command(self)
				c.Env = append(os.Environ(), exporting+"="+strings.Join([]string{dest, dir, strconv.Itoa(number), temp}, "\n"))
				c.Stderr = os.Stderr
				out, err := c.StdoutPipe()
				must(t, err, c.Start())
				lines := bufio.NewReader(out)
				if line, err := lines.ReadString('\n'); err != nil || line != "begin\n" {
					t.Fatalf("the export says %q, %v", line, err)
				}
				start := time.Now()
				stop := time.AfterFunc(wait, func() { _ = c.Process.Kill() })
				rest, _ := io.ReadAll(lines)
				took = time.Since(start)
				stop.Stop()
				if err := c.Wait(); err != nil && !strings.Contains(err.Error(), "killed") {
					t.Fatal(err)
				}
				return string(rest) != "end\n", took
			}
			roots := map[uint64]manifest.Digest{}
			root := func(number int) {
				s, _ := scan(t, dir, uint64(number))
				roots[s.Sequence] = s.Root.Digest
			}
			// The first one too: there is no archive then, or it is whole.
			if killed, _ := run(1, 20*time.Millisecond); killed {
				if a, err := Open(t.Context(), dest, OpenOptions{}); err == nil {
					must(t, a.Close())
				} else if !errors.Is(err, manifest.ErrNotFound) && !errors.Is(err, manifest.ErrInvalid) {
					t.Fatal(err)
				}
			}
			root(1)
			_, took := run(2, time.Minute)
			root(2)
			kills := 0
			for i := 3; i < 3+rounds; i++ {
				killed, lasted := run(i, rand.N(took))
				if killed {
					kills++
				} else {
					took = min(took, lasted) // the machine may be busy with something else
				}
				root(i)
				a, err := Open(t.Context(), dest, OpenOptions{})
				if err != nil {
					t.Fatalf("after round %d: %v", i, err)
				}
				newest := a.Snapshots()[0].Sequence
				if !killed && newest != uint64(i) || newest > uint64(i) {
					t.Fatalf("after round %d the newest is %d", i, newest)
				}
				for _, e := range a.Snapshots() {
					if checkout(t, a, manifest.Ref{Sequence: e.Sequence}) != roots[e.Sequence] {
						t.Fatalf("after round %d: snapshot %d is another", i, e.Sequence)
					}
				}
				must(t, a.Close())
			}
			if kills == 0 {
				t.Errorf("none of %d exports was killed", rounds)
			}
			if killed, _ := run(100, time.Minute); killed {
				t.Fatal("the last export was killed")
			}
			root(100)
			a := open(t, dest, OpenOptions{})
			if checkout(t, a, manifest.Ref{}) != roots[100] {
				t.Error("the last one is another")
			}
			t.Logf("%d of %d exports were killed", kills, rounds)
			noRemains(t, dest, temp, a)
		})
	}
}

// noRemains fails the test if something lies about that belongs to no snapshot.
func noRemains(t *testing.T, dest, temp string, a *Archive) {
	t.Helper()
	list, err := os.ReadDir(temp)
	if err != nil || len(list) > 0 {
		t.Errorf("what was staged lies about: %v, %v", list, err)
	}
	if strings.HasPrefix(dest, registryPrefix) {
		return
	}
	if list, err = os.ReadDir(filepath.Dir(dest)); err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if strings.Contains(e.Name(), fresh) {
			t.Errorf("%s lies about", e.Name())
		}
	}
	_, blobs, err := a.kept()
	must(t, err)
	used := map[string]bool{}
	for _, d := range blobs {
		used[d.Digest.Hex()] = true
	}
	list, err = os.ReadDir(filepath.Join(dest, "blobs/sha256"))
	if err != nil && !strings.HasSuffix(dest, ".tar") {
		t.Fatal(err)
	}
	for _, e := range list {
		if !used[e.Name()] {
			t.Errorf("blob %s belongs to nothing", e.Name())
		}
	}
	if list, err = os.ReadDir(dest); err == nil && len(list) != 3 {
		t.Errorf("the folder holds %v", list)
	}
}

// Two exports to one place at a time do not disturb each other: one of them is told.
func TestBusy(t *testing.T) {
	dir := everything(t)
	for _, name := range []string{"layout", "file.tar"} {
		dest := filepath.Join(t.TempDir(), name)
		s, src := scan(t, dir, 1)
		_, err := Write(t.Context(), dest, s, slow{src, func() error {
			_, err := Write(t.Context(), dest, s, src, Options{})
			if !errors.Is(err, manifest.ErrUnavailable) || !strings.Contains(err.Error(), "under way") {
				return fmt.Errorf("the second export: %w", errors.Join(err, errors.New("is not refused")))
			}
			return nil
		}}, Options{})
		must(t, err)
		checkout(t, open(t, dest, OpenOptions{}), manifest.Ref{})
	}
}

// slow does something else at each reading.
type slow struct {
	disk
	meanwhile func() error
}

func (s slow) Read(ctx context.Context, c manifest.Content) (io.ReadCloser, error) {
	if err := s.meanwhile(); err != nil {
		return nil, err
	}
	return s.disk.Read(ctx, c)
}
