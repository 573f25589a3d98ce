package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/smtp"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"srvfs/test/world"
)

// A job is a real service of Debian, and a real transaction with it.
type job struct {
	name    string
	prepare func(s *site)             // puts files on the source
	setup   string                    // configures and starts it there, as its administrator has
	capture string                    // flags of srvd capture
	check   func(*site, string) error // carries the transaction out with the service at an address
	data    string                    // what the source loses in the end
}

var jobs = []job{
	{
		name:    "nginx",
		setup:   world.Web.Setup,
		capture: world.Web.Capture,
		check: func(s *site, addr string) error {
			return errors.Join(s.page("http://"+addr+"/", "served\n"), s.page("https://"+addr+"/", "served\n"))
		},
		data: "/var/www /etc/nginx /etc/ssl",
	},
	{
		name:    "bind9",
		setup:   world.DNS.Setup,
		capture: world.DNS.Capture,
		check: func(s *site, addr string) error {
			return errors.Join(s.resolves("udp", addr), s.resolves("tcp", addr))
		},
		data: "/etc/bind /var/cache/bind",
	},
	{
		name:    "postfix",
		setup:   world.Mail.Setup,
		capture: world.Mail.Capture,
		check:   (*site).delivers,
		data:    "/etc/postfix /var/spool/postfix",
	},
	{
		name: "dovecot",
		setup: `useradd -m -p "$(openssl passwd -6 secret)" anna
printf 'mail_location = mbox:~/mail:INBOX=/var/mail/%%u\ndisable_plaintext_auth = no\nssl = no\nmail_privileged_group = mail\n' > /etc/dovecot/conf.d/99-local.conf
printf 'From someone@example.org Thu Jan  1 00:00:00 2026\nFrom: someone@example.org\nSubject: greetings\n\nread me\n\n' > /var/mail/anna
chown anna:mail /var/mail/anna; chmod 660 /var/mail/anna
dovecot`,
		capture: "--unit dovecot --probe imap://anna:secret@127.0.0.1/ --include /var/mail --include /home/anna",
		check:   (*site).readsMail,
		data:    "/etc/dovecot /var/mail",
	},
	{
		name: "apache",
		setup: `rm -f /var/www/html/index.html; printf '<?php echo array_sum(range(1, 100)), " ", md5("page"), "\n";' > /var/www/html/index.php
mkdir -p /run/lock; apachectl start`,
		capture: "--unit apache2 --probe http://127.0.0.1/index.php",
		check: func(s *site, addr string) error {
			return s.page("http://"+addr+"/index.php", "5050 71860c77c6745379b0d44304d66b6a13\n")
		},
		data: "/var/www /etc/apache2",
	},
	{
		name: "python",
		setup: `useradd -r -M -d /opt/app app
mkdir -p /opt/app /var/lib/app; chown app /var/lib/app
cat > /opt/app/server.py <<'END'
import http.server, json, sqlite3, datetime, hashlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        db = sqlite3.connect("/var/lib/app/hits.db")
        db.execute("create table if not exists hits (at text)")
        db.execute("insert into hits values (?)", (datetime.datetime.now().isoformat(),))
        db.commit()
        body = json.dumps({"sum": hashlib.sha256(b"app").hexdigest()[:8], "counted": db.execute("select count(*) from hits").fetchone()[0] > 0}).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
END
cat > /etc/systemd/system/app.service <<'END'
[Unit]
Description=an application without a package
[Service]
User=app
WorkingDirectory=/opt/app
Environment=PYTHONDONTWRITEBYTECODE=1
ExecStart=/usr/bin/python3 /opt/app/server.py
StateDirectory=app
[Install]
WantedBy=multi-user.target
END`,
		capture: "--unit app --probe http://127.0.0.1:8000/",
		check: func(s *site, addr string) error {
			return s.page("http://"+addr+":8000/", "{\"sum\": \"a172cedc\", \"counted\": true}\n")
		},
		data: "/opt/app /usr/lib/python3.11 /var/lib/app",
	},
	{
		name: "node",
		setup: `useradd -r -M -d /opt/node node
mkdir -p /opt/node/lib
echo 'exports.answer = () => 6 * 7' > /opt/node/lib/answer.js
cat > /opt/node/app.js <<'END'
const http = require('http'), zlib = require('zlib'), crypto = require('crypto')
const { answer } = require('./lib/answer')
http.createServer((q, r) => r.end('answer ' + answer() + ' ' + crypto.createHash('md5').update(zlib.gunzipSync(zlib.gzipSync('node'))).digest('hex') + '\n')).listen(3000)
END
cat > /etc/systemd/system/nodeapp.service <<'END'
[Service]
User=node
WorkingDirectory=/opt/node
ExecStart=/usr/bin/node app.js
END`,
		capture: "--unit nodeapp --probe http://127.0.0.1:3000/",
		check: func(s *site, addr string) error {
			return s.page("http://"+addr+":3000/", "answer 42 36c4536996ca5615dcf9911f068786dc\n")
		},
		data: "/opt/node",
	},
	{
		name: "mariadb",
		setup: `mkdir -p /run/mysqld; chown mysql:mysql /run/mysqld
sed -i 's/^bind-address.*/bind-address = 0.0.0.0/' /etc/mysql/mariadb.conf.d/50-server.cnf
mysqld_safe --user=mysql > /dev/null 2>&1 &
until mysqladmin ping > /dev/null 2>&1; do sleep 0.1; done
mysql -e "create database shop; create table shop.t (id int primary key, name varchar(20)) engine=innodb; insert into shop.t values (1, 'written before')"
mysqladmin shutdown; wait`,
		capture: `--unit mariadb --probe 'exec:mysql -N -e "select name from shop.t where id = 1"'`,
		check: func(s *site, _ string) error {
			return s.inRoot("mysql -N -e 'select name from shop.t where id = 1'", "written before\n")
		},
		data: "/var/lib/mysql /etc/mysql",
	},
	{
		name: "sysv",
		setup: `mkdir -p /srv/old; echo 'from before systemd' > /srv/old/index.html
cat > /etc/default/oldweb <<'END'
PORT=8088
FOLDER=/srv/old
END
cat > /etc/init.d/oldweb <<'END'
#!/bin/sh
### BEGIN INIT INFO
# Provides: oldweb
# Required-Start: $network
# Required-Stop:
# Default-Start: 2 3 4 5
# Default-Stop: 0 1 6
### END INIT INFO
. /lib/lsb/init-functions
. /etc/default/oldweb
case "$1" in
start) log_daemon_msg "Starting" oldweb; start-stop-daemon --start --quiet --pidfile /run/oldweb.pid --make-pidfile --background --exec /bin/busybox -- httpd -f -p "$PORT" -h "$FOLDER"; log_end_msg $? ;;
stop) start-stop-daemon --stop --quiet --pidfile /run/oldweb.pid ;;
*) echo "usage: $0 start|stop" >&2; exit 2 ;;
esac
END
chmod +x /etc/init.d/oldweb
/etc/init.d/oldweb start`,
		capture: "--init oldweb --probe http://127.0.0.1:8088/",
		check: func(s *site, addr string) error {
			return s.page("http://"+addr+":8088/", "from before systemd\n")
		},
		data: "/srv/old /etc/init.d",
	},
	{
		name: "static",
		prepare: func(s *site) {
			cmd := exec.Command("go", "build", "-o", filepath.Join(s.source.Root, "opt/static"), "./testdata/static")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				s.Fatalf("build: %v\n%s", err, out)
			}
		},
		setup:   "mkdir -p /srv/static; echo 'by one program' > /srv/static/page",
		capture: "--exec '/opt/static -addr :8099 -dir /srv/static' --probe http://127.0.0.1:8099/page",
		check: func(s *site, addr string) error {
			return s.page("http://"+addr+":8099/page", "by one program\n")
		},
		data: "/opt /srv/static",
	},
	{ // systemd opens the sockets of both, and uuidd has no other way
		name:    "sockets",
		setup:   "ls /etc/systemd/system/sockets.target.wants/rpcbind.socket /etc/systemd/system/sockets.target.wants/uuidd.socket",
		capture: "--unit rpcbind --unit uuidd --probe tcp://127.0.0.1:111 --probe 'exec:uuidd --random'",
		check: func(s *site, addr string) error {
			return errors.Join(s.nullCall("tcp", addr), s.nullCall("udp", addr), s.inRootUntil("uuidd --random", "-"),
				s.inRoot("test -S /run/uuidd/request -a -S /run/rpcbind.sock && echo both", "both\n"))
		},
		data: "/usr/sbin/rpcbind /usr/sbin/uuidd /lib/systemd/system/uuidd.socket",
	},
}

