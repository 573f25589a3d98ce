package service

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// overlayOptions are the same for every root.
//
// metacopy and redirect_dir are what leads from a name in the tree to content
// in the blobs; they also spare the copy of a file of which only the owner or
// mode changes. index and nfs_export are off because both remember lower files
// by handle, and the handles of a view end with its mount. xino is on so that
// all of the root has one device number, as programs that stay on one file
// system expect.
const overlayOptions = "metacopy=on,redirect_dir=on,index=off,nfs_export=off,xino=on"

// maxMountData is what mount(2) takes: a page, with its NUL.
const maxMountData = 4096 - 1

// escape makes a path safe inside overlayfs's options, where a colon separates
// layers and a comma separates options.
var escape = strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`)

// overlayData returns the options of the root's mount.
func overlayData(l Layers, upper, work string) (string, error) {
	var b strings.Builder
	b.WriteString("lowerdir=")
	if l.Stubs != "" {
		b.WriteString(escape.Replace(l.Stubs) + ":")
	}
	b.WriteString(escape.Replace(l.Tree))
	for _, data := range []string{l.Gate, l.Blobs, l.Failed} {
		if data != "" {
			b.WriteString("::" + escape.Replace(data))
		}
	}
	b.WriteString(",upperdir=" + escape.Replace(upper) + ",workdir=" + escape.Replace(work) + "," + overlayOptions)
	if b.Len() > maxMountData {
		return "", fmt.Errorf("overlay of %.80s...: the paths of its layers take %d bytes, the kernel allows %d: use a shorter state folder: %w", l.Tree, b.Len(), maxMountData, manifest.ErrInvalid)
	}
	return b.String(), nil
}

// layered reports whether l needs data-only layers.
func (l Layers) layered() bool { return l.Gate != "" || l.Blobs != "" || l.Failed != "" }

// check refuses what the kernel would refuse without saying why.
func (l Layers) check() error {
	if l.layered() && l.Blobs == "" {
		return fmt.Errorf("gate %q or failed %q without blobs: %w", l.Gate, l.Failed, manifest.ErrInvalid)
	}
	if l.Stubs != "" && l.Blobs == "" {
		return fmt.Errorf("stubs %q without blobs: %w", l.Stubs, manifest.ErrInvalid)
	}
	for what, p := range map[string]string{"stubs": l.Stubs, "tree": l.Tree, "gate": l.Gate, "blobs": l.Blobs, "failed": l.Failed} {
		if p == "" && what != "tree" {
			continue
		}
		if !manifest.ValidPath(p) {
			return fmt.Errorf("%s folder %q is not a clean absolute path: %w", what, p, manifest.ErrInvalid)
		}
	}
	if l.layered() {
		if ok, why := CanLayer(); !ok {
			return fmt.Errorf("overlay of %s: this kernel has no data-only layers (%s): give a plain view as the tree, without gate and blobs", l.Tree, why)
		}
	}
	return nil
}

// withoutContent returns a file in an upper whose content is in the data-only
// layers of the root that it was written in: its attributes were changed there.
// Over other layers it would be empty. Whiteouts and the like lose nothing.
func withoutContent(upper string) (found string, err error) {
	err = filepath.WalkDir(upper, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		_, err = unix.Lgetxattr(path, "trusted.overlay.metacopy", nil)
		switch {
		case errors.Is(err, unix.ENODATA):
			return nil
		case err != nil:
			return fmt.Errorf("attributes of %s: %w", path, err)
		}
		found = path
		return fs.SkipAll
	})
	return found, err
}

// CanLayer reports whether this kernel has data-only overlay layers (Linux 6.5
// and later), and if not, why. It tries, once per process, with a small overlay
// in a mount namespace of its own.
func CanLayer() (bool, string) {
	if err := canLayer(); err != nil {
		return false, err.Error()
	}
	return true, ""
}

var canLayer = sync.OnceValue(func() error {
	result := make(chan error, 1)
	try := func() { result <- tryLayers() }
	go func() {
		// The thread gets a mount namespace of its own and is never unlocked, so
		// that it ends with this goroutine, and the namespace with it. The main
		// thread would not end, only sleep: while this goroutine holds it,
		// another runs elsewhere.
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			try()
			return
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			try()
		}()
		<-done
		runtime.UnlockOSThread()
	}()
	return <-result
})

// tryLayers builds an overlay with one data-only layer on a tmpfs and reads
// through it. It changes the calling thread's mount namespace.
func tryLayers() (err error) {
	dir, err := os.MkdirTemp("", "srvfs-layers-")
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return errors.Join(fmt.Errorf("own mount namespace: %w", err), os.Remove(dir))
	}
	defer func() {
		if e := unix.Unmount(dir, unix.MNT_DETACH); e != nil && err == nil {
			err = fmt.Errorf("unmount %s: %w", dir, e)
		}
		if e := os.Remove(dir); err == nil {
			err = e
		}
	}()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("srvfs", dir, "tmpfs", unix.MS_NODEV, "mode=0700,size=1m"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"tree", "gate", "blobs", "upper", "work", "root"} {
		if err := os.Mkdir(in(d), 0o700); err != nil {
			return err
		}
	}
	want := []byte("content")
	if err := errors.Join(os.WriteFile(in("blobs/b"), want, 0o600), os.WriteFile(in("tree/name"), nil, 0o600), os.Truncate(in("tree/name"), int64(len(want)))); err != nil {
		return err
	}
	for attr, value := range map[string]string{"trusted.overlay.metacopy": "", "trusted.overlay.redirect": "/b"} {
		if err := unix.Setxattr(in("tree/name"), attr, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", attr, err)
		}
	}
	data, err := overlayData(Layers{Tree: in("tree"), Gate: in("gate"), Blobs: in("blobs")}, in("upper"), in("work"))
	if err != nil {
		return err
	}
	if err := unix.Mount("srvfs", in("root"), "overlay", 0, data); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	got, err := os.ReadFile(in("root/name"))
	if e := unix.Unmount(in("root"), unix.MNT_DETACH); err == nil {
		err = e
	}
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("a redirect into a data-only layer read %q", got)
	}
	return err
}
