package world

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A RootKind names a root folder that hosts are made from: a Debian release
// and the packages in it.
type RootKind struct {
	Name     string
	Suite    string
	Packages []string
}

// The roots of the two hosts. They differ as two machines at a small site do:
// the same release, but only the source has the service.
var (
	SourceRoot  = RootKind{"source", "bookworm", []string{"nginx", "iproute2", "attr", "libcap2-bin", "acl", "rsync"}}
	StandbyRoot = RootKind{"standby", "bookworm", []string{"iproute2", "rsync"}}
)

// The same two with what the peers of the benchmark need on either side, and with
// what asks the standby for pages.
var (
	BenchSourceRoot  = RootKind{"bench-source", "bookworm", append([]string{"openssh-server"}, SourceRoot.Packages...)}
	BenchStandbyRoot = RootKind{"bench-standby", "bookworm", append([]string{"openssh-client", "sshfs", "rclone", "wrk"}, StandbyRoot.Packages...)}
)

// cacheDir keeps the tar archives of roots between runs.
const cacheDir = "/var/cache/srvfs-test"

// Archive returns the tar archive of a root, made by mmdebstrap if it is not
// there yet. It is safe to call from several processes at once.
func (k RootKind) Archive(ctx context.Context) (string, error) {
	sum := sha256.Sum256([]byte(k.Suite + " " + strings.Join(k.Packages, ",")))
	path := filepath.Join(cacheDir, k.Name+"-"+hex.EncodeToString(sum[:6])+".tar")
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fresh := path + ".new.tar"
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--variant=minbase", "--include="+strings.Join(k.Packages, ","),
		"--keyring=/usr/share/keyrings/debian-archive-keyring.gpg", k.Suite, fresh)
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.Remove(fresh)
		return "", fmt.Errorf("make the %s root: mmdebstrap: %w\n%s", k.Name, err, out)
	}
	return path, os.Rename(fresh, path)
}

// Extract unpacks the root's archive into dir, which must not exist yet.
func (k RootKind) Extract(ctx context.Context, dir string) error {
	archive, err := k.Archive(ctx)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "tar", "-C", dir, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", archive).CombinedOutput()
	if err != nil {
		return fmt.Errorf("unpack %s: %w\n%s", archive, err, out)
	}
	return nil
}
