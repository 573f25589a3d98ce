package trace

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"srvfs/sandbox"
)

var (
	straceCall = regexp.MustCompile(`^\d+ +(\w+)\((.*)$`)
	// A path argument with the directory before it, as strace -y prints them:
	// AT_FDCWD</etc>, "hosts" or 3</etc>, "hosts" or "/etc/hosts".
	straceArg = regexp.MustCompile(`(?:(?:AT_FDCWD|\d+)<((?:[^>\\]|\\.)*)>, )?"((?:[^"\\]|\\.)*)"`)
)

// underStrace runs a command under strace in the sandbox, and returns the
// paths that it reports.
func (w *world) underStrace(c sandbox.Command) []string {
	w.Helper()
	if _, err := os.Stat("/usr/bin/strace"); err != nil {
		w.Fatalf("this test compares with strace: %v; install the package strace", err)
	}
	c.Argv = append([]string{"/usr/bin/strace", "-f", "-y", "-qq", "-s", "8192", "-e", "signal=none",
		"-e", "trace=%file,inotify_add_watch,fanotify_mark,move_mount,open_tree,fspick,quotactl,mount_setattr,futimesat",
		"-o", "/mnt/strace.out"}, c.Argv...)
	c.Stderr = nil
	if _, exit, err := w.sb.Output(w.ctx, c); err != nil || exit != 0 {
		w.Fatalf("%q: exit %d, %v", c.Argv, exit, err)
	}
	f, err := os.Open(filepath.Join(w.shared, "strace.out"))
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var paths []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := straceCall.FindStringSubmatch(lines.Text())
		if m == nil {
			continue // the second half of a call that was interrupted by another
		}
		found := straceArg.FindAllStringSubmatch(m[2], -1)
		n := 1
		switch m[1] {
		case "rename", "link", "renameat", "renameat2", "linkat", "move_mount":
			n = 2
		case "symlink", "symlinkat":
			found = found[min(1, len(found)):] // its text is no path
		case "getcwd":
			n = 0
		}
		for _, a := range found[:min(n, len(found))] {
			dir, err := strconv.Unquote(`"` + a[1] + `"`)
			if err != nil {
				w.Fatalf("%s: %v", lines.Text(), err)
			}
			raw, err := strconv.Unquote(`"` + a[2] + `"`)
			if err != nil {
				w.Fatalf("%s: %v", lines.Text(), err)
			}
			switch {
			case raw == "":
				continue // by descriptor
			case raw[0] != '/' && dir == "":
				dir = "/" // old calls don't show it: the commands below stay there
			}
			p, _ := join(nil, "/", []byte(dir), []byte(raw))
			paths = append(paths, string(p))
		}
	}
	if err := lines.Err(); err != nil {
		w.Fatal(err)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// volatile are paths that differ from run to run. The C library counts the
// processors when two threads happen to allocate at once.
var volatile = regexp.MustCompile(`^/proc/\d+(/|$)|^/tmp/.*[A-Za-z0-9_]{8}$|^/sys/devices/system/cpu/|^/proc/stat$`)

// Both see the same paths.
func TestAgainstStrace(t *testing.T) {
	w := newWorld(t)
	newer := []string{ // than the oracle, which prints numbers
		"getxattrat", "setxattrat", "listxattrat", "removexattrat", "file_getattr", "file_setattr", "open_tree_attr", "fchmodat2",
	}
	for _, test := range []struct {
		name string
		sandbox.Command
	}{
		{"sh", shell("for i in 1 2 3; do ls /etc /usr/lib > /dev/null; done; test -e /nothing; cat /etc/passwd /etc/none 2>/dev/null | grep root | sort")},
		{"find", shell("find /etc /usr/share/perl -newer /etc/passwd -exec cat {} + ; true")},
		{"cp", shell("cp -a /etc/default /tmp/copy && mv /tmp/copy /tmp/moved && ln -s x /tmp/moved/l && ln /tmp/moved/l /tmp/moved/k && rm -r /tmp/moved")},
		{"perl", command("perl", "-MPOSIX", "-MFile::Find", "-MSocket", "-e", `find({no_chdir => 1, wanted => sub { -l; -d _ }}, "/etc/apt"); opendir(D, "/usr"); readdir D; mkdir "/tmp/p"; rmdir "/tmp/p"; system("id; date")`)},
		{"python", command("/usr/bin/python3", "-c", "import json, ssl, sqlite3, subprocess, threading, socket\nsubprocess.run(['cat', '/etc/hosts'])\nfor i in range(4): threading.Thread(target=open, args=('/etc/passwd',)).start()")},
		{"calls", w.actor("calls", "/probe/")},
		{"spawn", w.actor("spawn")},
		{"getent", command("getent", "passwd", "root", "nobody")},
		{"tar", shell("tar -C /etc -cf - default apt | tar -C /tmp -xf -; rm -r /tmp/default /tmp/apt")},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := *w
			w.TB = t
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = null.Close() }()
			c := test.Command
			c.Stdout, c.Stderr = null, null
			theirs := w.underStrace(c)
			all, tr := w.trace(c)
			w.noGaps(tr)
			var ours []string
			for _, a := range all {
				if a.Op != Socket { // no class of strace has both files and addresses
					ours = append(ours, a.Path)
				}
			}
			known := func(p string) bool {
				return volatile.MatchString(p) ||
					slices.ContainsFunc(newer, func(n string) bool { return strings.HasPrefix(p, "/probe/"+n+"/") }) ||
					// What the sandbox does to start a program, and what the
					// program's place in PATH looks like for strace.
					p == "/" || strings.HasSuffix(p, "/"+c.Argv[0])
			}
			for _, p := range theirs {
				if !slices.Contains(ours, p) && !known(p) {
					t.Errorf("only strace sees %s", p)
				}
			}
			for _, p := range ours {
				if !slices.Contains(theirs, p) && !known(p) {
					t.Errorf("strace does not see %s", p)
				}
			}
			if len(theirs) < 5 {
				t.Errorf("strace sees only %q", theirs)
			}
		})
	}
}