// Each service is captured where it runs, and started three times on a standby
// that has none of its files. Then the source is gone.
func TestServices(t *testing.T) {
	for _, j := range jobs {
		t.Run(j.name, func(t *testing.T) { j.run(t, world.ServiceRoot(j.name)) })
	}
}

// The same where rpm manages the packages.
func TestServicesOfRPM(t *testing.T) {
	root := world.ServiceRoot("rpm")
	for _, j := range []*job{jobNamed("nginx"), jobNamed("bind9"), jobNamed("postfix")} {
		t.Run(j.name, func(t *testing.T) {
			s := j.run(t, root)
			if out := s.shown; !strings.Contains(out, "package") {
				t.Errorf("no file is in because of its package:\n%s", out)
			}
		})
	}
}

func jobNamed(name string) *job {
	return &jobs[slices.IndexFunc(jobs, func(j job) bool { return j.name == name })]
}

// A web server, a name server and a mail server, each lost, on one standby.
func TestThreeServicesOnOneStandby(t *testing.T) {
	s := bareSite(t, world.ServiceRoot("nginx"), world.StandbyRoot)
	sources := map[string]*world.Host{"nginx": s.source}
	for _, name := range []string{"bind9", "postfix"} {
		sources[name] = must(s.world.Host(s.ctx, name, world.ServiceRoot(name)))(t)
		s.check(sources[name].Install(filepath.Join(binaries, "srvd"), "usr/local/sbin/srvd"))
	}
	order := []string{"nginx", "bind9", "postfix"}
	for _, name := range order {
		s.source = sources[name]
		s.on(s.source, jobNamed(name).setup)
		s.on(s.source, "srvd capture "+name+" -q "+jobNamed(name).capture)
		s.serve()
		s.paired()
		s.on(s.standby, "srvfs run --host-root '' "+s.source.Addr+"/"+name)
		s.on(s.standby, "srvfs prefetch "+name)
	}
	s.source = sources["nginx"]
	_ = s.authorities() // before it is lost
	for _, name := range order {
		s.check(sources[name].Crash(s.ctx))
	}
	for _, name := range order {
		s.transaction(jobNamed(name), "with all sources lost")
	}
	for _, name := range order {
		s.on(s.standby, "srvfs remove "+name)
	}
	s.noResidue(s.standby)
}

