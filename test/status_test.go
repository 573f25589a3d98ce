package test

import (
	"encoding/json"
	"strings"

	"srvfs/test/world"
)

// A tally is what `srvfs status --json` says of content.
type tally struct {
	Local, Stored, Partial, Missing, Fetched struct{ Files, Bytes int64 }
	Detached                                 bool
}

// A status is one element of `srvfs status --json`, as a script reads it.
type status struct {
	Name       string            `json:"name"`
	State      string            `json:"state"`
	Sequence   uint64            `json:"sequence"`
	Mountpoint string            `json:"mountpoint"`
	Reason     string            `json:"reason"`
	LogFile    string            `json:"log_file"`
	Reads      string            `json:"reads"`
	Upcalls    map[string]uint64 `json:"upcalls"`
	Content    tally             `json:"content"`
	Missed     []string          `json:"missed"`
	Units      []struct {
		PID int `json:"pid"`
	} `json:"units"`
}

// status returns what the standby says of a service or mountpoint.
func (s *site) status(name string) status {
	s.Helper()
	return s.statusOn(s.standby, name)
}

func (s *site) statusOn(h *world.Host, name string) status {
	s.Helper()
	var all []status
	if err := json.Unmarshal([]byte(s.on(h, "srvfs status --json "+name)), &all); err != nil {
		s.Fatal(err)
	}
	if len(all) != 1 {
		s.Fatalf("status of %s: %+v", name, all)
	}
	return all[0]
}

// entry is one path in `srvd show --json`.
type entry struct {
	Path     string `json:"path"`
	Type     string `json:"type"`
	Class    string `json:"class"`
	Size     int64  `json:"size"`
	Digest   string `json:"digest"`
	Modified bool   `json:"modified"`
}

// entries returns the paths of the service web, as the source lists them.
func (s *site) entries() []entry {
	s.Helper()
	var shown struct {
		Entries []entry `json:"entries"`
	}
	if err := json.Unmarshal([]byte(s.on(s.source, "srvd show web --json")), &shown); err != nil {
		s.Fatal(err)
	}
	if len(shown.Entries) < 100 {
		s.Fatalf("srvd show web lists %d entries", len(shown.Entries))
	}
	return shown.Entries
}

// noResidue reports what a host still has of srvfs: processes, mounts, folders
// of services.
func (s *site) noResidue(h *world.Host) {
	s.Helper()
	s.await("the daemon has ended", func() bool { return !s.runs(h, "srvfs") && !s.runs(h, "nginx") })
	for _, kind := range []string{"fuse.srvfs", " - overlay"} {
		mounts, err := h.Mounts(kind)
		s.check(err)
		if len(mounts) > 0 {
			s.Errorf("mounts are left on %s: %v", h.Name, mounts)
		}
	}
	if left := strings.TrimSpace(s.on(h, "ls /var/lib/srvfs/services /var/lib/srvfs/mounts 2>/dev/null | grep -v : || true")); left != "" {
		s.Errorf("left in the state folder of %s: %s", h.Name, left)
	}
}
