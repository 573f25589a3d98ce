// Command srvd runs on the source: it captures services into snapshots and
// serves them to paired standbys. See `srvd --help` and docs/operations.md.
package main

import (
	"srvfs/cmd/internal/cli"
	"srvfs/sandbox"
)

func main() {
	sandbox.Init() // does not return in the helper processes of a sandbox
	cli.Main(newRoot())
}
