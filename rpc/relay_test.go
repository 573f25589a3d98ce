package rpc

import (
	"context"
	"fmt"
	"testing"

	"srvfs/manifest"
)

// A relaying offers what it has of other sources.
type relaying struct {
	*library
	others map[string]*library // by the source's ID
}

func (r relaying) Of(source string) (Provider, error) {
	if l := r.others[source]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("nothing of %s: %w", source, manifest.ErrNotFound)
}

func (r relaying) Services(ctx context.Context) (all []ServiceInfo, err error) {
	for source, l := range r.others {
		infos, err := l.Services(ctx)
		if err != nil {
			return nil, err
		}
		for _, v := range infos {
			v.Source, v.SourceName = source, "alpha\x1b[31m"
			all = append(all, v)
		}
	}
	return all, nil
}

func TestRelay(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	other := newLibrary(t)
	other.snapshot = map[string][]byte{"web": encodedSnapshot(t, "web", 9)}
	w.stop()
	w.offer = relaying{w.lib, map[string]*library{"k3v5": other}}
	w.serve(w.addr, ServerOptions{})
	c := w.pair(ClientOptions{})
	if !c.Source().Standby {
		t.Error("a standby is not known as one")
	}
	all, err := c.List(w.ctx())
	if err != nil || len(all) != 1 || all[0].Source != "k3v5" || all[0].SourceName != "alpha??31m" {
		t.Errorf("it lists %+v, %v", all, err)
	}
	if s, _, err := snapshot(w.ctx(), c, "web", 0); err != nil || s.Sequence != 7 {
		t.Errorf("of whichever source: %+v, %v", s, err)
	}
	of := c.Of("k3v5")
	if s, _, err := snapshot(w.ctx(), of, "web", 0); err != nil || s.Sequence != 9 {
		t.Errorf("of the source: %+v, %v", s, err)
	}
	if _, err := of.History(w.ctx(), "web"); err != nil {
		t.Error(err)
	}
	if v, err := of.Await(w.ctx(), "web", manifest.Digest{}); err != nil || v.Digest != manifest.Sum(other.snapshot["web"]) {
		t.Errorf("its newest: %+v, %v", v, err)
	}
	for source, want := range map[string]error{"zzzz": manifest.ErrNotFound, "../etc": manifest.ErrInvalid} {
		for what, call := range map[string]func(*Client) error{
			"snapshot": func(c *Client) error { _, _, err := snapshot(w.ctx(), c, "web", 0); return err },
			"history":  func(c *Client) error { _, err := c.History(w.ctx(), "web"); return err },
			"await":    func(c *Client) error { _, err := c.Await(w.ctx(), "web", manifest.Digest{}); return err },
		} {
			t.Log(what)
			wantErr(t, call(c.Of(source)), want)
		}
	}
}

// A source offers what is its own.
func TestSourceIsNoRelay(t *testing.T) {
	w := newWorld(t, ServerOptions{})
	c := w.pair(ClientOptions{})
	if c.Source().Standby {
		t.Error("a source is taken for a standby")
	}
	_, _, err := snapshot(w.ctx(), c.Of("k3v5"), "web", 0)
	wantErr(t, err, manifest.ErrNotFound, "of its own")
	if _, _, err := snapshot(w.ctx(), c.Of(w.source.Fingerprint().ID()), "web", 0); err != nil {
		t.Errorf("by its own ID: %v", err)
	}
}
