package elf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"srvfs/capture/rootfs"
)

// Limits of the kernel for scripts (fs/binfmt_script.c, fs/exec.c).
const (
	maxShebang = 256 // bytes of the file that are looked at
	maxScripts = 5   // scripts that name one another
)

// ErrScript: a script whose #! line the kernel would refuse.
var ErrScript = errors.New("script can't be executed")

// searched is where env(1) looks for a program when PATH does not say.
var searched = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// Interpreters returns the chain of programs that the kernel runs for the
// script at file: the one of its #! line, and that one's own if it is a script
// too. Where one is env(1), the program that it looks up follows. For a file
// without #! the chain is empty.
//
// The error wraps ErrScript if the kernel would not run it, fs.ErrNotExist if
// an interpreter does not exist; the chain up to there is returned with it.
func Interpreters(root *rootfs.Root, file string) ([]string, error) {
	var chain []string
	for scripts := 0; ; scripts++ {
		head, err := readHead(root, file)
		if err != nil {
			return chain, err
		}
		interp, arg, ok, err := parseShebang(head)
		if err != nil {
			return chain, fmt.Errorf("%s: %w", root.Host(file), err)
		}
		if !ok {
			return chain, nil
		}
		if scripts == maxScripts {
			return chain, fmt.Errorf("%s: more than %d scripts name one another: %w", root.Host(file), maxScripts, ErrScript)
		}
		if !path.IsAbs(interp) {
			interp = "/" + interp // a service starts in "/" unless it is told otherwise
		}
		chain = append(chain, interp)
		if _, err := root.Stat(interp); err != nil {
			return chain, fmt.Errorf("interpreter of %s: %w", root.Host(file), err)
		}
		file = interp
		if path.Base(interp) == "env" {
			if p := envProgram(root, arg); p != "" {
				chain = append(chain, p)
				file = p
			}
		}
	}
}

// envProgram returns what "env ARG" would run.
func envProgram(root *rootfs.Root, arg string) string {
	for _, w := range strings.Fields(arg) {
		if strings.HasPrefix(w, "-") {
			if rest, ok := strings.CutPrefix(w, "-S"); ok && rest != "" {
				w = rest
			} else {
				continue
			}
		}
		if strings.Contains(w, "=") {
			continue
		}
		if p, err := root.LookPath(w, searched); err == nil && path.IsAbs(p) {
			return p
		}
		return ""
	}
	return ""
}

func readHead(root *rootfs.Root, p string) ([]byte, error) {
	f, err := root.Open(p)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, maxShebang)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		if info, serr := f.Stat(); serr == nil && info.IsDir() {
			return nil, &fs.PathError{Op: "execute", Path: root.Host(p), Err: fs.ErrPermission}
		}
		return nil, err
	}
	return b[:n], nil
}

// parseShebang reads "#! interpreter [one argument]". A file without #! is not
// ok; one whose interpreter is missing or cut off is an error.
func parseShebang(b []byte) (interp, arg string, ok bool, err error) {
	s, ok := strings.CutPrefix(string(b), "#!")
	if !ok {
		return "", "", false, nil
	}
	line, _, ended := strings.Cut(s, "\n")
	full := len(b) < maxShebang // the whole file is here
	line, _, nul := strings.Cut(line, "\x00")
	line = strings.TrimLeft(line, " \t")
	end := strings.IndexAny(line, " \t")
	if end < 0 {
		if !ended && !nul && !full {
			return "", "", false, fmt.Errorf("interpreter has no end within %d bytes: %w", maxShebang, ErrScript)
		}
		end = len(line)
	}
	if end == 0 {
		return "", "", false, fmt.Errorf("#! without an interpreter: %w", ErrScript)
	}
	return line[:end], strings.Trim(line[end:], " \t"), true, nil
}
