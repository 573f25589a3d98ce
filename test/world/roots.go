package world

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A RootKind names a root folder that hosts are made from: a Debian release
// and the packages in it.
type RootKind struct {
	Name     string
	Suite    string
	Packages []string
	On       *RootKind // made from that one, with these packages added; nil: from nothing
	RPM      bool      // rpm manages the packages, and dpkg has never been there
}

// The roots of the two hosts. They differ as two machines at a small site do:
// the same release, but only the source has the service.
var (
	SourceRoot  = RootKind{"source", "bookworm", []string{"nginx", "iproute2", "attr", "libcap2-bin", "acl", "rsync"}, nil, false}
	StandbyRoot = RootKind{"standby", "bookworm", []string{"iproute2", "rsync"}, nil, false}
)

// services are the packages of real services, each on a source of its own, and of
// three on one where rpm manages them.
var services = map[string][]string{
	"nginx":   {"nginx", "openssl"},
	"bind9":   {"bind9"},
	"postfix": {"postfix"},
	"dovecot": {"dovecot-imapd", "openssl"},
	"apache":  {"apache2", "libapache2-mod-php"},
	"python":  {"python3"},
	"node":    {"nodejs"},
	"mariadb": {"mariadb-server"},
	"sysv":    {"busybox", "sysvinit-utils", "lsb-base"},
	"static":  {},
	"sockets": {"rpcbind", "uuid-runtime"},
	"rpm":     {"nginx", "openssl", "bind9", "postfix"},
}

// ServiceRoot is the root of the source of a real service: the standby's, with the
// packages of that.
func ServiceRoot(name string) RootKind {
	return RootKind{"source-" + name, StandbyRoot.Suite, services[name], &StandbyRoot, name == "rpm"}
}

// ServiceRoots are all of them.
func ServiceRoots() (all []RootKind) {
	for _, name := range slices.Sorted(maps.Keys(services)) {
		all = append(all, ServiceRoot(name))
	}
	return all
}

// The same two with what the peers of the benchmark need on either side, and with
// what asks the standby for pages.
var (
	BenchSourceRoot  = RootKind{"bench-source", "bookworm", append([]string{"openssh-server"}, SourceRoot.Packages...), nil, false}
	BenchStandbyRoot = RootKind{"bench-standby", "bookworm", append([]string{"openssh-client", "sshfs", "rclone", "wrk"}, StandbyRoot.Packages...), nil, false}
)

// cacheDir keeps the tar archives of roots between runs.
const cacheDir = "/var/cache/srvfs-test"

// Archive returns the tar archive of a root, made by mmdebstrap if it is not
// there yet. It is safe to call from several processes at once.
func (k RootKind) Archive(ctx context.Context) (string, error) {
	if k.On != nil && len(k.Packages) == 0 {
		return k.On.Archive(ctx)
	}
	text := k.Suite + " " + strings.Join(k.Packages, ",")
	args := []string{"--variant=minbase"}
	if k.On != nil {
		base, err := k.On.Archive(ctx)
		if err != nil {
			return "", err
		}
		text += " " + filepath.Base(base)
		args = []string{"--variant=custom", "--skip=check/empty", `--setup-hook=tar --xattrs --xattrs-include=* -C "$1" -xpf ` + base}
	}
	sum := sha256.Sum256([]byte(text))
	path := filepath.Join(cacheDir, k.Name+"-"+hex.EncodeToString(sum[:6])+".tar")
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(path + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fresh := path + ".new.tar"
	if len(k.Packages) > 0 {
		args = append(args, "--include="+strings.Join(k.Packages, ","))
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg", k.Suite, fresh)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.Remove(fresh)
		return "", fmt.Errorf("make the %s root: mmdebstrap: %w\n%s", k.Name, err, out)
	}
	return path, os.Rename(fresh, path)
}

// lock waits for whoever else makes the same.
func lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, errors.Join(err, f.Close()))
	}
	return func() { _ = f.Close() }, nil
}

// Extract unpacks the root's archive into dir, which must not exist yet.
func (k RootKind) Extract(ctx context.Context, dir string) error {
	if k.RPM {
		return k.extractRPM(ctx, dir)
	}
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
