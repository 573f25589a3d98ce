package main

import (
	"context"
	"fmt"
)

// Native returns a folder on the standby's own ext4 that holds the files of a
// service: its native form, with the device nodes that programs need. It is
// copied once, and cold or warm as the caller makes it.
func (s *Site) Native(ctx context.Context, service string) (dir string, err error) {
	dir = "/srv/native-" + service
	if s.copies[dir] {
		return dir, nil
	}
	if err := s.List(ctx, service); err != nil {
		return "", err
	}
	line := fmt.Sprintf("mkdir -p %[1]s; rsync -aH --files-from=:/root/%[2]s.closure rsync://%[3]s/root/ %[1]s/; ", dir, service, s.Source.Addr)
	if _, err := s.Standby.Shell(ctx, line+devices(dir)); err != nil {
		return "", err
	}
	s.copies[dir] = true
	return dir, nil
}

// devices is the shell line that adds to a copied root what nginx needs and no
// copy holds.
func devices(dir string) string {
	return fmt.Sprintf("mkdir -p %[1]s/dev %[1]s/run; test -e %[1]s/dev/null || mknod -m 666 %[1]s/dev/null c 1 3", dir)
}

// Overlay returns a folder on the standby on which a plain overlayfs over
// ext4 shows the files of a service: what every container gets. The upper layer
// lies on ext4 too.
func (s *Site) Overlay(ctx context.Context, service string) (dir string, err error) {
	lower, err := s.Native(ctx, service)
	if err != nil {
		return "", err
	}
	dir = "/srv/overlay-" + service
	if s.copies[dir] {
		return dir, nil
	}
	if _, err := s.Standby.Shell(ctx, fmt.Sprintf("mkdir -p %[1]s %[1]s.upper %[1]s.work; mount -t overlay -o lowerdir=%[2]s,upperdir=%[1]s.upper,workdir=%[1]s.work overlay %[1]s", dir, lower)); err != nil {
		return "", err
	}
	s.copies[dir] = true
	return dir, nil
}
