package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
)

// profileEnv names a folder. Each process of a program that ends by itself writes
// a CPU profile of its life there, and a heap profile of its end: see `make
// profile`.
const profileEnv = "SRVFS_PROFILE"

// profile starts to profile the program if it is asked to. The returned function
// ends that, and complains on standard error if it can't.
func profile(program string) (end func()) {
	dir := os.Getenv(profileEnv)
	if dir == "" {
		return func() {}
	}
	name := filepath.Join(dir, fmt.Sprintf("%s-%d", program, os.Getpid()))
	err := os.MkdirAll(dir, 0o700)
	var cpu *os.File
	if err == nil {
		cpu, err = os.Create(name + ".cpu.pprof")
	}
	if err == nil {
		err = pprof.StartCPUProfile(cpu)
	}
	if err != nil {
		Print(os.Stderr, program, fmt.Errorf("profile: %w", err), "")
		return func() {}
	}
	return func() {
		pprof.StopCPUProfile()
		heap, err := os.Create(name + ".heap.pprof")
		if err == nil {
			runtime.GC() // so that the heap profile shows what is held, up to date
			err = errors.Join(pprof.WriteHeapProfile(heap), heap.Close())
		}
		if err = errors.Join(err, cpu.Close()); err != nil {
			Print(os.Stderr, program, fmt.Errorf("profile: %w", err), "")
		}
	}
}
