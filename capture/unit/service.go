package unit

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// A translator turns the assignments of one unit into a manifest.Unit.
type translator struct {
	root *rootfs.Root
	text *text
	info Info
	spec specifiers
	acc  *accounts
	user account
	env  environment

	socket string   // the socket unit that the service was named by, if it was
	wanted []string // socket units that the service itself requires or wants

	last  map[string]assignment   // of keys that have one value
	lists map[string][]assignment // of keys that add up, until an empty one clears them
}

// kept are the keys of [Service] that are translated; those that are true add up.
var kept = map[string]bool{
	"Type": false, "BusName": false, "PIDFile": false, "User": false, "Group": false, "DynamicUser": false,
	"WorkingDirectory": false, "UMask": false, "KillSignal": false, "TimeoutSec": false, "TimeoutStartSec": false,
	"TimeoutStopSec": false, "PermissionsStartOnly": false,
	"RuntimeDirectoryMode": false, "StateDirectoryMode": false, "CacheDirectoryMode": false, "LogsDirectoryMode": false, "ConfigurationDirectoryMode": false,
	"ExecStartPre": true, "ExecStart": true, "ExecStartPost": true, "ExecStop": true, "ExecSearchPath": true,
	"SupplementaryGroups": true, "Environment": true, "EnvironmentFile": true, "UnsetEnvironment": true,
	"RuntimeDirectory": true, "StateDirectory": true, "CacheDirectory": true, "LogsDirectory": true, "ConfigurationDirectory": true,
	"Sockets": true, "NonBlocking": false,
}

// idle are keys without a meaning for a start elsewhere.
var idle = map[string]bool{"ExecReload": true, "PassEnvironment": true, "SyslogIdentifier": true, "SyslogFacility": true, "SyslogLevel": true, "GuessMainPID": true}

// reasons say what it means that a key is not carried, where that matters.
var reasons = map[string]string{
	"AmbientCapabilities":    "capabilities are not given to the unit's user",
	"KillMode":               "its main process is asked to end, then all are killed, as with mixed",
	"ExecCondition":          "the condition is not checked",
	"ExecStopPost":           "not run",
	"RootDirectory":          "the unit's own root is not entered; capture with --root",
	"RootImage":              "the unit's own root is not entered",
	"LoadCredential":         "no credentials are loaded",
	"SetCredential":          "no credentials are loaded",
	"NetworkNamespacePath":   "the network is the service's",
	"OpenFile":               "the file is not passed",
	"FileDescriptorStoreMax": "descriptors are not kept",
}

func (t *translator) translate() (*manifest.Unit, error) {
	t.spec = specifiers{root: t.root, name: t.text.name, file: t.text.path}
	t.collect()
	var err error
	if t.acc, err = readAccounts(t.root); err != nil {
		return nil, err
	}
	u := &manifest.Unit{Name: t.text.name, Umask: 0o022, Signal: int(unix.SIGTERM), StopMax: defaultTimeout}
	for _, step := range []func(*manifest.Unit) error{t.setKind, t.setUser, t.setFolders, t.setPlaces, t.setEnvironment, t.setCommands, t.setStop, t.setSockets} {
		if err := step(u); err != nil {
			return nil, err
		}
	}
	u.Env = t.env.list()
	t.findInstances(u)
	return u, nil
}

// collect sorts the assignments by key and notes those that are not carried.
func (t *translator) collect() {
	t.last, t.lists = map[string]assignment{}, map[string][]assignment{}
	for _, a := range t.text.all {
		adds, known := kept[a.key]
		switch {
		case a.section == "Unit":
			t.unitSection(a)
		case a.section != "Service" || idle[a.key] || strings.HasPrefix(a.key, "X-"):
		case a.key == "KillMode" && a.value == "mixed": // what a stop does anyway
		case !known:
			t.ignore(a, reasons[a.key])
		case adds && a.value == "":
			delete(t.lists, a.key)
		case adds:
			t.lists[a.key] = append(t.lists[a.key], a)
		case a.value == "":
			delete(t.last, a.key)
		default:
			t.last[a.key] = a
		}
	}
}

func (t *translator) unitSection(a assignment) {
	switch {
	case a.key == "Description":
		t.info.Description = t.spec.expand(a.value)
	case a.value == "":
	case strings.HasPrefix(a.key, "Condition"), strings.HasPrefix(a.key, "Assert"):
		t.ignore(a, "not checked")
	case a.key == "Requires" || a.key == "BindsTo" || a.key == "Requisite" || a.key == "Wants":
		for w := range strings.FieldsSeq(a.value) {
			switch {
			case strings.HasSuffix(w, socketSuffix):
				t.wanted = append(t.wanted, t.spec.expand(w))
			case strings.HasSuffix(w, serviceSuffix) && a.key != "Wants":
				t.ignore(assignment{key: a.key, value: w}, "other units are not started")
			}
		}
	}
}

func (t *translator) ignore(a assignment, why string) {
	s := a.key + "=" + a.value
	if why != "" {
		s += ": " + why
	}
	t.info.Ignored = append(t.info.Ignored, s)
}

