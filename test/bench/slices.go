package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"srvfs/test/world"
)

// Slices is the source of the program that does the same work in several roots in
// turn. It is C, and linked statically, so that next to nothing but the work is
// in its figures.
//
//go:embed testdata/slices.c
var slicesSource []byte

// A place is where slices does its work: a path in a root of the standby.
type place struct{ run, root, path string }

// inSlices does a work of the program in all places, so many operations in each
// slice, and returns the nanoseconds that one operation took in each slice by the
// place's run.
func (s *Site) inSlices(ctx context.Context, work string, slices, operations int, places ...place) (Results, error) {
	argv := []string{"/usr/local/sbin/slices", work, strconv.Itoa(slices), strconv.Itoa(operations)}
	for _, p := range places {
		argv = append(argv, p.root, p.path)
	}
	out, err := s.Standby.Run(ctx, argv...)
	if err != nil {
		return nil, err
	}
	results := Results{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) != len(places) {
			return nil, fmt.Errorf("slices printed %q for %d places", line, len(places))
		}
		for i, f := range fields {
			ns, err := strconv.ParseFloat(f, 64)
			if err != nil {
				return nil, err
			}
			results[places[i].run] = append(results[places[i].run], Sample{Value: ns})
		}
	}
	if n := len(results[places[0].run]); n != slices {
		return nil, fmt.Errorf("slices printed %d lines, not %d", n, slices)
	}
	return results, nil
}

// tools captures a service that does nothing but sleep, with what slices works
// with: a program that is in the profile, for the probe executes it, one that is not,
// and a file. It brings slices to the standby.
func tools(ctx context.Context, s *Site) error {
	return s.Capture(ctx, "tools", func() error {
		program := filepath.Join(s.dir, "slices")
		cc := exec.CommandContext(ctx, "gcc", "-O2", "-static", "-x", "c", "-o", program, "-")
		cc.Stdin = bytes.NewReader(slicesSource)
		if out, err := cc.CombinedOutput(); err != nil {
			return fmt.Errorf("compile slices: %w\n%s", err, out)
		}
		if err := s.Standby.Install(program, "usr/local/sbin/slices"); err != nil {
			return err
		}
		if err := randomFile(filepath.Join(s.Source.Root, toolsDir, "file"), s.warmSize()); err != nil {
			return err
		}
		_, err := s.Source.Shell(ctx, "cp "+profiled+" "+unprofiled)
		return err
	}, "--exec '/usr/bin/sleep infinity' --probe exec:"+profiled+" --include "+toolsDir)
}

const (
	toolsDir   = "/srv/tools"
	profiled   = "/usr/bin/true"
	unprofiled = toolsDir + "/unprofiled"
)

// besides runs the service tools, with all content stored, beside its baselines,
// and calls f with the three roots, which are warm. That the kernel then asks the
// view for no more than f says does not depend on time.
func (s *Site) besides(ctx context.Context, f func(root, overlay, native string) (upcalls uint64, err error)) error {
	native, err := s.Native(ctx, "tools")
	if err != nil {
		return err
	}
	overlay, err := s.Overlay(ctx, "tools")
	if err != nil {
		return err
	}
	if err := s.Daemon(ctx, s.Standby, world.Wire{}, "--host-root", ""); err != nil {
		return err
	}
	if _, err := s.Standby.Shell(ctx, "srvfs prefetch "+s.Spec("tools")+"; srvfs run "+s.Spec("tools")+"; sync; echo 3 > /proc/sys/vm/drop_caches"); err != nil {
		return err
	}
	root, err := s.Root(ctx, s.Standby, "tools")
	if err != nil {
		return err
	}
	for _, dir := range []string{root, overlay, native} { // read alike, so that pages lie alike
		if _, err := s.Standby.Shell(ctx, fmt.Sprintf("cat %[1]s%[2]s/file > /dev/null; chroot %[1]s %[3]s; chroot %[1]s %[4]s", dir, toolsDir, profiled, unprofiled)); err != nil {
			return err
		}
	}
	before, err := s.Status(ctx, s.Standby, "tools")
	if err != nil {
		return err
	}
	allowed, err := f(root, overlay, native)
	if err != nil {
		return err
	}
	after, err := s.Status(ctx, s.Standby, "tools")
	if err != nil {
		return err
	}
	if asked := after.Asked() - before.Asked(); asked > allowed {
		return fmt.Errorf("the kernel has asked the view %d times, of at most %d: %v, before %v", asked, allowed, after.Upcalls, before.Upcalls)
	}
	if _, err := s.Standby.Shell(ctx, "srvfs remove tools"); err != nil {
		return err
	}
	return s.EndDaemon(ctx, s.Standby)
}
