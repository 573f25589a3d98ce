// Command roots makes the root folders of the test hosts, if they are not
// there yet, so that tests and demo need not wait for it.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"srvfs/test/world"
)

func main() {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "roots: needs root rights: tests and demo make mounts and namespaces")
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	for _, k := range append([]world.RootKind{world.SourceRoot, world.StandbyRoot}, world.ServiceRoots()...) {
		start := time.Now()
		path, err := k.Archive(ctx)
		if err == nil && k.RPM {
			path, err = k.RPMs(ctx)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "roots: %v\n", err)
			os.Exit(1)
		}
		if d := time.Since(start); d > time.Second {
			fmt.Printf("made %s in %.0f s\n", path, d.Seconds())
		}
	}
}