func (j *job) run(t *testing.T, source world.RootKind) *site {
	s := bareSite(t, source, world.StandbyRoot)
	if j.prepare != nil {
		j.prepare(s)
	}
	s.on(s.source, j.setup)
	out := s.on(s.source, "srvd capture "+j.name+" "+j.capture)
	t.Log(out)
	s.shown = s.on(s.source, "srvd show "+j.name+" --summary")
	s.serve()
	s.paired()
	for try := 1; try <= 3; try++ {
		s.on(s.standby, "srvfs run --host-root '' "+s.source.Addr+"/"+j.name)
		if try == 2 {
			s.recall(j)
		}
		s.transaction(j, fmt.Sprintf("try %d", try))
		if try < 3 {
			s.on(s.standby, "srvfs remove "+j.name)
			s.noResidue(s.standby)
		}
	}
	s.on(s.standby, "srvfs prefetch "+j.name)
	s.endProcess(s.source, "srvd", "KILL")
	s.on(s.source, "rm -rf /var/lib/srvd "+j.data)
	s.transaction(j, "without the source")
	s.on(s.standby, "srvfs stop "+j.name)
	s.on(s.standby, "srvfs run "+j.name)
	s.transaction(j, "started without the source")
	s.on(s.standby, "srvfs remove "+j.name)
	s.noResidue(s.standby)
	return s
}

