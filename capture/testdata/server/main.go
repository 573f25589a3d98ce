// Server is the service that the tests of package capture capture. It serves
// the content of a file by HTTP on 127.0.0.1, and does what its flags say.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	addr := flag.String("listen", "127.0.0.1:8080", "")
	file := flag.String("file", "/etc/web/page", "what is served")
	lock := flag.String("lock", "", "a file that must not exist, and is made")
	hint := flag.String("hint", "", "a name in /; without it -spare is read as well")
	spare := flag.String("spare", "", "")
	grow := flag.String("grow", "", "a file that is written to")
	wait := flag.Bool("wait", false, "wait for ever when -spare is missing")
	fail := flag.Bool("fail", false, "complain and end")
	look := flag.String("look", "", "a file that need not exist")
	large := flag.String("large", "", "a file of which some is read at the start, and more at each request")
	flag.Parse()
	if _, err := os.Stat(*look); err == nil {
		log.Fatal("it is there")
	}
	if *fail {
		log.Fatal("the configuration makes no sense")
	}
	if *lock != "" {
		f, err := os.OpenFile(*lock, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprintln(f, os.Getpid())
	}
	if *hint != "" {
		there := false
		entries, _ := os.ReadDir("/")
		for _, e := range entries {
			there = there || e.Name() == *hint
		}
		if !there {
			if _, err := os.ReadFile(*spare); err != nil {
				for *wait {
					time.Sleep(time.Hour)
				}
				log.Fatal(err)
			}
		}
	}
	var data *os.File
	if *large != "" {
		var err error
		if data, err = os.Open(*large); err != nil {
			log.Fatal(err)
		}
		for _, off := range []int64{40 << 20, 0} {
			if _, err := data.ReadAt(make([]byte, 300<<10), off); err != nil {
				log.Fatal(err)
			}
		}
	}
	if *grow != "" {
		if err := os.WriteFile(*grow, []byte(strings.Repeat("x", 1<<20)), 0o644); err != nil {
			log.Fatal(err)
		}
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		if data != nil {
			_, _ = data.ReadAt(make([]byte, 10), 20<<20)
		}
		b, err := os.ReadFile(*file)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(b)
	})
	l, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	if socket := os.Getenv("NOTIFY_SOCKET"); socket != "" {
		c, err := net.Dial("unixgram", socket)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprint(c, "READY=1\n")
	}
	log.Fatal(http.Serve(l, nil))
}
