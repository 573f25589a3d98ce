package archive

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"srvfs/manifest"
)

// An imageConfig is what a container engine reads: how the service is started.
type imageConfig struct {
	Created      string         `json:"created"`
	Architecture string         `json:"architecture"`
	OS           string         `json:"os"`
	Config       process        `json:"config"`
	RootFS       rootFS         `json:"rootfs"`
	History      []imageHistory `json:"history,omitempty"`
}

type process struct {
	User       string            `json:"User,omitempty"`
	Env        []string          `json:"Env,omitempty"`
	Entrypoint []string          `json:"Entrypoint,omitempty"`
	Cmd        []string          `json:"Cmd,omitempty"`
	WorkingDir string            `json:"WorkingDir,omitempty"`
	Labels     map[string]string `json:"Labels,omitempty"`
	StopSignal string            `json:"StopSignal,omitempty"`
}

type rootFS struct {
	Type    string            `json:"type"`
	DiffIDs []manifest.Digest `json:"diff_ids"`
}

type imageHistory struct {
	Created string `json:"created,omitempty"`
	By      string `json:"created_by,omitempty"`
}

func stamp(s *manifest.Snapshot) string {
	return time.Unix(0, s.Created).UTC().Format(time.RFC3339Nano)
}

// configure says how a container engine starts the service: with the last unit's command,
// since the others are started for that. A unit that puts itself into the background would
// end its container at once, so a few lines of sh stay in front of it, if the tree has one.
func (e *export) configure(ctx context.Context) (*imageConfig, error) {
	c := &imageConfig{Created: stamp(e.snap), Architecture: runtime.GOARCH, OS: "linux", RootFS: rootFS{Type: "layers", DiffIDs: []manifest.Digest{}}}
	c.Config.Labels = map[string]string{noteService: e.snap.Service, noteSequence: strconv.FormatUint(e.snap.Sequence, 10), "srvfs.source": e.snap.Source}
	if len(e.snap.Units) == 0 {
		return c, nil
	}
	u := &e.snap.Units[len(e.snap.Units)-1]
	c.Config.Env = u.Env
	if c.Config.WorkingDir = u.Dir; u.Dir == "" {
		c.Config.WorkingDir = "/"
	}
	c.Config.StopSignal = unix.SignalName(unix.Signal(u.Signal))
	main := u.Start[len(u.Start)-1]
	c.Config.Entrypoint, c.Config.Cmd = main.Argv[:1], main.Argv[1:]
	if !main.Privileged && (u.User.UID != 0 || u.User.GID != 0) {
		c.Config.User = strconv.FormatUint(uint64(u.User.UID), 10) + ":" + strconv.FormatUint(uint64(u.User.GID), 10)
	}
	if u.Kind != manifest.Forking {
		return c, nil
	}
	for _, sh := range []string{"/bin/sh", "/usr/bin/sh"} {
		found, err := manifest.Lookup(ctx, e.src, &e.snap.Root, sh)
		if err != nil {
			return nil, fmt.Errorf("look for %s: %w", sh, err)
		}
		if found != nil {
			c.Config.Entrypoint, c.Config.Cmd = []string{sh, "-c", foreground(u)}, nil
			break
		}
	}
	return c, nil
}

// foreground returns a script that starts a unit of the kind Forking and stays for as
// long as that runs. A tree may have nothing but the shell itself: so it waits for the end
// of a pipe that the daemon has inherited. One that closes what it inherits is looked for
// by its PID file each second, if there is a sleep.
func foreground(u *manifest.Unit) string {
	signal := strings.TrimPrefix(unix.SignalName(unix.Signal(u.Signal)), "SIG")
	if signal == "" || u.Signal == int(unix.SIGKILL) || u.Signal == int(unix.SIGSTOP) {
		signal = "TERM"
	}
	var b strings.Builder
	for _, c := range u.Pre {
		b.WriteString(quote(c.Argv))
		if !c.MayFail {
			b.WriteString(" || exit")
		}
		b.WriteString("\n")
	}
	stop, stay := "exit 0", ""
	if u.PIDFile != "" {
		pid := quote([]string{u.PIDFile})
		stop = "read -r p <" + pid + " && kill -" + signal + " \"$p\""
		stay = "while read -r p <" + pid + " && kill -0 \"$p\" && sleep 1; do :; done 2>/dev/null\n"
	}
	b.WriteString("trap " + quote([]string{stop}) + " TERM INT QUIT " + signal + "\n")
	// Whatever is written into the pipe says that the start has failed.
	b.WriteString("{ " + quote(u.Start[len(u.Start)-1].Argv) + " 9>&1 >&2 || echo; } | { r=0; while read -r _; do r=1; done; exit $r; } &\n")
	b.WriteString("job=$!\nwhile wait $job; r=$?; kill -0 $job 2>/dev/null; do :; done\n")
	b.WriteString(stay + "exit $r")
	return b.String()
}

// quote writes words for sh.
func quote(words []string) string {
	var out []string
	for _, w := range words {
		out = append(out, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
	}
	return strings.Join(out, " ")
}