// recall traces the service on the standby while it carries its transaction out: of
// all names that it asks for and does not find, the source must have none.
func (s *site) recall(j *job) {
	s.Helper()
	procs := must(s.standby.Processes())(s.T)
	name := filepath.Join(s.TempDir(), "trace")
	argv := []string{"-f", "-qq", "-e", "trace=%file", "-e", "status=failed", "-o", name}
	for pid, comm := range procs {
		if comm != "srvfs" {
			argv = append(argv, "-p", fmt.Sprint(pid))
		}
	}
	cmd := exec.CommandContext(s.ctx, "strace", argv...)
	s.check(cmd.Start())
	s.await("strace has attached to all", func() bool {
		for pid, comm := range procs {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err == nil && comm != "srvfs" && strings.Contains(string(status), "TracerPid:\t0\n") {
				return false
			}
		}
		return true
	})
	s.transaction(j, "traced")
	s.check(cmd.Process.Signal(os.Interrupt))
	_ = cmd.Wait() // it ends as the signal says
	b := must(os.ReadFile(name))(s.T)
	asked := 0
	for _, m := range notFound.FindAllStringSubmatch(string(b), -1) {
		asked++
		p := filepath.Clean(m[1])
		if elsewhere.MatchString(p) {
			continue
		}
		if _, err := os.Lstat(s.source.Root + p); err != nil {
			continue
		}
		// Postfix's processes have a root of their own.
		if _, err := os.Lstat(s.source.Root + "/var/spool/postfix" + p); j.name == "postfix" && err != nil {
			continue
		}
		s.Errorf("the standby has asked for %s in vain, which the source has", p)
	}
	s.Logf("traced %d processes on the standby: %d names were asked for in vain, and the source has none of them", len(procs), asked)
}

var (
	notFound  = regexp.MustCompile(`"(/[^"]*)"[^\n]*= -1 ENOENT`)
	elsewhere = regexp.MustCompile(`^/(proc|sys|dev|run|tmp|var/run|var/tmp)(/|$)`)
)

func (s *site) transaction(j *job, when string) {
	s.Helper()
	s.service = j.name
	if err := j.check(s, s.standby.Addr); err != nil {
		log, _ := s.standby.Shell(context.WithoutCancel(s.ctx), "cat $(srvfs status "+j.name+" --json | sed -n 's/.*\"log_file\": \"\\(.*\\)\".*/\\1/p')")
		s.Fatalf("%s: %v\n%s", when, err, log)
	}
}

// page fetches a URL as the client and compares what comes.
func (s *site) page(url, want string) error {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: s.client.Dial, TLSClientConfig: &tls.Config{ServerName: "web.example", RootCAs: s.authorities()}}
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && string(body) != want {
		err = fmt.Errorf("%s: %q, want %q", url, body, want)
	}
	return err
}

// authorities trusts the certificate that the source made for itself.
func (s *site) authorities() *x509.CertPool {
	pool := x509.NewCertPool()
	if s.certificate == nil {
		s.certificate, _ = os.ReadFile(filepath.Join(s.source.Root, "etc/ssl/certs/web.pem"))
	}
	pool.AppendCertsFromPEM(s.certificate)
	return pool
}

// resolves asks a name server for a name of the zone.
func (s *site) resolves(network, addr string) error {
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return s.client.Dial(ctx, network, addr+":53")
	}}
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	got, err := r.LookupHost(ctx, "www.example.org.")
	if err == nil && fmt.Sprint(got) != "[192.0.2.80]" {
		err = fmt.Errorf("%v, want 192.0.2.80", got)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", network, err)
	}
	return nil
}

// nullCall asks rpcbind for nothing, which it answers (RFC 5531, RFC 1833).
func (s *site) nullCall(network, addr string) error {
	c, err := s.client.Dial(s.ctx, network, addr+":111")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	call := []uint32{0x5eed, 0 /* call */, 2 /* of RPC */, 100000, 2, 0 /* null */, 0, 0, 0, 0}
	if network == "tcp" {
		call = slices.Insert(call, 0, 1<<31|40) // the last fragment, and its length
	}
	if err := binary.Write(c, binary.BigEndian, call); err != nil {
		return err
	}
	answer := make([]byte, 4*len(call))
	n, err := c.Read(answer)
	if err != nil {
		return fmt.Errorf("%s: %w", network, err)
	}
	if got := answer[:n]; !bytes.HasSuffix(got, make([]byte, 16)) || !bytes.Contains(got, []byte{0, 0, 0x5e, 0xed, 0, 0, 0, 1}) {
		return fmt.Errorf("%s: no successful answer: %x", network, got)
	}
	return nil
}

