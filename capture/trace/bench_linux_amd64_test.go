package trace

import (
	"os"
	"testing"

	"srvfs/sandbox"
)

// BenchmarkStart compares a program's whole life untraced, traced and under
// strace, all started the same way in the same sandbox:
//
//	go test -run - -bench Start ./capture/trace
func BenchmarkStart(b *testing.B) {
	if _, err := os.Stat("/usr/bin/strace"); err != nil {
		b.Fatalf("the baseline is strace: %v; install the package strace", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	for _, program := range []struct {
		name string
		sandbox.Command
	}{
		{"true", command("/bin/true")},
		{"sh-loop", shell("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do cat /etc/hosts; done")},
		{"sh-test", shell("i=0; while [ $i -lt 2000 ]; do test -e /etc/hosts; i=$((i+1)); done")},
		{"perl", command("perl", "-MPOSIX", "-MFile::Find", "-MSocket", "-e", "1")},
		{"python3", command("/usr/bin/python3", "-c", "import json, ssl, sqlite3, subprocess, threading, socket")},
	} {
		c := program.Command
		c.Stdout, c.Stderr = null, null
		run := func(b *testing.B, c sandbox.Command) {
			w := newWorld(b)
			for b.Loop() {
				p, err := w.sb.Run(w.ctx, c)
				if err != nil {
					b.Fatal(err)
				}
				if status, err := p.Wait(w.ctx); err != nil || !status.Success() {
					b.Fatalf("%v, %v", status, err)
				}
			}
		}
		b.Run(program.name+"/untraced", func(b *testing.B) { run(b, c) })
		b.Run(program.name+"/traced", func(b *testing.B) {
			w := newWorld(b)
			for b.Loop() {
				w.trace(c)
			}
		})
		for name, options := range map[string][]string{
			"strace":         {"-f", "-e", "trace=%file", "-o", "/dev/null"},
			"strace-seccomp": {"-f", "--seccomp-bpf", "-e", "trace=%file", "-o", "/dev/null"},
		} {
			under := c
			under.Argv = append(append([]string{"/usr/bin/strace"}, options...), c.Argv...)
			b.Run(program.name+"/"+name, func(b *testing.B) { run(b, under) })
		}
	}
}
