package unit

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// Info is what is worth telling about where a manifest.Unit comes from.
type Info struct {
	// Name is the unit's full name, aliases resolved: "nginx.service"; of a
	// script or command, its base name.
	Name        string
	Description string
	// Files are the unit file, its drop-ins and environment files, the SysV
	// script and its defaults file: what the answer was read from, absolute
	// paths in the root.
	Files []string
	// Ignored lists what the unit asks for and a manifest.Unit can't carry, as
	// "Directive=value" or "Directive=value: why", in the order of the files.
	Ignored []string
	// Sockets are the names of the socket units that would start this service, if
	// they are not in use on the source; those that are gave the unit its Sockets.
	Sockets []string
	// Folders are the paths of StateDirectory=, CacheDirectory=,
	// LogsDirectory= and ConfigurationDirectory=: data of the service.
	Folders []string
	// Instances are set when the unit itself does nothing (ExecStart=/bin/true)
	// and stands for others: the names of these, such as "postfix@-.service", or
	// of their template.
	Instances []string
}

// Limits of what is read.
const (
	maxUnitFile = 1 << 20
	maxEnvFile  = 1 << 20
	maxAccounts = 64 << 20 // bytes of /etc/passwd or /etc/group
)

// defaultPath is where systemd looks for programs, and PATH of what it starts.
var defaultPath = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// FromUnit reads the systemd unit called name ("nginx", "nginx.service",
// "postgresql@15-main"). A socket unit ("uuidd.socket") stands for the service that
// it starts, with its sockets. If there is no such unit, a SysV script of that name is
// taken (see FromInit). If there is none either, the error wraps
// manifest.ErrNotFound and names units with similar names; a unit that can't be
// understood, is masked, or is a template without instance, gives
// manifest.ErrInvalid with file and line.
func FromUnit(root *rootfs.Root, name string) (*manifest.Unit, Info, error) {
	full, err := fullName(name)
	if err != nil {
		return nil, Info{}, err
	}
	socket, full, err := socketOf(root, full)
	if err != nil {
		return nil, Info{}, err
	}
	text, err := load(root, full)
	if errors.Is(err, errNoUnit) {
		if script := "/etc/init.d/" + strings.TrimSuffix(full, ".service"); isScript(root, script) {
			return FromInit(root, script)
		}
		return nil, Info{}, notFound(root, full)
	}
	if err != nil {
		return nil, Info{}, err
	}
	t := &translator{root: root, text: text, info: Info{Name: text.name, Files: text.files}, socket: socket}
	u, err := t.translate()
	if err != nil {
		return nil, Info{}, err
	}
	return u, t.info, nil
}

// FromExec makes a unit of the kind Simple from a command line, started in "/"
// as root. A program without a slash is looked up in the root's default PATH;
// one that is not there, or can't be executed, gives manifest.ErrNotFound.
func FromExec(root *rootfs.Root, argv []string) (*manifest.Unit, Info, error) {
	if len(argv) == 0 || argv[0] == "" {
		return nil, Info{}, fmt.Errorf("command to start is empty: %w", manifest.ErrInvalid)
	}
	program, err := program(root, argv[0], defaultPath)
	if err != nil {
		return nil, Info{}, err
	}
	u := &manifest.Unit{
		Name: path.Base(program), Kind: manifest.Simple,
		Start:  []manifest.Command{{Argv: append([]string{program}, argv[1:]...)}},
		User:   rootUser(root),
		Umask:  0o022,
		Signal: 15, StartMax: defaultTimeout, StopMax: defaultTimeout,
	}
	info := Info{Name: u.Name, Description: strings.Join(argv, " ")}
	var env environment
	locale := baseEnvironment(root, &env)
	u.Env = env.list()
	info.Files = append(info.Files, locale...)
	return u, info, nil
}

// program returns the absolute path of a program that a command line names.
func program(root *rootfs.Root, name string, dirs []string) (string, error) {
	if strings.Contains(name, "/") && !path.IsAbs(name) {
		return "", fmt.Errorf("program %.200q: want an absolute path or a name without slash: %w", name, manifest.ErrInvalid)
	}
	p, err := root.LookPath(name, dirs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		where := root.Path()
		if !strings.Contains(name, "/") {
			where += " (" + strings.Join(dirs, ":") + ")"
		}
		return "", fmt.Errorf("program %.200q in %s: %w", name, where, manifest.ErrNotFound)
	case err != nil:
		return "", fmt.Errorf("program %.200q: %w", name, err)
	}
	return path.Clean(p), nil
}
