package rpmfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"srvfs/capture/rootfs"
)

// accounts are the users and groups of a root that is unpacked.
type accounts struct {
	users, groups map[string]int
	wanted        map[string]int // user or group of a script -> its number, or -1
	primary       map[string]string
	newUsers      []string
	newGroups     []string
}

func newAccounts() *accounts {
	return &accounts{users: map[string]int{}, groups: map[string]int{}, wanted: map[string]int{}, primary: map[string]string{}}
}

// Numbers of accounts that a system makes for itself, as useradd -r takes them.
const (
	systemFirst = 100
	systemLast  = 999
	maxAccounts = 16 << 20 // bytes of a file
)

var (
	addLine    = regexp.MustCompile(`(?m)\b(useradd|groupadd)\b([^\n;|&>]*)`)
	numberFlag = regexp.MustCompile(`(?:^|\s)-[rMNol]*(?:u|g|-uid|-gid)[= ]?(\d+)`)
	groupFlag  = regexp.MustCompile(`\s(?:-g|--gid)[= ]?([a-z_][a-z0-9_-]*)`)
	lastName   = regexp.MustCompile(`([a-z_][a-z0-9_-]*)\s*(?:\d?)$`)
)

// script notes the accounts that a package's script would make. It is read, not run.
func (a *accounts) script(text string) {
	text = strings.ReplaceAll(text, "\\\n", " ")
	for _, m := range addLine.FindAllStringSubmatch(text, 100) {
		args := strings.TrimSpace(m[2])
		name := lastName.FindStringSubmatch(args)
		if name == nil || strings.HasPrefix(args, "-") && len(strings.Fields(args)) < 2 {
			continue
		}
		number := -1
		if n := numberFlag.FindStringSubmatch(args); n != nil {
			number, _ = strconv.Atoi(n[1])
		}
		a.wanted[m[1]+" "+name[1]] = number
		if g := groupFlag.FindStringSubmatch(" " + args); g != nil && m[1] == "useradd" {
			a.primary[name[1]] = g[1]
		}
	}
}

// load reads what the packages have shipped.
func (a *accounts) load(root *rootfs.Root) error {
	for file, to := range map[string]map[string]int{"/etc/passwd": a.users, "/etc/group": a.groups} {
		b, err := root.ReadFile(file, maxAccounts)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) < 4 {
				continue
			}
			if n, err := strconv.Atoi(f[2]); err == nil {
				to[f[0]] = n
			}
		}
	}
	for name, number := range map[string]int{"root": 0} {
		if _, ok := a.users[name]; !ok {
			a.users[name], a.newUsers = number, append(a.newUsers, name)
		}
		if _, ok := a.groups[name]; !ok {
			a.groups[name], a.newGroups = number, append(a.newGroups, name)
		}
	}
	for _, name := range sorted(a.wanted, "groupadd ") {
		a.group(name)
	}
	for _, name := range sorted(a.wanted, "useradd ") {
		a.user(name)
	}
	return nil
}

func sorted(wanted map[string]int, prefix string) (names []string) {
	for k := range wanted {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// need makes sure that a user and a group exist.
func (a *accounts) need(user, group string) {
	a.group(group)
	a.user(user)
}

func (a *accounts) group(name string) int {
	if n, ok := a.groups[name]; ok || name == "" {
		return n
	}
	n := a.free(a.groups, "groupadd "+name)
	a.groups[name], a.newGroups = n, append(a.newGroups, name)
	return n
}

func (a *accounts) user(name string) {
	if _, ok := a.users[name]; ok || name == "" {
		return
	}
	a.users[name] = a.free(a.users, "useradd "+name)
	a.newUsers = append(a.newUsers, name)
	if a.primary[name] == "" {
		a.primary[name] = name
	}
	a.group(a.primary[name])
}

// free returns the number that a script wants, or the highest that nobody has.
func (a *accounts) free(taken map[string]int, wish string) int {
	used := map[int]bool{}
	for _, n := range taken {
		used[n] = true
	}
	if n, ok := a.wanted[wish]; ok && n > 0 && !used[n] {
		return n
	}
	for n := systemLast; n >= systemFirst; n-- {
		if !used[n] {
			return n
		}
	}
	return systemFirst
}

// ids returns the numbers of an owner and a group.
func (a *accounts) ids(user, group string) (uid, gid int) { return a.users[user], a.groups[group] }

// save adds the new accounts to the files of the root.
func (a *accounts) save(folder *os.Root) error {
	var passwd, group strings.Builder
	for _, name := range a.newUsers {
		home, shell := "/", "/usr/sbin/nologin"
		if name == "root" {
			home, shell = "/root", "/bin/sh"
		}
		fmt.Fprintf(&passwd, "%s:x:%d:%d::%s:%s\n", name, a.users[name], a.groups[a.primaryOf(name)], home, shell)
	}
	for _, name := range a.newGroups {
		fmt.Fprintf(&group, "%s:x:%d:\n", name, a.groups[name])
	}
	if err := folder.MkdirAll("etc", 0o755); err != nil {
		return err
	}
	for file, text := range map[string]string{"etc/passwd": passwd.String(), "etc/group": group.String()} {
		if text == "" {
			continue
		}
		f, err := folder.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		var last [1]byte
		if info, err := f.Stat(); err == nil && info.Size() > 0 {
			if _, err := f.ReadAt(last[:], info.Size()-1); err == nil && last[0] != '\n' {
				text = "\n" + text // what was shipped ends within a line
			}
		}
		_, err = f.WriteString(text)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (a *accounts) primaryOf(user string) string {
	if g := a.primary[user]; g != "" {
		return g
	}
	return user
}
