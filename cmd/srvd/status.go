package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"srvfs/capture"
	"srvfs/cmd/internal/cli"
)

// A serving is what `srvd serve` tells of itself, in a file of the state folder.
type serving struct {
	PID     int                            `json:"pid"`
	Listen  string                         `json:"listen"`
	Since   time.Time                      `json:"since"`
	Follows map[string]capture.FollowState `json:"follows"` // null: it does not follow
}

const (
	servingName = "serving"
	servingLock = "serving.lock" // held for as long as it serves
)

// A teller writes it.
type teller struct {
	dir  string
	lock *os.File
	log  *slog.Logger

	mu  sync.Mutex
	now serving
}

// tell begins to. Of two that serve from one state folder the first is told of.
func tell(dir, listen string, follow bool, log *slog.Logger) (*teller, error) {
	t := &teller{dir: dir, log: log, now: serving{PID: os.Getpid(), Listen: listen, Since: time.Now()}}
	if follow {
		t.now.Follows = map[string]capture.FollowState{}
	}
	lock, err := os.OpenFile(filepath.Join(dir, servingLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return t, lock.Close()
	}
	t.lock = lock
	t.write()
	return t, nil
}

func (t *teller) close() {
	if t.lock != nil {
		_ = os.Remove(filepath.Join(t.dir, servingName))
		_ = t.lock.Close()
	}
}

// follow is told how a service is followed.
func (t *teller) follow(service string, s *capture.FollowState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s == nil {
		delete(t.now.Follows, service)
	} else {
		t.now.Follows[service] = *s
	}
	if t.lock != nil {
		t.write()
	}
}

// followed returns how the services are followed; nil if none is.
func (t *teller) followed() map[string]capture.FollowState {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.now.Follows)
}

func (t *teller) write() {
	b, err := json.Marshal(&t.now)
	if err == nil {
		err = renameio.WriteFile(filepath.Join(t.dir, servingName), b, 0o600)
	}
	if err != nil {
		t.log.Warn("srvd status will not know", "error", err)
	}
}

// readServing returns what the one that serves tells, or nil if none does.
func readServing(dir string) (*serving, error) {
	lock, err := os.Open(filepath.Join(dir, servingLock))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err == nil {
		return nil, nil
	}
	b, err := os.ReadFile(filepath.Join(dir, servingName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it is about to begin, or to end
	}
	var s serving
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return nil, fmt.Errorf("what srvd serve tells of itself: %w", err)
	}
	return &s, nil
}

// A statusRow is one service in `srvd status`.
type statusRow struct {
	Service   string               `json:"service"`
	Sequence  uint64               `json:"sequence"`
	Made      time.Time            `json:"made"`
	Snapshots int                  `json:"snapshots"` // that are kept
	Followed  *capture.FollowState `json:"followed,omitempty"`
}

func (p *program) statusCmd() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "tell whether srvd serves, and how it follows",
		Long: `Status tells whether srvd serves from this state folder, and of each service the newest
snapshot, how many are kept, and whether its changes are followed: watched, looked for
from time to time where they can't be watched, or not.

` + cli.Codes,
		Example: "  srvd status\n  srvd status --json",
		Args:    cli.Args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			lib, err := capture.OpenLibrary(p.state)
			if err != nil {
				return err
			}
			now, err := readServing(p.state)
			if err != nil {
				return err
			}
			list, err := lib.List()
			if err != nil {
				return err
			}
			rows := []statusRow{}
			for _, pub := range list {
				all, err := lib.History(pub.Service)
				if err != nil {
					return err
				}
				r := statusRow{Service: pub.Service, Sequence: pub.Sequence, Made: time.Unix(0, pub.Created), Snapshots: len(all)}
				if now != nil {
					if s, ok := now.Follows[pub.Service]; ok {
						r.Followed = &s
					}
				}
				rows = append(rows, r)
			}
			if asJSON {
				return cli.JSON(c.OutOrStdout(), map[string]any{"serving": now, "services": rows})
			}
			out := c.OutOrStdout()
			if now == nil {
				_, _ = fmt.Fprintln(out, "nobody serves from "+p.state+": srvd serve")
			} else {
				_, _ = fmt.Fprintf(out, "serving on %s since %s, process %d\n", now.Listen, now.Since.Local().Format(time.DateTime), now.PID)
			}
			w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "SERVICE\tSNAPSHOT\tMADE\tKEPT\tFOLLOWED")
			for _, r := range rows {
				_, _ = fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\n", r.Service, r.Sequence, r.Made.Format(time.DateTime), r.Snapshots, describe(r.Followed))
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func describe(s *capture.FollowState) string {
	switch {
	case s == nil:
		return "no"
	case s.Watched && s.Outdated != "":
		why, _, _ := strings.Cut(s.Outdated, "\n")
		return "watched; but packages or units have changed, and capturing it anew failed: " + why
	case s.Watched && s.Data == "":
		return "watched"
	case s.Watched:
		return "watched; but not its data: " + s.Data
	}
	return s.Reason
}
