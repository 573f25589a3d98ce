// Static is a program that runs in a root that holds nothing else. It lists the
// root and, with arguments, what they name.
package main

import (
	"fmt"
	"os"
)

func main() {
	for _, dir := range append([]string{"/"}, os.Args[1:]...) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Print(dir, ":")
		for _, e := range entries {
			fmt.Print(" ", e.Name())
		}
		fmt.Println()
	}
}
