package capture

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"srvfs/manifest"
	"srvfs/manifest/origintest"
)

// Live files are an origin like any other.
func TestLiveConforms(t *testing.T) {
	files := map[string]string{}
	all := origintest.Contents()
	for _, b := range all {
		files[fmt.Sprintf("f%d-%s", len(b), manifest.Sum(b).Hex()[:8])] = string(b)
	}
	files["changed"] = "as it was captured"
	s := newShelf(t, files)
	if err := os.WriteFile(filepath.Join(s.root, "changed"), []byte("as it is now, and longer"), 0o644); err != nil {
		t.Fatal(err)
	}
	origintest.Run(t, origintest.World{Origin: s.live, Has: all, Stale: []manifest.Digest{manifest.Sum([]byte("as it was captured"))}})
}
