package world

// A Service is a real one, as an administrator has set it up.
type Service struct {
	Name    string // also of the root of its source; see ServiceRoot
	Setup   string // shell lines that configure and start it on the source
	Capture string // flags of srvd capture
	Start   string // what starts it, and returns
	Address string // where it listens, inside
}

// The three services of the paper that this project grew from.
var (
	Web = Service{
		Name: "nginx",
		Setup: `openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=web.example -addext subjectAltName=DNS:web.example -keyout /etc/ssl/private/web.key -out /etc/ssl/certs/web.pem 2>/dev/null
printf 'server { listen 443 ssl; server_name web.example; ssl_certificate /etc/ssl/certs/web.pem; ssl_certificate_key /etc/ssl/private/web.key; root /var/www/html; }\n' > /etc/nginx/sites-enabled/tls
echo served > /var/www/html/index.html
nginx`,
		Capture: "--unit nginx --probe http://127.0.0.1/ --probe https://127.0.0.1/",
		Start:   "nginx",
		Address: "127.0.0.1:80",
	}
	DNS = Service{
		Name: "bind9",
		Setup: `printf 'zone "example.org" { type master; file "/etc/bind/db.example.org"; };\n' > /etc/bind/named.conf.local
printf '$TTL 60\n@ IN SOA ns admin 1 60 60 60 60\n@ IN NS ns\nns IN A 192.0.2.1\nwww IN A 192.0.2.80\n' > /etc/bind/db.example.org
mkdir -p /run/named; chown bind:bind /run/named
named -u bind`,
		Capture: "--unit named --probe dns://127.0.0.1/www.example.org?type=A --probe 'dns://127.0.0.1/www.example.org?type=A&tcp=1'",
		Start:   "mkdir -p /run/named && chown bind:bind /run/named && exec named -u bind",
		Address: "127.0.0.1:53",
	}
	Mail = Service{
		Name: "postfix",
		Setup: `postconf -e myhostname=mail.example.org mydestination=mail.example.org,localhost inet_interfaces=all inet_protocols=ipv4 home_mailbox= mail_spool_directory=/var/mail maillog_file=/var/log/postfix.log
useradd -m anna
newaliases
postfix start`,
		Capture: "--unit postfix --probe smtp://127.0.0.1/?to=anna@mail.example.org",
		Start:   "postfix start",
		Address: "127.0.0.1:25",
	}
)
