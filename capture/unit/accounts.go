package unit

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// An account is one line of /etc/passwd.
type account struct {
	name, home, shell string
	uid, gid          uint32
}

// A group is one line of /etc/group.
type group struct {
	name    string
	gid     uint32
	members []string
}

// parsePasswd reads the lines of /etc/passwd; those that are malformed, or for
// NIS, are passed over, as the C library does.
func parsePasswd(text string) []account {
	var all []account
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(f) != 7 || !validAccount(f[0]) {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil {
			all = append(all, account{f[0], f[5], f[6], uint32(uid), uint32(gid)})
		}
	}
	return all
}

// parseGroup reads the lines of /etc/group.
func parseGroup(text string) []group {
	var all []group
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(f) != 4 || !validAccount(f[0]) {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			continue
		}
		g := group{name: f[0], gid: uint32(gid)}
		for m := range strings.SplitSeq(f[3], ",") {
			if m = strings.TrimSpace(m); m != "" {
				g.members = append(g.members, m)
			}
		}
		all = append(all, g)
	}
	return all
}

func validAccount(s string) bool {
	return s != "" && len(s) <= 255 && s[0] != '+' && s[0] != '-' && s[0] != '#' && !strings.ContainsAny(s, " \t\x00/")
}

// accounts are the users and groups of a root.
type accounts struct {
	root   *rootfs.Root
	users  []account
	groups []group
}

// readAccounts reads the root's files; one that does not exist is empty.
func readAccounts(root *rootfs.Root) (*accounts, error) {
	a := &accounts{root: root}
	for _, f := range []string{"/etc/passwd", "/etc/group"} {
		b, err := root.ReadFile(f, maxAccounts)
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("users of %s: %w", root, err)
		}
		if f == "/etc/passwd" {
			a.users = parsePasswd(string(b))
		} else {
			a.groups = parseGroup(string(b))
		}
	}
	return a, nil
}

// user finds an account by name or number. A number without a name is an
// account too, of the group with the same number.
func (a *accounts) user(s string) (account, error) {
	n, isNumber := number(s)
	for _, u := range a.users {
		if u.name == s || isNumber && u.uid == n {
			return u, nil
		}
	}
	if isNumber {
		return account{uid: n, gid: n}, nil
	}
	return account{}, fmt.Errorf("user %.80q is not in %s (other name services are not asked)", s, a.root.Host("/etc/passwd"))
}

func (a *accounts) group(s string) (uint32, error) {
	n, isNumber := number(s)
	for _, g := range a.groups {
		if g.name == s {
			return g.gid, nil
		}
	}
	if isNumber {
		return n, nil
	}
	return 0, fmt.Errorf("group %.80q is not in %s (other name services are not asked)", s, a.root.Host("/etc/group"))
}

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1 // (uid_t) -1 is nobody's
}

// memberships returns what initgroups(3) gives to a user: its own group, and
// those that name it, sorted.
func (a *accounts) memberships(name string, gid uint32) []uint32 {
	ids := []uint32{gid}
	for _, g := range a.groups {
		if slices.Contains(g.members, name) {
			ids = append(ids, g.gid)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// rootUser returns who a unit without User= runs as.
func rootUser(root *rootfs.Root) manifest.User {
	if a, err := readAccounts(root); err == nil {
		if u, err := a.user("0"); err == nil {
			return manifest.User{Name: u.name, UID: u.uid, GID: u.gid}
		}
	}
	return manifest.User{}
}
