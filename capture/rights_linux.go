package capture

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// needed are the capabilities without which a capture would fail somewhere on its
// way, or worse, see less than there is: a tracer without CAP_SYS_PTRACE reads no
// path of a process that has changed its user.
var needed = []struct {
	number int
	name   string
}{
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE"}, {unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT"},
	{unix.CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"}, {unix.CAP_CHOWN, "CAP_CHOWN"}, {unix.CAP_SETUID, "CAP_SETUID"}, {unix.CAP_SETGID, "CAP_SETGID"},
}

// checkRights returns an error that wraps [manifest.ErrDenied] and names what is
// missing.
func checkRights() error {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return fmt.Errorf("look at this process's capabilities: %w", err)
	}
	var missing []string
	for _, c := range needed {
		if data[c.number/32].Effective&(1<<(c.number%32)) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: it traces the service in a sandbox and lacks %s: give them to the unit or container that it runs in", manifest.ErrDenied, strings.Join(missing, ", "))
	}
	return nil
}
