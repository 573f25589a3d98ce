package trace

import "golang.org/x/sys/unix"

// A verdict is what the filter does with a system call.
type verdict uint32

const (
	pass   verdict = unix.SECCOMP_RET_ALLOW
	stop   verdict = unix.SECCOMP_RET_TRACE
	refuse verdict = unix.SECCOMP_RET_ERRNO | verdict(unix.ENOSYS)
	// unlessUnaddressed stops sendto only when it has an address: send, which
	// servers call for each answer, is a sendto without one.
	unlessUnaddressed verdict = 1
)

// Offsets in struct seccomp_data (linux/seccomp.h), on a little-endian machine.
const (
	dataNr   = 0
	dataArch = 4
	dataArg5 = 16 + 5*8
)

// x32Bit marks the calls of the x32 ABI, which share x86-64's arch value.
const x32Bit = 0x40000000

func ruling(nr int, reads bool) verdict {
	if _, ok := readCalls[uint64(nr)]; ok && reads {
		return stop
	}
	switch {
	case nr < 0 || nr >= maxCalls || !knownCalls[nr]:
		return stop // the tracer refuses it and keeps a gap
	case nr == unix.SYS_SENDTO:
		return unlessUnaddressed
	case calls[nr] != nil:
		return stop
	}
	for _, r := range refusedCalls {
		if nr == r {
			return refuse
		}
	}
	return pass
}

// span is a run of system call numbers, up to that of the next span, with one
// verdict.
type span struct {
	from uint32
	do   verdict
}

// filter returns the seccomp program, which stops the reading of content too if
// reads is true. It looks at the architecture first, then
// finds the verdict by binary search: at most nine comparisons.
// The kernel precomputes which calls always pass and runs no filter for them.
//
// A stop is one at a listener, or, for kernels where that is slow, one for ptrace.
func filter(reads, listen bool) []unix.SockFilter {
	program := filterFor(reads)
	if listen {
		for i, in := range program {
			if in.Code == unix.BPF_RET|unix.BPF_K && in.K == uint32(stop) {
				program[i].K = unix.SECCOMP_RET_USER_NOTIF
			}
		}
	}
	return program
}

func filterFor(reads bool) []unix.SockFilter {
	var spans []span
	for nr := range maxCalls {
		if do := ruling(nr, reads); nr == 0 || do != spans[len(spans)-1].do {
			spans = append(spans, span{uint32(nr), do})
		}
	}
	if spans[len(spans)-1].do != stop {
		spans = append(spans, span{maxCalls, stop})
	}
	// The number -1 is no call in any ABI; the kernel would answer the same.
	spans = append(spans, span{0xffffffff, refuse})

	program := []unix.SockFilter{
		statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataArch),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.AUDIT_ARCH_X86_64},
		statement(unix.BPF_RET|unix.BPF_K, uint32(stop)),
		statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataNr),
	}
	return append(program, search(spans)...)
}

// search returns the instructions that rule on the number in the accumulator,
// which is in one of spans.
func search(spans []span) []unix.SockFilter {
	if len(spans) == 1 {
		if spans[0].do != unlessUnaddressed {
			return []unix.SockFilter{statement(unix.BPF_RET|unix.BPF_K, uint32(spans[0].do))}
		}
		return []unix.SockFilter{
			statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataArg5),
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: 0},
			statement(unix.BPF_RET|unix.BPF_K, uint32(stop)),
			statement(unix.BPF_RET|unix.BPF_K, uint32(pass)),
		}
	}
	half := len(spans) / 2
	below, above := search(spans[:half]), search(spans[half:])
	pivot := spans[half].from
	var out []unix.SockFilter
	if len(below) <= 255 {
		out = append(out, unix.SockFilter{
			Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jt: uint8(len(below)), K: pivot})
	} else {
		// A conditional jump reaches 255 instructions, an unconditional one all.
		out = append(out,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: pivot},
			statement(unix.BPF_JMP|unix.BPF_JA, uint32(len(below))))
	}
	return append(append(out, below...), above...)
}

func statement(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
