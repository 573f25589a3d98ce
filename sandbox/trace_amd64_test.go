package sandbox

import "golang.org/x/sys/unix"

func callNumber(r *unix.PtraceRegs) uint64 { return r.Orig_rax }