// value returns the last assignment of key, specifiers replaced.
func (t *translator) value(key string) (assignment, bool) {
	a, ok := t.last[key]
	a.value = t.spec.expand(a.value)
	return a, ok && a.value != ""
}

// words returns all words assigned to key; each keeps its place.
func (t *translator) words(key string) ([]assignment, error) {
	var all []assignment
	for _, a := range t.lists[key] {
		words, err := splitWords(a.value)
		if err != nil {
			return nil, a.errorf("%v", err)
		}
		for _, w := range words {
			a.value = t.spec.expand(w)
			all = append(all, a)
		}
	}
	return all, nil
}

func (t *translator) flag(key string) (bool, error) {
	a, ok := t.value(key)
	if !ok {
		return false, nil
	}
	v, ok := parseBool(a.value)
	if !ok {
		return false, a.errorf("%.80q is neither yes nor no", a.value)
	}
	return v, nil
}

func (t *translator) setKind(u *manifest.Unit) error {
	a, ok := t.value("Type")
	_, bus := t.value("BusName")
	switch {
	case ok:
	case len(t.lists["ExecStart"]) == 0:
		a.value = "oneshot"
	case bus:
		a.value = "dbus"
	default:
		a.value = "simple"
	}
	switch a.value {
	case "simple", "exec", "idle":
		u.Kind = manifest.Simple
	case "dbus":
		u.Kind = manifest.Simple
		t.ignore(assignment{key: "Type", value: "dbus"}, "its name on the bus is not awaited")
	case "forking":
		u.Kind = manifest.Forking
	case "oneshot":
		u.Kind = manifest.Oneshot
	case "notify", "notify-reload":
		u.Kind = manifest.Notify
	default:
		return a.errorf("%.80q is no type of service", a.value)
	}
	u.StartMax = defaultTimeout
	if u.Kind == manifest.Oneshot {
		u.StartMax = forever
	}
	// TimeoutSec= is short for both others; the last one that is given counts.
	for _, a := range t.text.all {
		if a.section != "Service" || a.value == "" || a.key != "TimeoutSec" && a.key != "TimeoutStartSec" && a.key != "TimeoutStopSec" {
			continue
		}
		d, err := parseSpan(t.spec.expand(a.value))
		if err != nil {
			return a.errorf("%.80q: %v", a.value, err)
		}
		if a.key != "TimeoutStopSec" {
			u.StartMax = d
		}
		if a.key != "TimeoutStartSec" {
			u.StopMax = d
		}
	}
	return nil
}

func (t *translator) setUser(u *manifest.Unit) error {
	dynamic, err := t.flag("DynamicUser")
	if err != nil {
		return err
	}
	a, named := t.value("User")
	switch {
	case named:
		t.user, err = t.acc.user(a.value)
		if err != nil && !dynamic {
			return a.errorf("%v", err)
		}
	case dynamic:
		a.value, _, _ = splitName(t.text.name)
		t.user, err = t.acc.user(a.value)
	default:
		u.User = rootUser(t.root)
		t.user = account{name: u.User.Name, uid: u.User.UID, gid: u.User.GID}
	}
	if err != nil {
		t.user = t.dynamicUser(a.value)
	}
	u.User = manifest.User{Name: t.user.name, UID: t.user.uid, GID: t.user.gid}
	if g, ok := t.value("Group"); ok {
		gid, err := t.acc.group(g.value)
		switch {
		case err == nil:
			u.User.GID = gid
		case !dynamic:
			return g.errorf("%v", err)
		}
	}
	if named || dynamic {
		u.User.Groups = t.acc.memberships(t.user.name, u.User.GID)
	}
	extra, err := t.words("SupplementaryGroups")
	if err != nil {
		return err
	}
	for _, g := range extra {
		gid, err := t.acc.group(g.value)
		if err != nil {
			return g.errorf("%v", err)
		}
		u.User.Groups = append(u.User.Groups, gid)
	}
	slices.Sort(u.User.Groups)
	u.User.Groups = slices.Compact(u.User.Groups)
	return nil
}

// setPlaces sets the working directory, PID file and umask.
func (t *translator) setPlaces(u *manifest.Unit) error {
	if a, ok := t.value("WorkingDirectory"); ok {
		dir, optional := strings.CutPrefix(a.value, "-")
		if dir == "~" {
			if dir = t.user.home; dir == "" {
				dir = "/"
				if t.user.uid == 0 {
					dir = "/root"
				}
			}
		}
		if !path.IsAbs(dir) {
			return a.errorf("%.200q is not absolute", dir)
		}
		info, err := t.root.Stat(dir)
		if !optional || err == nil && info.IsDir() {
			u.Dir = path.Clean(dir)
		}
	}
	if a, ok := t.value("PIDFile"); ok {
		if u.PIDFile = a.value; !path.IsAbs(u.PIDFile) {
			u.PIDFile = "/run/" + u.PIDFile
		}
		u.PIDFile = path.Clean(u.PIDFile)
	}
	if a, ok := t.value("UMask"); ok {
		m, err := strconv.ParseUint(a.value, 8, 32)
		if err != nil || m > 0o777 {
			return a.errorf("%.80q is not an octal mask", a.value)
		}
		u.Umask = uint32(m)
	}
	return nil
}
