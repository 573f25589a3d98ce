package archive

import (
	"context"
	"runtime"
	"strconv"
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

// configure says how a container engine starts the service.
func (e *export) configure(ctx context.Context) (*imageConfig, error) {
	c := &imageConfig{Created: stamp(e.snap), Architecture: runtime.GOARCH, OS: "linux", RootFS: rootFS{Type: "layers", DiffIDs: []manifest.Digest{}}}
	c.Config.Labels = map[string]string{noteService: e.snap.Service, noteSequence: strconv.FormatUint(e.snap.Sequence, 10), "srvfs.source": e.snap.Source}
	if len(e.snap.Units) == 0 {
		return c, nil
	}
	u := &e.snap.Units[len(e.snap.Units)-1] // what the others are started for
	c.Config.Env = u.Env
	if c.Config.WorkingDir = u.Dir; u.Dir == "" {
		c.Config.WorkingDir = "/"
	}
	if name := unix.SignalName(unix.Signal(u.Signal)); name != "" {
		c.Config.StopSignal = name
	}
	argv := u.Start[0].Argv
	c.Config.Entrypoint, c.Config.Cmd = argv[:1], argv[1:]
	if !u.Start[0].Privileged && (u.User.UID != 0 || u.User.GID != 0) {
		c.Config.User = strconv.FormatUint(uint64(u.User.UID), 10) + ":" + strconv.FormatUint(uint64(u.User.GID), 10)
	}
	return c, ctx.Err()
}
