// Command srvfs runs on the standby: it mounts the snapshots of other hosts'
// services as views, and starts the services there. See `srvfs --help` and
// docs/operations.md. Called as mount.fuse.srvfs it is a helper of mount(8).
package main

import (
	"os"
	"path/filepath"

	"srvfs/cmd/internal/cli"
	"srvfs/sandbox"
)

func main() {
	sandbox.Init() // does not return in the helper processes of a sandbox
	if filepath.Base(os.Args[0]) == helperName {
		cli.Main(newHelper())
		return
	}
	cli.Main(newRoot())
}
