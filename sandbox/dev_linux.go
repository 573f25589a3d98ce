package sandbox

import "golang.org/x/sys/unix"

// devices are the nodes of a minimal /dev. Their numbers are the kernel's
// (Documentation/admin-guide/devices.txt); the console is a second null.
var devices = []struct {
	name         string
	major, minor uint32
	mode         uint32
}{
	{"null", 1, 3, 0o666}, {"zero", 1, 5, 0o666}, {"full", 1, 7, 0o666},
	{"random", 1, 8, 0o666}, {"urandom", 1, 9, 0o666},
	{"tty", 5, 0, 0o666}, {"console", 1, 3, 0o600},
}

var deviceLinks = [][2]string{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"},
}

// populateDev fills the new tmpfs of a TypeDev mount.
func populateDev(dir int) *fault {
	for _, d := range devices {
		if err := unix.Mknodat(dir, d.name, unix.S_IFCHR|d.mode, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return failure("make device", "/dev/"+d.name, err, "")
		}
	}
	for _, l := range deviceLinks {
		if err := unix.Symlinkat(l[1], dir, l[0]); err != nil {
			return failure("make link", "/dev/"+l[0], err, "")
		}
	}
	return nil
}
