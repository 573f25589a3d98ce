// Package garden changes folders at random, in all ways there are, for tests of what has
// to notice: a view that moves, a snapshot that follows.
package garden

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// An Editor changes a folder in all ways there are, in a few places again and again.
type Editor struct {
	Dir  string
	Rand *rand.Rand
}

// Letters are the names that there may be in any folder.
const Letters = "abcdefgh"

// Pick returns a path that may be there, and how deep it is.
func (e *Editor) Pick() string {
	p := e.Dir
	for range 1 + e.Rand.IntN(4) {
		p += "/" + string(Letters[e.Rand.IntN(len(Letters))])
		if st, err := os.Lstat(p); err != nil || !st.IsDir() {
			break
		}
	}
	return p
}

// bytes are one of a few contents, so that files come to have the same.
func (e *Editor) bytes() []byte {
	b := make([]byte, []int{0, 1, 100, 5000, 20000, 300 << 10}[e.Rand.IntN(6)])
	for seed, i := e.Rand.IntN(3), 0; i < len(b); i++ {
		b[i] = byte(i>>8 ^ i + seed)
	}
	return b
}

// write writes to what is there, if that is no pipe that nobody reads.
func (e *Editor) write(p string, flags int, b []byte) {
	if f, err := os.OpenFile(p, flags|os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o644); err == nil {
		_, _ = f.Write(b)
		_ = f.Close()
	}
}

// Edit makes one change, which may come to nothing.
func (e *Editor) Edit() {
	p, q := e.Pick(), e.Pick()
	switch e.Rand.IntN(22) {
	case 0, 1:
		e.write(p, os.O_CREATE|os.O_TRUNC, e.bytes())
	case 2:
		e.write(p, os.O_APPEND, []byte("more"))
	case 3:
		if st, err := os.Lstat(p); err == nil && st.Mode().IsRegular() {
			_ = os.Truncate(p, st.Size()/2)
		}
	case 4: // over another
		_ = os.WriteFile(p+".new", e.bytes(), 0o600)
		if os.Rename(p+".new", p) != nil {
			_ = os.Remove(p + ".new")
		}
	case 5, 6: // a folder too
		_ = os.Rename(p, q)
	case 7, 8:
		_ = os.Link(p, q)
	case 9:
		_ = os.Remove(p)
	case 10:
		_ = unix.Chmod(p, uint32(0o400+e.Rand.IntN(0o400)))
	case 11:
		_ = os.Lchown(p, e.Rand.IntN(3), e.Rand.IntN(3))
	case 12:
		_ = unix.Lsetxattr(p, fmt.Sprint("trusted.", e.Rand.IntN(3)), fmt.Append(nil, e.Rand.IntN(5)), 0)
	case 13:
		_ = unix.Lremovexattr(p, fmt.Sprint("trusted.", e.Rand.IntN(3)))
	case 14: // by another type
		_ = os.RemoveAll(p)
		switch e.Rand.IntN(5) {
		case 0:
			_ = os.Symlink(string(Letters[e.Rand.IntN(len(Letters))]), p)
		case 1:
			_ = unix.Mkfifo(p, 0o600)
		case 2:
			_ = unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, uint32(3+e.Rand.IntN(3)))))
		case 3:
			e.write(p, os.O_CREATE, e.bytes())
		default:
			_ = os.MkdirAll(p+"/"+string(Letters[e.Rand.IntN(len(Letters))]), 0o755)
		}
	case 15, 16:
		_ = os.MkdirAll(p+"/"+string(Letters[e.Rand.IntN(len(Letters))]), 0o755)
	case 17: // away, and the same again
		if b, err := os.ReadFile(nonFIFO(p)); err == nil {
			_ = os.Remove(p)
			e.write(p, os.O_CREATE, b)
		}
	case 18:
		if st, err := os.Lstat(p); err == nil && st.IsDir() {
			for i := range 60 {
				_ = os.WriteFile(fmt.Sprintf("%s/many-%03d", p, i), []byte("x"), 0o644)
			}
		}
	case 19:
		all, _ := filepath.Glob(p + "/many-*")
		for _, f := range all {
			if e.Rand.IntN(3) > 0 {
				_ = os.Remove(f)
			}
		}
	case 20:
		_ = unix.Setxattr(nonFIFO(p), "system.posix_acl_access", ACL(uint32(4000+e.Rand.IntN(3)), 6), 0)
	case 21:
		ts := []unix.Timespec{{Sec: 5}, {Sec: int64(e.Rand.IntN(1000)), Nsec: 7}}
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
	}
}

// nonFIFO returns p if something is there that can be opened.
func nonFIFO(p string) string {
	if st, err := os.Lstat(p); err == nil && (st.Mode().IsRegular() || st.IsDir()) {
		return p
	}
	return "/nonexistent"
}

// ACL is the form of system.posix_acl_*: one user has perm, the group and others
// have nothing.
func ACL(user uint32, perm uint16) []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, ^uint32(0)}, {2, perm, user}, {4, 0, ^uint32(0)}, {16, 7, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}
