package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// RPMs returns a folder with a .rpm file for each package of the root, made by
// alien from the Debian packages that are installed there. It is made once.
func (k RootKind) RPMs(ctx context.Context) (string, error) {
	k.RPM = false
	archive, err := k.Archive(ctx)
	if err != nil {
		return "", err
	}
	dir := strings.TrimSuffix(archive, ".tar") + ".rpms"
	unlock, err := lock(dir + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(cacheDir, "rpms-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	root := filepath.Join(tmp, "root")
	if err := k.Extract(ctx, root); err != nil {
		return "", err
	}
	list, err := exec.CommandContext(ctx, "dpkg-query", "--admindir", root+"/var/lib/dpkg", "-W", "-f", "${Package}=${Version}\n").Output()
	if err != nil {
		return "", fmt.Errorf("packages of the %s root: %w", k.Name, err)
	}
	if out, err := exec.CommandContext(ctx, "apt-get", "update", "-qq").CombinedOutput(); err != nil {
		return "", fmt.Errorf("apt-get update: %w\n%s", err, out)
	}
	download := exec.CommandContext(ctx, "apt-get", append([]string{"download", "-qq"}, strings.Fields(string(list))...)...)
	download.Dir = tmp
	if out, err := download.CombinedOutput(); err != nil {
		return "", fmt.Errorf("download the packages of the %s root: %w\n%s", k.Name, err, out)
	}
	debs, err := filepath.Glob(tmp + "/*.deb")
	if err != nil {
		return "", err
	}
	made := filepath.Join(tmp, "made")
	if err := os.Mkdir(made, 0o755); err != nil {
		return "", err
	}
	queue := make(chan string, len(debs))
	for _, d := range debs {
		queue <- d
	}
	close(queue)
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		wg.Go(func() {
			for deb := range queue {
				if errs[i] = errors.Join(errs[i], alien(ctx, deb, tmp, made)); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	return dir, os.Rename(made, dir)
}

// alien turns one package into an .rpm file in the folder to.
func alien(ctx context.Context, deb, tmp, to string) error {
	dir, err := os.MkdirTemp(tmp, "alien-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cmd := exec.CommandContext(ctx, "alien", "--to-rpm", "--keep-version", "--target=x86_64", deb)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("alien %s: %w\n%s", filepath.Base(deb), err, out)
	}
	made, err := filepath.Glob(dir + "/*.rpm")
	if err == nil && len(made) != 1 {
		err = fmt.Errorf("alien made %q of %s", made, filepath.Base(deb))
	}
	if err != nil {
		return err
	}
	return os.Rename(made[0], filepath.Join(to, filepath.Base(made[0])))
}

// extractRPM is Extract of a root with RPM: rpm itself has entered each package
// into its database.
func (k RootKind) extractRPM(ctx context.Context, dir string) error {
	k.RPM = false
	rpms, err := k.RPMs(ctx)
	if err != nil {
		return err
	}
	if err := k.Extract(ctx, dir); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, "var/lib/dpkg")); err != nil {
		return err
	}
	files, err := filepath.Glob(rpms + "/*.rpm")
	if err != nil {
		return err
	}
	rpm := []string{"--root", dir, "--dbpath", "/var/lib/rpm"}
	for _, args := range [][]string{append(rpm, "--initdb"), append(append(rpm, "-i", "--justdb", "--nodeps", "--noscripts", "--replacefiles"), files...)} {
		if out, err := exec.CommandContext(ctx, "rpm", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("rpm %s: %w\n%s", args[4], err, out)
		}
	}
	return nil
}
