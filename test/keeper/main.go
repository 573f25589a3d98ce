// Keeper is a server that keeps one large file, as a database does: it writes to it
// when it is asked to, flushes, and says how long that took. Tests and benchmarks
// capture it.
//
//	GET /       the length of its file
//	GET /write  opens the file if it is not open, writes 4 KiB, flushes
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"sync"
	"time"
)

// A Report is the answer to /write. Times are in nanoseconds.
type Report struct {
	Open  time.Duration `json:"open"`  // 0 if the file was open
	Write time.Duration `json:"write"` // with the flush
	Size  int64         `json:"size"`  // of the file, in bytes
}

type keeper struct {
	name string
	mu   sync.Mutex
	file *os.File
}

func (k *keeper) write() (r Report, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	start := time.Now()
	if k.file == nil {
		if k.file, err = os.OpenFile(k.name, os.O_RDWR, 0); err != nil {
			return r, err
		}
		r.Open = time.Since(start)
	}
	info, err := k.file.Stat()
	if err != nil {
		return r, err
	}
	r.Size = info.Size()
	start = time.Now()
	page := make([]byte, 4096)
	copy(page, fmt.Sprintf("written at %v", start))
	if _, err := k.file.WriteAt(page, r.Size/2); err != nil {
		return r, err
	}
	err = k.file.Sync()
	r.Write = time.Since(start)
	return r, err
}

func main() {
	listen := flag.String("listen", "127.0.0.1:8090", "address")
	data := flag.String("data", "/srv/keeper/data", "the file")
	name := flag.String("log", "/var/log/keeper/keeper.log", "the log, which must exist")
	flag.Parse()
	out, err := os.OpenFile(*name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		log.Fatal(err)
	}
	log.SetOutput(out)
	log.Print("started")
	k := &keeper{name: *data}
	http.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		info, err := os.Stat(*data)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprintln(w, info.Size())
	})
	http.HandleFunc("/write", func(w http.ResponseWriter, _ *http.Request) {
		r, err := k.write()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(r)
	})
	log.Fatal(http.ListenAndServe(*listen, nil))
}
