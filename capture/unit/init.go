package unit

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// initTimeout is what systemd gives a SysV script to start or to stop.
const initTimeout = int64(5 * time.Minute)

// isScript reports whether p is an executable file.
func isScript(root *rootfs.Root, p string) bool {
	info, err := root.Stat(p)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// FromInit reads the SysV script at path script, or in /etc/init.d if it has no
// slash. Its unit is started with "script start", stopped with "script stop",
// and of the kind Forking. The PID file is known if the script says it in a
// comment "# pidfile:" or in a plain assignment to PIDFILE. A script that does not
// exist, or is not executable, gives manifest.ErrNotFound.
func FromInit(root *rootfs.Root, script string) (*manifest.Unit, Info, error) {
	fail := func(err error) (*manifest.Unit, Info, error) { return nil, Info{}, err }
	if !strings.Contains(script, "/") {
		script = "/etc/init.d/" + script
	}
	if !path.IsAbs(script) {
		return fail(fmt.Errorf("script %.200q: want an absolute path, or a name in /etc/init.d: %w", script, manifest.ErrInvalid))
	}
	script = path.Clean(script)
	name := path.Base(script)
	if _, err := root.Stat(script); isAbsent(err) {
		hint := ""
		if near := nearest(name, known(root)); len(near) > 0 {
			hint = "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return fail(fmt.Errorf("script %s: %w%s", root.Host(script), manifest.ErrNotFound, hint))
	} else if err != nil {
		return fail(fmt.Errorf("script: %w", err))
	}
	if !isScript(root, script) {
		return fail(fmt.Errorf("script %s is not executable: %w", root.Host(script), manifest.ErrNotFound))
	}
	b, err := root.ReadFile(script, maxUnitFile)
	if err != nil {
		return fail(fmt.Errorf("script: %w", err))
	}
	head := parseScript(string(b))
	info := Info{Name: name, Description: head.description, Files: []string{script}}
	var env environment
	info.Files = append(info.Files, baseEnvironment(root, &env)...)
	// Debian's and Red Hat's function libraries hand the job to a running
	// systemd unless they are told not to.
	env.set("SYSTEMCTL_SKIP_REDIRECT", "1")
	for _, d := range []string{"/etc/default/", "/etc/sysconfig/", "/etc/conf.d/"} {
		if i, err := root.Stat(d + name); err == nil && i.Mode().IsRegular() {
			info.Files = append(info.Files, d+name)
		}
	}
	u := &manifest.Unit{
		Name: name, Kind: manifest.Forking,
		Start:   []manifest.Command{{Argv: []string{script, "start"}}},
		Stop:    []manifest.Command{{Argv: []string{script, "stop"}}},
		PIDFile: head.pidFile, User: rootUser(root), Env: env.list(), Umask: 0o022,
		Signal: 15, StartMax: initTimeout, StopMax: initTimeout,
	}
	return u, info, nil
}

// scriptHead is what can be known of a script without running it.
type scriptHead struct{ description, pidFile string }

var (
	pidComment = regexp.MustCompile(`^#+\s*pidfile:\s*(\S+)`)
	plainSet   = regexp.MustCompile(`^\s*(?:export\s+|readonly\s+)?([A-Za-z_][A-Za-z0-9_]*)=("[^"]*"|'[^']*'|[^\s;&|"'()<>]*)\s*(?:[;#].*)?$`)
	variables  = regexp.MustCompile(`\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?`)
)

// parseScript reads the LSB header, the comment of chkconfig, and assignments of
// constants, or of what earlier ones set.
func parseScript(text string) scriptHead {
	var h scriptHead
	vars := map[string]string{}
	inHeader, long := false, ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch trimmed := strings.TrimSpace(line); {
		case trimmed == "### BEGIN INIT INFO":
			inHeader = true
		case trimmed == "### END INIT INFO":
			inHeader = false
		case inHeader && strings.HasPrefix(trimmed, "#"):
			key, value, _ := strings.Cut(strings.TrimSpace(trimmed[1:]), ":")
			switch value = strings.TrimSpace(value); strings.ToLower(key) {
			case "short-description":
				h.description = value
			case "description":
				long = value
			}
			continue
		}
		if m := pidComment.FindStringSubmatch(line); m != nil && path.IsAbs(m[1]) && h.pidFile == "" {
			h.pidFile = path.Clean(m[1])
		}
		if m := plainSet.FindStringSubmatch(line); m != nil && len(vars) < 1000 {
			if v, ok := constant(m[2], vars); ok && len(v) < 4096 {
				if _, again := vars[m[1]]; !again {
					vars[m[1]] = v
				}
			}
		}
	}
	if h.description == "" {
		h.description = long
	}
	for _, n := range []string{"PIDFILE", "pidfile", "PID_FILE", "PIDfile"} {
		if v := vars[n]; h.pidFile == "" && path.IsAbs(v) && strings.IndexByte(v, 0) < 0 {
			h.pidFile = path.Clean(v)
		}
	}
	return h
}

// constant returns the value of a shell word if it can be known.
func constant(word string, vars map[string]string) (string, bool) {
	if strings.HasPrefix(word, "'") {
		return strings.Trim(word, "'"), true
	}
	word = strings.Trim(word, `"`)
	known := true
	word = variables.ReplaceAllStringFunc(word, func(m string) string {
		v, ok := vars[strings.Trim(m, "${}")]
		known = known && ok
		return v
	})
	return word, known && !strings.ContainsAny(word, "$`\\*?")
}
