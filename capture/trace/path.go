package trace

import (
	"bytes"
	"strconv"
)

// join appends to dst the absolute path of raw, a path as a process handed it
// to the kernel. base is the directory that a relative path starts from and
// root the process's root; both come from the kernel, so they are absolute,
// clean and free of symbolic links. slash reports that raw ends in a way that
// makes the kernel follow a last symbolic link.
//
// A ".." is resolved here as long as only base has been walked: base has no
// symbolic links, so its parent is the name before. After the first name
// of raw that is no longer so, and ".." is kept.
func join(dst []byte, root string, base, raw []byte) (path []byte, slash bool) {
	start := len(dst)
	if len(raw) > 0 && raw[0] == '/' {
		dst = append(dst, root...)
	} else {
		dst = append(dst, base...)
	}
	floor := start
	if root != "/" && within(dst[start:], root) {
		floor += len(root)
	}
	if string(dst[start:]) == "/" {
		dst = dst[:start]
	}
	walked := false // a name of raw has been appended
	for len(raw) > 0 {
		var name []byte
		if i := bytes.IndexByte(raw, '/'); i >= 0 {
			name, raw = raw[:i], raw[i+1:]
			slash = true
		} else {
			name, raw = raw, nil
			slash = false
		}
		switch string(name) {
		case "":
			continue
		case ".":
			slash = true
			continue
		case "..":
			slash = true
			if !walked {
				if len(dst) > floor {
					dst = dst[:start+bytes.LastIndexByte(dst[start:], '/')]
				}
				continue
			}
		default:
			walked = true
		}
		dst = append(dst, '/')
		dst = append(dst, name...)
	}
	if len(dst) == start {
		dst = append(dst, '/')
	}
	return dst, slash
}

// within reports whether the clean path p is dir or below it.
func within(p []byte, dir string) bool {
	n := len(dir)
	return dir == "/" || len(p) >= n && string(p[:n]) == dir && (len(p) == n || p[n] == '/')
}

const deletedSuffix = " (deleted)"

// parseLink reads the text of a link such as /proc/PID/cwd and returns
// the part of it that is the path in the sandbox, whose own root has the name
// home in that text ("/" where it is the root of its mount namespace). It
// reports false for what is no path ("socket:[1]", "(unreachable)/x") or lies
// outside of home. suffixed: the text ends in " (deleted)", which can also be a
// part of the name.
func parseLink(text []byte, home string) (path []byte, suffixed, ok bool) {
	if len(text) == 0 || text[0] != '/' || !within(text, home) {
		return nil, false, false
	}
	path = text
	if home != "/" {
		path = text[len(home):]
		if len(path) == 0 {
			path = []byte{'/'}
		}
	}
	return path, len(path) > 1+len(deletedSuffix) && bytes.HasSuffix(path, []byte(deletedSuffix)), true
}

// parseTgid finds the process that a thread belongs to in the text of its
// /proc/TID/status. A process can choose the name in the first line, but not
// put a newline there. It returns 0 if there is none.
func parseTgid(status []byte) int {
	const tag = "\nTgid:"
	i := bytes.Index(status, []byte(tag))
	if i < 0 {
		return 0
	}
	field := status[i+len(tag):]
	if j := bytes.IndexByte(field, '\n'); j >= 0 {
		field = field[:j]
	} else {
		return 0 // cut short: the number may be too
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(field)), 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return int(n)
}