// delivers sends a message and finds it in the mailbox.
func (s *site) delivers(addr string) error {
	s.sent++
	subject := fmt.Sprintf("message %d", s.sent)
	c, err := s.client.Dial(s.ctx, "tcp", addr+":25")
	if err != nil {
		return err
	}
	m, err := smtp.NewClient(c, "mail.example.org")
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	if err := errors.Join(m.Mail("someone@example.org"), m.Rcpt("anna@mail.example.org")); err != nil {
		return err
	}
	w, err := m.Data()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "From: someone@example.org\r\nSubject: %s\r\n\r\nhello\r\n", subject)
	if err = errors.Join(err, w.Close(), m.Quit()); err != nil {
		return err
	}
	return s.inRootUntil("cat /var/mail/anna", "Subject: "+subject)
}

// readsMail logs in and reads the message.
func (s *site) readsMail(addr string) error {
	c, err := s.client.Dial(s.ctx, "tcp", addr+":143")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	p := textproto.NewConn(c)
	var said strings.Builder
	for i, line := range []string{"login anna secret", "select INBOX", "fetch 1 body[text]", "logout"} {
		if err := p.PrintfLine("a%d %s", i, line); err != nil {
			return err
		}
		for {
			answer, err := p.ReadLine()
			if err != nil {
				return fmt.Errorf("%s: %w; it said %s", line, err, said.String())
			}
			said.WriteString(answer + "\n")
			if rest, ok := strings.CutPrefix(answer, fmt.Sprintf("a%d ", i)); ok {
				if !strings.HasPrefix(rest, "OK") {
					return fmt.Errorf("%s: %s", line, answer)
				}
				break
			}
		}
	}
	if !strings.Contains(said.String(), "read me") {
		return fmt.Errorf("the message is not there: %s", said.String())
	}
	return nil
}

// inRoot runs a line in the root of the running service.
func (s *site) inRoot(line, want string) error {
	st := s.status(s.service)
	if len(st.Units) == 0 {
		return fmt.Errorf("%s does not run: %+v", s.service, st)
	}
	out, err := s.standby.Run(s.ctx, "nsenter", "-t", fmt.Sprint(st.Units[len(st.Units)-1].PID), "-m", "-p", "-r", "-w", "/bin/sh", "-c", line)
	if err == nil && want != "" && out != want {
		err = fmt.Errorf("%s: %q, want %q", line, out, want)
	}
	s.said = out
	return err
}

