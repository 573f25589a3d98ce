package capture

import (
	"os"
	"path/filepath"
	"testing"

	"srvfs/capture/rootfs"
	"srvfs/capture/trace"
	"srvfs/manifest"
)

// Which files start empty, by all that was seen of them.
func TestStartsEmpty(t *testing.T) {
	const (
		trunc = trace.Truncates
		app   = trace.Appends
		read  = trace.Reads
	)
	open := func(m trace.Mode, write bool) trace.Access {
		return trace.Access{Op: trace.Open, Mode: m, Write: write}
	}
	type seen struct {
		accesses []trace.Access // before the probes were answered
		later    []trace.Access
		running  []trace.Mode // descriptors that are open for writing
		named    bool         // by the administrator
		want     bool
	}
	for p, all := range map[string][]seen{
		"/var/log/web/access": {
			{accesses: []trace.Access{open(app, true)}, want: true},
			{accesses: []trace.Access{open(0, true)}, want: true},
			{running: []trace.Mode{app}, want: true},
			{running: []trace.Mode{app | read}},
			{accesses: []trace.Access{open(app, true), open(read, false)}},
			{accesses: []trace.Access{open(app|read, true)}},
			{accesses: []trace.Access{open(app, true)}, later: []trace.Access{open(read, false)}},
			{accesses: []trace.Access{open(app, true)}, named: true},
			{accesses: []trace.Access{open(read, false)}},
		},
		"/srv/app/logs/today": {
			{accesses: []trace.Access{open(app, true)}, want: true},
			{accesses: []trace.Access{open(0, true)}}, // it may write anywhere in it
			{accesses: []trace.Access{open(app, true), open(0, true)}},
			{accesses: []trace.Access{open(app, true)}, running: []trace.Mode{0}},
		},
		"/srv/app/error.log": {{accesses: []trace.Access{open(app, true)}, want: true}},
		// Mail is appended to as logs are.
		"/var/mail/alice": {{accesses: []trace.Access{open(app, true)}}, {running: []trace.Mode{app}}},
		"/var/lib/app/state": {
			{accesses: []trace.Access{open(trunc, true)}, want: true},
			{accesses: []trace.Access{open(trunc|read, true)}, want: true},
			{accesses: []trace.Access{open(trunc, true), open(read, false)}},
			{accesses: []trace.Access{open(read, false), open(trunc, true)}},
			{accesses: []trace.Access{open(app, true), open(trunc, true)}},
			{later: []trace.Access{open(trunc, true)}}, // as it stops: the next start may read it
			{accesses: []trace.Access{open(trunc, true)}, running: []trace.Mode{read}},
		},
	} {
		for n, s := range all {
			c := &closure{items: map[string]*item{p: {reasons: []Reason{{ClassTraced, "x"}}}}, uses: map[string]*use{}}
			if s.named {
				c.items[p].reasons = []Reason{{ClassUser, includeText + p}}
			}
			for _, m := range s.running {
				c.held(p, m&read != 0, true, m&app != 0)
			}
			for _, a := range s.accesses {
				c.opened(p, a)
			}
			c.answered = true
			for _, a := range append(s.accesses, s.later...) { // all of a run is observed again when it has ended
				c.opened(p, a)
			}
			c.chooseFresh()
			if got := c.items[p].fresh != ""; got != s.want {
				t.Errorf("%s, case %d: starts empty: %v (%q), want %v", p, n, got, c.items[p].fresh, s.want)
			}
		}
	}
}

// A file that starts empty is so in the tree, says why, and is marked in the
// profile; what only the running instance writes to is there too. A file of several
// names keeps its content.
func TestFreshInTheTree(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"var/log/web.log", "var/log/linked", "srv/data", "srv/read"} {
		write(t, filepath.Join(root, name), "what the source has", 0o640)
	}
	check(t, os.Link(filepath.Join(root, "var/log/linked"), filepath.Join(root, "srv/other")))
	r := must(rootfs.New(root))(t)
	t.Cleanup(func() { _ = r.Close() })
	c := newClosure(r, must(mountsBelow(root))(t), nil)
	traced := []trace.Access{
		{Path: "/srv/read", Root: "/", Op: trace.Open, Mode: trace.Reads},
		{Path: "/var/log/web.log", Root: "/", Op: trace.Open, Mode: trace.Appends, Write: true},
		{Path: "/var/log/linked", Root: "/", Op: trace.Open, Mode: trace.Appends, Write: true},
	}
	c.observe(traced)
	c.add("/srv/data", Reason{ClassTraced, heldForWriting})
	c.add("/srv/other", Reason{ClassTraced, "x"})
	c.held("/srv/data", true, true, false)
	c.chooseFresh()
	tr := must(build(t.Context(), newHasher(openRoot(t, root), nil, nil), c.items))(t)
	touches := map[string]manifest.Touch{}
	for _, x := range profile(c, tr, traced) {
		touches[x.Path] = x
	}
	if x := touches["/var/log/web.log"]; !x.Write || !x.Fresh || x.Content != manifest.EmptyDigest || x.Len != 0 {
		t.Errorf("the log: %+v", x)
	}
	if x := touches["/var/log/linked"]; !x.Write || x.Fresh || x.Len == 0 {
		t.Errorf("the log with two names: %+v", x)
	}
	if x := touches["/srv/data"]; !x.Write || x.Fresh || x.Len == 0 {
		t.Errorf("what the running instance has open: %+v", x)
	}
	if x, ok := touches["/srv/read"]; !ok || x.Write {
		t.Errorf("what is read: %+v", x)
	}
	n, _ := tr.find("/var/log/web.log")
	if e := n.listed(); n.entry.Mode != 0o640 || e.Size != 0 || e.Reasons[len(e.Reasons)-1].Class != ClassRule {
		t.Errorf("the log in the tree: %+v, %+v", n.entry, e)
	}
}
