package main

import (
	"context"
	"strings"

	"srvfs/test/world"
)

// A peer is another way to get a service's files to the standby and start nginx
// on them. In its lines SOURCE stands for the source's address, SERVICE for
// the name of the service, and DIR for the folder that becomes the root.
type peer struct {
	name  string
	there string // warms its program on the source
	here  string // and on the standby
	bring string // puts the files at DIR
	end   string // takes away what bring made, but for DIR
}

const ssh = "root@SOURCE"

var (
	rsync      = peer{"rsync -a", "rsync --version", "rsync --version; ssh -V", "rsync -a --files-from=:/root/SERVICE.closure " + ssh + ":/ DIR/", ""}
	rsyncz     = peer{"rsync -az", "rsync --version", "rsync --version; ssh -V", "rsync -az --files-from=:/root/SERVICE.closure " + ssh + ":/ DIR/", ""}
	rsyncd     = peer{"rsync -a, no ssh", "rsync --version", "rsync --version", "rsync -a --files-from=:/root/SERVICE.closure rsync://SOURCE/root/ DIR/", ""}
	tarOverSSH = peer{"tar over ssh", "tar --version", "tar --version; ssh -V",
		"ssh " + ssh + " 'tar -C / --no-recursion -T /root/SERVICE.closure -cf -' | tar -C DIR -xpf -", ""}
	sshfs = peer{"sshfs", "cat /usr/lib/openssh/sftp-server", "sshfs --version; ssh -V",
		"sshfs " + ssh + ":/ DIR -o kernel_cache,auto_cache,entry_timeout=3600,attr_timeout=3600,negative_timeout=3600,dcache_timeout=3600,dcache_max_size=100000," +
			"no_contain_symlinks,dev,suid,allow_other", "fusermount3 -u DIR"}
	rclone = peer{"rclone mount", "cat /usr/lib/openssh/sftp-server", "rclone version",
		"rclone mount :sftp:/ DIR --sftp-host SOURCE --sftp-user root --sftp-key-file /root/.ssh/id_ed25519 --vfs-cache-mode full --dir-cache-time 1h --attr-timeout 1h " +
			"--read-only --file-perms 0755 --allow-other --cache-dir /srv/rclone --daemon > /dev/null 2>&1", "fusermount3 -u DIR; rm -rf /srv/rclone"}
)

// mounts tells whether the peer shows the source's files instead of copying
// them: what nginx writes must then not reach the source.
func (p peer) mounts() bool { return p.end != "" }

func (p peer) fill(s *Site, service, line string) string {
	return strings.NewReplacer("SOURCE", s.Source.Addr, "SERVICE", service, "DIR", "/srv/copy").Replace(line)
}

// answers measures the time from the peer's command to the first answer of
// nginx.
func (p peer) answers(service string, w world.Wire) Run {
	return Run{p.name, func(ctx context.Context, s *Site) (Sample, error) {
		start := devices("DIR")
		end := "rm -rf DIR"
		if p.mounts() {
			start = "mount -t tmpfs tmpfs DIR/run; mount -t tmpfs tmpfs DIR/var/log/nginx; mount -t tmpfs tmpfs DIR/var/lib/nginx; for d in dev proc sys; do mount --rbind /$d DIR/$d; done"
			end = "umount -R DIR/run DIR/var/log/nginx DIR/var/lib/nginx DIR/dev DIR/proc DIR/sys; " + p.end + "; rmdir DIR"
		}
		if err := s.readyFor(ctx, p, w); err != nil {
			return Sample{}, err
		}
		sample, err := s.Timed(s.Standby, func() error {
			if _, err := s.Standby.Shell(ctx, p.fill(s, service, p.bring+"; "+start+"; chroot DIR nginx")); err != nil {
				return err
			}
			return s.Ask(ctx, s.Standby)
		})
		if err != nil {
			return sample, err
		}
		_, err = s.Standby.Shell(ctx, p.fill(s, service, stopNginx+end))
		return sample, err
	}}
}

// stopNginx ends the nginx that was started in DIR, and waits until it is gone.
const stopNginx = "pid=$(cat DIR/run/nginx.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.02; done; "

// reads measures a line that reads what the peer shows at DIR, cold. The mount
// stands before.
func (p peer) reads(line string, w world.Wire) measurement {
	return func(ctx context.Context, s *Site) (Sample, error) {
		if err := s.readyFor(ctx, p, w); err != nil {
			return Sample{}, err
		}
		if _, err := s.Standby.Shell(ctx, p.fill(s, "", p.bring)); err != nil {
			return Sample{}, err
		}
		sample, err := s.Timed(s.Standby, func() error {
			_, err := s.Standby.Shell(ctx, p.fill(s, "", line))
			return err
		})
		if err == nil {
			_, err = s.Standby.Shell(ctx, p.fill(s, "", p.end+"; rmdir DIR"))
		}
		return sample, err
	}
}

// copies measures how long rsync takes to bring in a file or folder of the source.
func (p peer) copies(path string, w world.Wire) measurement {
	return func(ctx context.Context, s *Site) (Sample, error) {
		if err := s.readyFor(ctx, p, w); err != nil {
			return Sample{}, err
		}
		sample, err := s.Timed(s.Standby, func() error {
			_, err := s.Standby.Shell(ctx, p.fill(s, "", "rsync -a "+ssh+":/"+path+" DIR/"))
			return err
		})
		if err == nil {
			_, err = s.Standby.Shell(ctx, p.fill(s, "", "rm -rf DIR"))
		}
		return sample, err
	}
}

// readyFor makes DIR, and everything cold and on that wire.
func (s *Site) readyFor(ctx context.Context, p peer, w world.Wire) error {
	if _, err := s.Standby.Shell(ctx, p.fill(s, "", "mkdir DIR")); err != nil {
		return err
	}
	if err := s.Cool(ctx, s.Standby, p.there, p.here); err != nil {
		return err
	}
	return s.Wire(ctx, w)
}
