package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"

	"srvfs/manifest"
)

// What a word on the command line means: an archive, and which snapshot in it, or a
// host's service.
func TestWordsThatNameArchives(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	layout := filepath.Join(dir, "layout")
	if err := os.Mkdir(layout, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"odd.tar@12", "web.tar", "layout/oci-layout"} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const digest = "docker://r.example/web@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for word, want := range map[string]struct {
		archive string // empty: it is a host's
		ref     manifest.Ref
	}{
		"web.tar":                        {dir + "/web.tar", manifest.Ref{}},
		"/no/such/web.tar":               {"/no/such/web.tar", manifest.Ref{}},
		"./web.tar@3":                    {dir + "/web.tar", manifest.Ref{Sequence: 3}},
		"layout":                         {layout, manifest.Ref{}},
		"layout@3":                       {layout, manifest.Ref{Sequence: 3}},
		"docker://r.example/web:v1":      {"docker://r.example/web:v1", manifest.Ref{}},
		"docker://r.example:5000/web@12": {"docker://r.example:5000/web", manifest.Ref{Sequence: 12}},
		digest:                           {digest, manifest.Ref{}},
		digest + "@12":                   {digest, manifest.Ref{Sequence: 12}},
		"https://h.example/x.tar@7":      {"https://h.example/x.tar", manifest.Ref{Sequence: 7}},
		"alpha/web":                      {"", manifest.Ref{Service: "web"}},
		"alpha:7000/web@12":              {"", manifest.Ref{Service: "web", Sequence: 12}},
	} {
		var f archiveFlags
		got, err := f.split(&cobra.Command{}, word)
		if err != nil {
			t.Errorf("%s: %v", word, err)
			continue
		}
		if got.Ref != want.ref || got.FromArchive() != (want.archive != "") || got.FromArchive() && got.Source != want.archive {
			t.Errorf("%s: %+v, %+v", word, got, got.Archive)
		}
	}
}
