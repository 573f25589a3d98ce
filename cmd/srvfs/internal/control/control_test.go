package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"srvfs/manifest"
)

type record struct {
	steps []string
	last  Progress
}

func (r *record) Step(name string, _ time.Duration, detail string) {
	r.steps = append(r.steps, name+" "+detail)
}
func (r *record) Progress(p Progress) { r.last = p }

func TestCalls(t *testing.T) {
	state := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40))
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := Do(ctx, state, "echo", Call{}, nil, nil); !errors.Is(err, ErrNoDaemon) {
		t.Fatalf("without a daemon: %v", err)
	}
	l, err := Listen(state)
	if err != nil {
		t.Fatal(err)
	}
	entered, cancelled := make(chan struct{}), make(chan error, 1)
	serve, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		served <- Serve(serve, l, map[string]Handler{
			"echo": func(_ context.Context, c Call, out Stream) (any, error) {
				out.Step("one", time.Second, "detail")
				out.Progress(Progress{Files: 3})
				return c.Name, nil
			},
			"fail": func(context.Context, Call, Stream) (any, error) {
				return nil, fmt.Errorf("service %q: %w", "x", manifest.ErrNotFound)
			},
			"wait": func(ctx context.Context, _ Call, _ Stream) (any, error) {
				close(entered)
				<-ctx.Done()
				cancelled <- ctx.Err()
				return nil, ctx.Err()
			},
		})
	}()
	var got string
	var rec record
	if err := Do(ctx, state, "echo", Call{Name: "web"}, &rec, &got); err != nil || got != "web" || len(rec.steps) != 1 || rec.steps[0] != "one detail" || rec.last.Files != 3 {
		t.Errorf("echo: %q, %+v, %v", got, rec, err)
	}
	if err := Do(ctx, state, "fail", Call{}, nil, nil); !errors.Is(err, manifest.ErrNotFound) || err.Error() != `service "x": not found` {
		t.Errorf("fail: %v", err)
	}
	if err := Do(ctx, state, "unknown", Call{}, nil, nil); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("unknown: %v", err)
	}
	waitCtx, giveUp := context.WithCancel(ctx)
	go func() { <-entered; giveUp() }()
	if err := Do(waitCtx, state, "wait", Call{}, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled client: %v", err)
	}
	if err := <-cancelled; err == nil {
		t.Error("the handler did not see the client go")
	}
	stop()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}
