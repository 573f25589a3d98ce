package service

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCanLayer(t *testing.T) {
	if ok, why := CanLayer(); !ok {
		t.Fatal(why)
	}
}

func TestWithoutContent(t *testing.T) {
	upper := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(upper, "a/b"), 0o755))
	must(t, os.WriteFile(filepath.Join(upper, "a/whole"), []byte("x"), 0o644))
	must(t, unix.Mknod(filepath.Join(upper, "a/whiteout"), unix.S_IFCHR, 0))
	if file, err := withoutContent(upper); file != "" || err != nil {
		t.Errorf("%q, %v in an upper of whole files", file, err)
	}
	bare := filepath.Join(upper, "a/b/bare")
	must(t, os.WriteFile(bare, nil, 0o755))
	must(t, unix.Setxattr(bare, "trusted.overlay.metacopy", nil, 0))
	if file, err := withoutContent(upper); file != bare || err != nil {
		t.Errorf("%q, %v; want %s", file, err, bare)
	}
}
