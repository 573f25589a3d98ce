package test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rooms is the table of docs/architecture.md: what each room may import of
// this project, and what it may never import from outside.
var rooms = map[string]struct{ may, never []string }{
	"manifest": {nil, []string{"google.golang.org/grpc", "github.com/hanwen/go-fuse"}},
	"probe":    {nil, []string{"google.golang.org/grpc", "github.com/hanwen/go-fuse"}},
	"sandbox":  {nil, []string{"google.golang.org/grpc", "github.com/hanwen/go-fuse"}},
	"capture":  {[]string{"manifest", "probe", "sandbox"}, []string{"google.golang.org/grpc", "github.com/hanwen/go-fuse"}},
	"rpc":      {[]string{"manifest"}, []string{"github.com/hanwen/go-fuse"}},
	"store":    {[]string{"manifest"}, []string{"google.golang.org/grpc", "github.com/hanwen/go-fuse"}},
	"fs":       {[]string{"manifest"}, []string{"google.golang.org/grpc"}},
	"service":  {[]string{"manifest", "probe", "sandbox"}, []string{"google.golang.org/grpc", "github.com/hanwen/go-fuse"}},
	"cmd":      {[]string{"manifest", "probe", "sandbox", "capture", "rpc", "store", "fs", "service"}, nil},
	"test":     {[]string{"manifest", "probe", "sandbox", "capture", "rpc", "store", "fs", "service"}, nil},
}

func TestRoomsImportOnlyWhatTheyMay(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "srvfs/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	room := func(path string) string {
		name, _, _ := strings.Cut(strings.TrimPrefix(path, "srvfs/"), "/")
		return name
	}
	seen := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		from := room(p.ImportPath)
		rule, ok := rooms[from]
		if !ok {
			t.Errorf("%s is in no room of the table", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if to := room(imp); strings.HasPrefix(imp, "srvfs/") && to != from && !slices.Contains(rule.may, to) {
				t.Errorf("%s imports %s: room %s may import %v only", p.ImportPath, imp, from, rule.may)
			}
			for _, no := range rule.never {
				if imp == no || strings.HasPrefix(imp, no+"/") {
					t.Errorf("%s imports %s: room %s never does", p.ImportPath, imp, from)
				}
			}
		}
	}
	if seen < len(rooms) {
		t.Errorf("only %d packages were listed", seen)
	}
}
