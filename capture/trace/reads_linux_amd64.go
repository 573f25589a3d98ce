package trace

import (
	"encoding/binary"
	"strconv"

	"golang.org/x/sys/unix"
)

// readCalls are the system calls that read a file's content, or map it. They
// are stopped only if reads are asked for: a server makes thousands of them.
var readCalls = map[uint64]func(*thread, *task, *entry){
	unix.SYS_READ:    func(th *thread, k *task, e *entry) { th.atPosition(k, e.args[0], int64(e.args[2])) },
	unix.SYS_READV:   func(th *thread, k *task, e *entry) { th.atPosition(k, e.args[0], th.vector(k, e.args[1], e.args[2])) },
	unix.SYS_PREAD64: func(th *thread, k *task, e *entry) { th.content(k, e.args[0], int64(e.args[3]), int64(e.args[2])) },
	unix.SYS_PREADV: func(th *thread, k *task, e *entry) {
		th.content(k, e.args[0], int64(e.args[3]), th.vector(k, e.args[1], e.args[2]))
	},
	unix.SYS_PREADV2: func(th *thread, k *task, e *entry) {
		n := th.vector(k, e.args[1], e.args[2])
		if off := int64(e.args[3]); off != -1 {
			th.content(k, e.args[0], off, n)
			return
		}
		th.atPosition(k, e.args[0], n)
	},
	unix.SYS_MMAP: func(th *thread, k *task, e *entry) {
		if e.args[3]&unix.MAP_ANONYMOUS == 0 {
			th.content(k, e.args[4], int64(e.args[5]), int64(e.args[1]))
		}
	},
	unix.SYS_SENDFILE:        func(th *thread, k *task, e *entry) { th.pointed(k, e.args[1], e.args[2], int64(e.args[3])) },
	unix.SYS_SPLICE:          func(th *thread, k *task, e *entry) { th.pointed(k, e.args[0], e.args[1], int64(e.args[4])) },
	unix.SYS_COPY_FILE_RANGE: func(th *thread, k *task, e *entry) { th.pointed(k, e.args[0], e.args[1], int64(e.args[4])) },
	unix.SYS_IO_SUBMIT:       (*thread).submitted,
}

// content records n bytes at off of what the descriptor fd of the task refers
// to, if they are wanted.
func (th *thread) content(k *task, fd uint64, off, n int64) {
	if path, ok := th.wanted(k, fd); ok {
		th.reads.add(path, off, n, th.record.count())
	}
}

// atPosition is content from the descriptor's position on.
func (th *thread) atPosition(k *task, fd uint64, n int64) {
	path, ok := th.wanted(k, fd)
	if !ok {
		return
	}
	if off, ok := th.window.position(k.tid, int(int32(fd))); ok {
		th.reads.add(path, off, n, th.record.count())
	}
}

// pointed is content from the offset at addr on, or from the position if addr is
// 0.
func (th *thread) pointed(k *task, fd, addr uint64, n int64) {
	if addr == 0 {
		th.atPosition(k, fd, n)
		return
	}
	if b, errno := th.window.bytes(k.tid, addr, 8); errno == 0 {
		th.content(k, fd, int64(binary.LittleEndian.Uint64(b)), n)
	}
}

func (th *thread) wanted(k *task, fd uint64) ([]byte, bool) {
	if int32(fd) < 0 || th.home == "" {
		return nil, false
	}
	path, gone, ok := th.window.link(k.tid, "fd", int(int32(fd)), th.home)
	return path, ok && !gone && th.reads.want(path)
}

// vector returns how many bytes an array of struct iovec has room for. Of more
// than 256 the first are counted.
func (th *thread) vector(k *task, addr, count uint64) (n int64) {
	const size = 16
	b, errno := th.window.bytes(k.tid, addr, int(min(count, pathMax/size))*size)
	if errno != 0 {
		return 0
	}
	for ; len(b) >= size; b = b[size:] {
		n += int64(min(binary.LittleEndian.Uint64(b[8:]), 1<<32))
	}
	return n
}

// submitted records the reads of an io_submit, up to 256 of them.
func (th *thread) submitted(k *task, e *entry) {
	const size, iocbSize, opPread, opPreadv = 8, 64, 0, 7
	count := min(e.args[1], 256)
	for i := range count {
		b, errno := th.window.bytes(k.tid, e.args[2]+i*size, size)
		if errno != 0 {
			return
		}
		if b, errno = th.window.bytes(k.tid, binary.LittleEndian.Uint64(b), iocbSize); errno != 0 {
			return
		}
		op, fd := binary.LittleEndian.Uint16(b[16:]), uint64(binary.LittleEndian.Uint32(b[20:]))
		buf, n, off := binary.LittleEndian.Uint64(b[24:]), binary.LittleEndian.Uint64(b[32:]), int64(binary.LittleEndian.Uint64(b[40:]))
		switch op {
		case opPread:
			th.content(k, fd, off, int64(min(n, 1<<32)))
		case opPreadv:
			th.content(k, fd, off, th.vector(k, buf, n))
		}
	}
}

// position returns where the next read of a descriptor begins. It leaves what
// link returned as it is.
func (w *window) position(pid, fd int) (int64, bool) {
	name := w.proc(pid, "fdinfo", fd)
	n, errno := readSmall(name, w.memory[:])
	if errno != 0 {
		return 0, false
	}
	const label = "pos:\t"
	text := w.memory[:n]
	if len(text) < len(label) || string(text[:len(label)]) != label {
		return 0, false
	}
	text = text[len(label):]
	end := 0
	for end < len(text) && text[end] >= '0' && text[end] <= '9' {
		end++
	}
	off, err := strconv.ParseInt(string(text[:end]), 10, 64)
	return off, err == nil
}
