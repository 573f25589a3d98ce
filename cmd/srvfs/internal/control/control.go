// Package control carries commands from the srvfs command line to the daemon
// that holds the store and the views: HTTP over a Unix socket in the state
// folder, one request a command. The answer is a stream of JSON values, one a
// line: steps and progress while the command runs, then its result or its
// error. A client that goes away cancels its command.
package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"srvfs/cmd/internal/cli"
	"srvfs/manifest"
)

// SocketPath returns the path of the daemon's socket for a state folder.
func SocketPath(state string) string { return filepath.Join(state, "control.sock") }

// A Call is what a command asks of the daemon. Each operation reads the
// fields that it needs.
type Call struct {
	Snapshot
	With       *Snapshot     `json:"with,omitempty"` // what it is compared with
	Name       string        `json:"name,omitempty"` // the service's name here
	Mountpoint string        `json:"mountpoint,omitempty"`
	Update     bool          `json:"update,omitempty"`
	Force      bool          `json:"force,omitempty"`
	Timeout    time.Duration `json:"timeout,omitempty"`
	Listen     string        `json:"listen,omitempty"` // address and port
	Verify     bool          `json:"verify,omitempty"` // read again what is here
	Dir        string        `json:"dir,omitempty"`    // the folder to materialise to
	Link       bool          `json:"link,omitempty"`   // by hard links
	NoFuse     bool          `json:"no_fuse,omitempty"`
	// Prepare says whether files that the service writes to are prepared; nil: as
	// it was said before.
	Prepare *bool `json:"prepare,omitempty"`
	// Export says where an export goes, and how.
	Export *Export `json:"export,omitempty"`
}

// An Export is the destination of one: an archive. Paths are absolute.
type Export struct {
	Dest       string   `json:"dest"`
	Compact    bool     `json:"compact,omitempty"`
	Recipients []string `json:"recipients,omitempty"`
	Identity   string   `json:"identity,omitempty"`
	Insecure   bool     `json:"insecure,omitempty"`
}

// A Snapshot names one on its source, HOST[:PORT]. Without a source, the service is
// named as it is here.
type Snapshot struct {
	Source string `json:"source,omitempty"`
	manifest.Ref
	// Archive is where content comes from when the source fails; if the Source is the
	// same, that is all there is.
	Archive *Archive `json:"archive,omitempty"`
}

// An Archive names one, and says how it is read.
type Archive struct {
	Ref      string `json:"ref"`                // absolute DIR or FILE, http(s)://…, docker://…
	Identity string `json:"identity,omitempty"` // the file of the key that it is encrypted to
	Insecure bool   `json:"insecure,omitempty"` // a registry without TLS
}

// FromArchive reports whether it is that of an archive, and of no host.
func (s *Snapshot) FromArchive() bool { return s.Archive != nil && s.Archive.Ref == s.Source }

// An Event is one line of the answer: exactly one field is set.
type Event struct {
	Step     *Step           `json:"step,omitempty"`
	Progress *Progress       `json:"progress,omitempty"`
	Error    *Failure        `json:"error,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
}

// A Step is one thing done, and the time that it took.
type Step struct {
	Name   string        `json:"name"`
	Detail string        `json:"detail,omitempty"`
	Took   time.Duration `json:"took"` // nanoseconds
}

// A Progress tells how far a prefetch is.
type Progress struct {
	Files, TotalFiles int64
	Bytes, TotalBytes int64
	Local, Fetched    int64  // bytes that came from this host's own files, and over the wire
	Stage             string // what is being brought: "profile", "used", "package", "library", "rule", "data"; or "verify"
}

// A Failure is an error on its way to another process.
type Failure struct {
	Kind string `json:"kind,omitempty"`
	Text string `json:"text"`
}

// A Stream receives what happens while a command runs.
type Stream interface {
	Step(name string, took time.Duration, detail string)
	Progress(Progress)
}

// A Handler carries out one operation. What it returns is the result.
type Handler func(ctx context.Context, call Call, out Stream) (any, error)

// maxCall bounds a request; maxLine one line of an answer.
const (
	maxCall = 64 << 10
	maxLine = 16 << 20
)

// Serve answers calls on the listener until ctx ends, then waits for the
// calls under way, whose contexts end too.
func Serve(ctx context.Context, l net.Listener, ops map[string]Handler) error {
	mux := http.NewServeMux()
	for name, op := range ops {
		mux.HandleFunc("POST /v1/"+name, func(w http.ResponseWriter, r *http.Request) { answer(w, r, op) })
	}
	srv := &http.Server{Handler: mux, BaseContext: func(net.Listener) context.Context { return ctx }, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err := srv.Shutdown(stop)
	<-failed
	return err
}

func answer(w http.ResponseWriter, r *http.Request, op Handler) {
	var call Call
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCall))
	d.DisallowUnknownFields()
	if err := d.Decode(&call); err != nil {
		http.Error(w, "bad request: "+err.Error(), http.StatusBadRequest)
		return
	}
	out := &lines{w: w, flush: http.NewResponseController(w)}
	result, err := op(r.Context(), call, out)
	if err != nil {
		out.write(Event{Error: &Failure{Kind: cli.Name(err), Text: err.Error()}})
		return
	}
	body, err := json.Marshal(result)
	if err != nil {
		out.write(Event{Error: &Failure{Text: err.Error()}})
		return
	}
	out.write(Event{Result: body})
}

// lines writes events to one response. Handlers call it from one goroutine at
// a time; a client that has gone away shows in the request's context.
type lines struct {
	w     io.Writer
	flush *http.ResponseController
}

func (l *lines) write(e Event) {
	b, err := json.Marshal(e)
	if err != nil {
		return
	}
	_, _ = l.w.Write(append(b, '\n'))
	_ = l.flush.Flush()
}

func (l *lines) Step(name string, took time.Duration, detail string) {
	l.write(Event{Step: &Step{Name: name, Detail: detail, Took: took}})
}
func (l *lines) Progress(p Progress) { l.write(Event{Progress: &p}) }

// ErrNoDaemon: no daemon serves the state folder.
var ErrNoDaemon = errors.New("no daemon is running")

// Do sends one call to the daemon of a state folder and passes on what it
// says. The result is decoded into result unless that is nil. Without a
// daemon the error wraps ErrNoDaemon.
func Do(ctx context.Context, state, op string, call Call, out Stream, result any) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx, SocketPath(state))
		},
	}}
	body, err := json.Marshal(call)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://daemon/v1/"+op, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w for %s: %w", ErrNoDaemon, state, unwrapURL(err))
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("the daemon does not know %q (%s): %s; is it of another version? stop it and try again", op, resp.Status, bytes.TrimSpace(text))
	}
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(make([]byte, 64<<10), maxLine)
	for sc.Scan() {
		var e Event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			return fmt.Errorf("the daemon's answer: %w: %w", err, manifest.ErrInvalid)
		}
		switch {
		case e.Step != nil && out != nil:
			out.Step(e.Step.Name, e.Step.Took, e.Step.Detail)
		case e.Progress != nil && out != nil:
			out.Progress(*e.Progress)
		case e.Error != nil:
			return cli.Remote(e.Error.Kind, e.Error.Text)
		case e.Result != nil:
			if result == nil {
				return nil
			}
			return json.Unmarshal(e.Result, result)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("the daemon ended before it had answered; see %s", filepath.Join(state, "daemon.log"))
}

func unwrapURL(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// Listen makes the daemon's socket, for root alone. A socket that a killed
// daemon left is replaced: the caller holds the state folder's lock.
func Listen(state string) (net.Listener, error) {
	path := SocketPath(state)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}
