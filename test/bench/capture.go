package main

import (
	"context"
	"fmt"
	"time"
)

// The capture of nginx on the source, with its own start measured beside it: a
// capture starts the service twice, so twice a native start is taken off.
var _ = add(Row{
	Place: 200, Name: "capture of nginx, without the service's own start", Reach: "0.5 s",
	Runs: []Run{
		{"first", captures("rm -rf /root/fresh")}, {"again", captures("")}, {"native start", sourceStart},
	},
	Judge: func(r Results) []Goal {
		limit := 0.5 + 2*r.Value("native start")
		const why = "0.5 s and two native starts"
		return []Goal{r.AtMost("first", limit, "s", why), r.AtMost("again", limit, "s", why)}
	},
})

// captures measures `srvd capture` with a state folder of its own, after a line
// that prepares it.
func captures(prepare string) func(context.Context, *Site) (Sample, error) {
	const line = "srvd capture web -q --state /root/fresh --unit nginx --probe http://127.0.0.1/"
	return func(ctx context.Context, s *Site) (Sample, error) {
		if _, err := s.Source.Shell(ctx, or(prepare, "test -d /root/fresh || "+line)); err != nil {
			return Sample{}, err
		}
		sample, err := s.Timed(s.Source, func() error {
			_, err := s.Source.Shell(ctx, line)
			return err
		})
		sample.Moved = 0
		return sample, err
	}
}

// sourceStart measures what a capture starts, natively: the unit's check of the
// configuration, its start, and the first answer, beside the nginx that serves.
func sourceStart(ctx context.Context, s *Site) (Sample, error) {
	const prepare = `mkdir -p /root/second; sed 's,/run/nginx.pid,/root/second/pid,' /etc/nginx/nginx.conf > /root/second/nginx.conf
sed -i 's,include /etc/nginx/sites-enabled/.*,server { listen 8081; root /var/www/html; },' /root/second/nginx.conf`
	if _, err := s.Source.Shell(ctx, prepare); err != nil {
		return Sample{}, err
	}
	start := time.Now()
	if _, err := s.Source.Shell(ctx, "nginx -t -q -c /root/second/nginx.conf && nginx -c /root/second/nginx.conf"); err != nil {
		return Sample{}, err
	}
	body, err := s.Client.Get(ctx, "http://"+s.Source.Addr+":8081/")
	took := time.Since(start)
	if err == nil && body != page {
		err = fmt.Errorf("the second nginx serves %q", body)
	}
	if _, stop := s.Source.Shell(ctx, "kill $(cat /root/second/pid)"); err == nil {
		err = stop
	}
	return Sample{Value: took.Seconds()}, err
}