// inRootUntil repeats it until the text is in its output: mail is delivered after
// it was accepted.
func (s *site) inRootUntil(line, text string) error {
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	for {
		err := s.inRoot(line, "")
		if err == nil && strings.Contains(s.said, text) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: no %q in %q: %w", line, text, s.said, errors.Join(err, ctx.Err()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// A database is captured while it is written to, as fast as it can be: the snapshot is
// one that its recovery makes whole, and the standby gets it although the source
// goes on.
func TestServicesBusyDatabase(t *testing.T) {
	s := bareSite(t, world.ServiceRoot("mariadb"), world.StandbyRoot)
	s.service = "mariadb"
	s.on(s.source, strings.Replace(jobNamed("mariadb").setup, "mysqladmin shutdown; wait", `mysql -e 'create table shop.a (id int primary key); create table shop.b (id int primary key)'
(n=0; while :; do n=$((n+1)); echo "begin; insert into shop.a values ($n); insert into shop.b values ($n); commit;"; done) | mysql > /dev/null 2>&1 &`, 1))
	count := func(h string) (a, b int) {
		const query = "mysql -N -e 'select (select count(*) from shop.a), (select count(*) from shop.b)'"
		out := ""
		if h == "source" {
			out = s.on(s.source, query)
		} else {
			s.check(s.inRoot(query, ""))
			out = s.said
		}
		if _, err := fmt.Sscan(out, &a, &b); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		return a, b
	}
	s.await("the database is busy", func() bool { a, _ := count("source"); return a > 100 })
	before, _ := count("source")
	const hold = ` --freeze 'kill -STOP $(cat /run/mysqld/mysqld.pid)' --thaw 'kill -CONT $(cat /run/mysqld/mysqld.pid)'`
	out := s.on(s.source, "srvd capture mariadb "+jobNamed("mariadb").capture+hold)
	t.Log(out)
	if !strings.Contains(out, "as of one moment") {
		t.Error("nothing was frozen")
	}
	after, _ := count("source")
	if after == before {
		t.Fatal("nothing was written meanwhile")
	}
	s.serve()
	s.paired()
	s.on(s.standby, "srvfs run --host-root '' "+s.source.Addr+"/mariadb")
	a, b := count("standby")
	if a != b || a < before || a > after {
		t.Errorf("the standby has %d and %d rows; the source had %d before the capture, %d after", a, b, before, after)
	}
	s.on(s.standby, "srvfs prefetch mariadb")
	s.lose()
	s.on(s.standby, "srvfs stop mariadb; srvfs run mariadb")
	if a, b := count("standby"); a != b {
		t.Errorf("started again without the source, the standby has %d and %d rows", a, b)
	}
	s.on(s.standby, "srvfs remove mariadb")
	s.noResidue(s.standby)
}

// A server of which only its packages are left: they are unpacked, captured from
// there, and run.
func TestCaptureFromPackagesAlone(t *testing.T) {
	s := bareSite(t, world.StandbyRoot, world.StandbyRoot)
	rpms := must(world.ServiceRoot("rpm").RPMs(s.ctx))(t)
	const site = `Name: site
Version: 1
Release: 1
Summary: what the administrator keeps in a package
License: none
BuildArch: noarch
%description
x
%install
mkdir -p %{buildroot}/var/www/html %{buildroot}/etc/nginx/sites-enabled
echo 'from packages alone' > %{buildroot}/var/www/html/index.html
echo 'server { listen 80; root /var/www/html; }' > %{buildroot}/etc/nginx/sites-enabled/site
%files
/etc/nginx/sites-enabled/site
%attr(0755,www-data,www-data) %dir /var/www/html
%attr(0644,www-data,www-data) /var/www/html/index.html
`
	dir := t.TempDir()
	s.check(os.WriteFile(filepath.Join(dir, "site.spec"), []byte(site), 0o644))
	if out, err := exec.CommandContext(s.ctx, "rpmbuild", "-bb", "--quiet", "--define", "_topdir "+dir, "--define", "_rpmdir "+dir, filepath.Join(dir, "site.spec")).CombinedOutput(); err != nil {
		t.Fatalf("rpmbuild: %v\n%s", err, out)
	}
	s.on(s.source, "mkdir /root/rpms")
	for _, pattern := range []string{rpms + "/*.rpm", dir + "/noarch/*.rpm"} {
		for _, f := range must(filepath.Glob(pattern))(t) {
			s.check(s.source.Install(f, "root/rpms/"+filepath.Base(f)))
		}
	}
	const capture = "srvd capture web $(for f in /root/rpms/*.rpm; do echo --rpm $f; done) --unit nginx --probe http://127.0.0.1/"
	t.Log(s.on(s.source, capture))
	if again := s.on(s.source, capture); !strings.Contains(again, "unpacked already") {
		t.Errorf("the same packages again:\n%s", again)
	}
	s.fails(s.source, 3, "none.rpm", "srvd capture x --rpm /root/none.rpm --unit nginx")
	s.fails(s.source, 1, "--root names another", "srvd capture x --rpm /root/rpms/site-1-1.noarch.rpm --root /mnt --unit nginx")
	s.serve()
	s.paired()
	s.on(s.standby, "srvfs run --host-root '' "+s.source.Addr+"/web; srvfs prefetch web")
	s.endProcess(s.source, "srvd", "KILL")
	s.check(s.page("http://"+s.standby.Addr+"/", "from packages alone\n"))
	s.on(s.standby, "srvfs remove web")
	s.noResidue(s.standby)
	s.on(s.source, "srvd remove web")
	if left := strings.TrimSpace(s.on(s.source, "ls /var/lib/srvd/roots")); left != "" {
		t.Errorf("unpacked roots are left: %s", left)
	}
}
