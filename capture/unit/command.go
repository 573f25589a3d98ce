package unit

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// setCommands translates ExecStartPre=, ExecStart=, ExecStartPost=, ExecStop=.
func (t *translator) setCommands(u *manifest.Unit) error {
	only, err := t.flag("PermissionsStartOnly")
	if err != nil {
		return err
	}
	search := defaultPath
	if own, err := t.words("ExecSearchPath"); err != nil {
		return err
	} else if len(own) > 0 {
		search = nil
		for _, a := range own {
			search = append(search, strings.Split(a.value, ":")...)
		}
	}
	for _, x := range []struct {
		key string
		to  *[]manifest.Command
	}{{"ExecStartPre", &u.Pre}, {"ExecStart", &u.Start}, {"ExecStartPost", &u.Post}, {"ExecStop", &u.Stop}} {
		keep := x.key == "ExecStop" || x.key == "ExecStartPost"
		for _, a := range t.lists[x.key] {
			cs, err := t.commands(a, search, keep)
			if err != nil {
				return err
			}
			for i := range cs {
				cs[i].Privileged = cs[i].Privileged || only && x.key != "ExecStart"
			}
			*x.to = append(*x.to, cs...)
		}
	}
	switch {
	case len(u.Start) == 0:
		return fmt.Errorf("unit %s (%s) has no ExecStart=: it starts nothing: %w", t.text.name, t.root.Host(t.text.path), manifest.ErrInvalid)
	case len(u.Start) > 1 && u.Kind != manifest.Oneshot:
		return t.lists["ExecStart"][len(t.lists["ExecStart"])-1].errorf("more than one command; only Type=oneshot may have several")
	}
	return nil
}

// commands translates one line, which may hold several commands, separated by
// semicolons that stand alone.
func (t *translator) commands(a assignment, search []string, keep bool) ([]manifest.Command, error) {
	var all []manifest.Command
	s := a.value
	for {
		c, rest, ok, err := t.command(a, s, search, keep)
		if err != nil {
			return nil, err
		}
		if !ok {
			return all, nil
		}
		if c != nil {
			all = append(all, *c)
		}
		s = rest
	}
}

// isSeparator reports whether s begins with a semicolon that stands alone.
func isSeparator(s string) bool {
	return s != "" && s[0] == ';' && (len(s) == 1 || strings.IndexByte(space, s[1]) >= 0)
}

// command takes one command off s. It is nil if its program may fail and does
// not exist.
func (t *translator) command(a assignment, s string, search []string, keep bool) (*manifest.Command, string, bool, error) {
	s = strings.TrimLeft(s, space)
	for isSeparator(s) {
		s = strings.TrimLeft(s[1:], space)
	}
	first, s, ok, err := nextWord(s)
	if err != nil {
		return nil, "", false, a.errorf("%v", err)
	}
	if !ok {
		return nil, "", false, nil
	}
	c := &manifest.Command{}
	expand, extraName, bangs := true, false, 0
prefixes:
	for ; first != ""; first = first[1:] {
		switch first[0] {
		case '-':
			c.MayFail = true
		case '@':
			extraName = true
		case ':':
			expand = false
		case '+':
			c.Privileged = true
		case '!':
			bangs++
		default:
			break prefixes
		}
	}
	c.Privileged = c.Privileged || bangs == 1
	var args []string
	for s != "" && !isSeparator(s) {
		var w string
		if literal, rest, _ := strings.Cut(s, " "); literal == `\;` {
			w, s = ";", strings.TrimLeft(rest, space)
		} else if w, s, _, err = nextWord(s); err != nil {
			return nil, "", false, a.errorf("%v", err)
		}
		if w = t.spec.expand(w); !expand {
			args = append(args, w)
		} else {
			args = append(args, expandArgument(w, t.env.get, keep)...)
		}
	}
	if extraName && len(args) > 0 {
		args = args[1:]
	}
	name := t.spec.expand(first)
	p, err := program(t.root, name, search)
	switch {
	case err == nil:
	case c.MayFail && errors.Is(err, manifest.ErrNotFound) && a.key != "ExecStart":
		t.ignore(a, "its program does not exist")
		return nil, s, true, nil
	default:
		return nil, "", false, a.errorf("%v", err)
	}
	c.Argv = append([]string{p}, args...)
	return c, s, true, nil
}

// setStop sets the signal that asks the unit to stop.
func (t *translator) setStop(u *manifest.Unit) error {
	if a, ok := t.value("KillSignal"); ok {
		if u.Signal, ok = parseSignal(a.value); !ok {
			return a.errorf("%.80q is no signal", a.value)
		}
	}
	if len(u.Stop) == 1 && path.Base(u.Stop[0].Argv[0]) == "kill" {
		if n, ok := killsMainPID(u.Stop[0].Argv[1:]); ok {
			u.Signal, u.Stop = n, nil
		}
	}
	return nil
}

// killsMainPID reads the arguments of kill(1), if they name the main process alone.
func killsMainPID(args []string) (int, bool) {
	if len(args) == 0 || args[len(args)-1] != "$MAINPID" && args[len(args)-1] != "${MAINPID}" {
		return 0, false
	}
	switch args = args[:len(args)-1]; {
	case len(args) == 0:
		return int(unix.SIGTERM), true
	case len(args) == 1 && len(args[0]) > 1 && args[0][0] == '-':
		return parseSignal(strings.TrimPrefix(strings.TrimPrefix(args[0][1:], "-signal="), "s"))
	case len(args) == 2 && (args[0] == "-s" || args[0] == "--signal"):
		return parseSignal(args[1])
	}
	return 0, false
}

// parseSignal reads "SIGQUIT", "QUIT", "3", "RTMIN+1".
func parseSignal(s string) (int, bool) {
	if n, err := strconv.Atoi(s); err == nil {
		return n, n > 0 && n <= 64
	}
	s = strings.TrimPrefix(strings.ToUpper(s), "SIG")
	const rtmin, rtmax = 34, 64 // as glibc numbers them
	if rest, ok := strings.CutPrefix(s, "RTMIN"); ok {
		n, err := strconv.Atoi(strings.TrimPrefix(rest, "+"))
		if rest == "" {
			n, err = 0, nil
		}
		return rtmin + n, err == nil && n >= 0 && n <= rtmax-rtmin
	}
	if rest, ok := strings.CutPrefix(s, "RTMAX"); ok {
		n, err := strconv.Atoi(strings.TrimPrefix(rest, "-"))
		if rest == "" {
			n, err = 0, nil
		}
		return rtmax - n, err == nil && n >= 0 && n <= rtmax-rtmin
	}
	n := int(unix.SignalNum("SIG" + s))
	return n, n > 0
}
