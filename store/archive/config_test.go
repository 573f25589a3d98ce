package archive

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// What goes into the background is waited for, and told to stop.
func TestForeground(t *testing.T) {
	dir := t.TempDir()
	pid := filepath.Join(dir, "it's the pid")
	daemon := filepath.Join(dir, "daemon")
	// A daemon as they are: it leaves behind a process with a PID file.
	write(t, daemon, `#!/bin/sh
( while ! [ -s "$2" ]; do sleep 0.01; done; trap 'echo stopped >&2; exit 0' TERM; echo "started $1" >&2; while :; do sleep 0.05; done ) </dev/null >/dev/null &
echo $! >"$2"
`)
	must(t, os.Chmod(daemon, 0o755))
	u := &manifest.Unit{Kind: manifest.Forking, PIDFile: pid, Signal: int(unix.SIGTERM), Pre: []manifest.Command{{Argv: []string{"/bin/true"}}, {Argv: []string{"/bin/false"}, MayFail: true}},
		Start: []manifest.Command{{Argv: []string{daemon, "a 'quoted' $word", pid}}}}
	c := exec.Command("/bin/sh", "-c", foreground(u))
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	out, err := c.StderrPipe()
	must(t, err, c.Start())
	t.Cleanup(func() { _ = unix.Kill(-c.Process.Pid, unix.SIGKILL) })
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "started a 'quoted' $word" {
		t.Fatalf("%q, %v", lines.Text(), lines.Err())
	}
	must(t, unix.Kill(c.Process.Pid, 0), c.Process.Signal(unix.SIGTERM))
	if !lines.Scan() || lines.Text() != "stopped" {
		t.Fatalf("%q, %v", lines.Text(), lines.Err())
	}
	for lines.Scan() {
		t.Log(lines.Text())
	}
	_ = c.Wait()
	b, err := os.ReadFile(pid)
	must(t, err)
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || unix.Kill(n, 0) == nil {
		t.Errorf("process %q still runs, %v", b, err)
	}
	// A start that fails is a failure.
	u.Start[0].Argv = []string{"/bin/false"}
	must(t, os.Remove(pid))
	if err := exec.Command("/bin/sh", "-c", foreground(u)).Run(); err == nil {
		t.Error("a start that fails ends well")
	}
}
