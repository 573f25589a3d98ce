package capture

import "slices"

// A rule brings in what no trace and no package database tells.
type rule struct {
	// reason completes the sentence "it is in because of ..."; `srvd why`
	// quotes it.
	reason string
	// class is ClassRule if it is zero.
	class Class
	// when, if not empty, makes the rule count only if a path that is already in
	// matches.
	when []Pattern
	// take are patterns of paths that go in, a folder with all that is below.
	take []Pattern
	// whole are patterns of folders: if the service used something in one, all
	// of it goes in.
	whole []Pattern
}

func (r *rule) kind() Class {
	if r.class == 0 {
		return ClassRule
	}
	return r.class
}

// rules is read once, in this order, so a rule can count on what those before
// it have taken.
var rules = []rule{
	{
		reason: "names of users, groups, hosts and services",
		take: mustPatterns("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf",
			"/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols", "/etc/networks", "/etc/subuid", "/etc/subgid"),
	},
	{
		reason: "time zone",
		take:   mustPatterns("/etc/localtime", "/etc/timezone", "/etc/adjtime"),
	},
	{
		reason: "search path of the dynamic linker",
		take:   mustPatterns("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/ld-musl-*.path"),
	},
	{
		reason: "locale that every program falls back to",
		take:   mustPatterns("/usr/lib/locale/locale-archive", "/usr/lib/locale/C.utf8", "/usr/lib/locale/C.UTF-8", "/etc/locale.conf", "/etc/default/locale", "/etc/locale.alias"),
	},
	{
		reason: "conversion between character sets",
		take:   mustPatterns("/usr/lib/gconv", "/usr/lib64/gconv", "/usr/lib/*/gconv"),
	},
	{
		reason: "certificates and settings of TLS libraries",
		take: mustPatterns("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ssl/cert.pem", "/usr/lib/ssl", "/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf",
			"/etc/pki/ca-trust/extracted", "/etc/crypto-policies/back-ends", "/etc/gnutls"),
	},
	{
		reason: "commands that the administrator chose among alternatives",
		take:   mustPatterns("/etc/alternatives"),
	},
	{
		reason: "modules of a program that authenticates through PAM",
		when:   mustPatterns("/usr/lib/**/libpam.so*", "/usr/lib64/**/libpam.so*", "/etc/pam.d/**", "/etc/pam.conf"),
		take:   mustPatterns("/etc/pam.d", "/etc/pam.conf", "/etc/security", "/etc/login.defs", "/etc/environment", "/usr/lib/security", "/usr/lib64/security", "/usr/lib/*/security"),
	},
	{
		reason: "modules of a program that authenticates through SASL",
		when:   mustPatterns("/usr/lib/**/libsasl2.so*", "/usr/lib64/**/libsasl2.so*"),
		take:   mustPatterns("/usr/lib/sasl2", "/usr/lib64/sasl2", "/usr/lib/*/sasl2", "/etc/sasl2"),
	},
	{
		reason: "who may connect to a program with TCP wrappers",
		when:   mustPatterns("/usr/lib/**/libwrap.so*", "/usr/lib64/**/libwrap.so*"),
		take:   mustPatterns("/etc/hosts.allow", "/etc/hosts.deny"),
	},
	{
		reason: "realms of a program that authenticates through Kerberos",
		when:   mustPatterns("/usr/lib/**/libkrb5.so*", "/usr/lib64/**/libkrb5.so*"),
		take:   mustPatterns("/etc/krb5.conf", "/etc/krb5.conf.d", "/etc/gss"),
	},
	{
		reason: "servers of a program that asks LDAP",
		when:   mustPatterns("/usr/lib/**/libldap*.so*", "/usr/lib64/**/libldap*.so*"),
		take:   mustPatterns("/etc/ldap/ldap.conf", "/etc/openldap/ldap.conf"),
	},
	{
		reason: "modules of OpenSSL",
		when:   mustPatterns("/usr/lib/**/libcrypto.so*", "/usr/lib64/**/libcrypto.so*"),
		take:   mustPatterns("/usr/lib/*/ossl-modules", "/usr/lib64/ossl-modules", "/usr/lib/*/engines-*", "/usr/lib64/engines-*"),
	},
	{
		reason: "language run-time of which the service used a part",
		whole: mustPatterns("/usr/lib/python3*", "/usr/lib64/python3*", "/usr/lib/python3/dist-packages", "/usr/local/lib/python3*",
			"/usr/share/perl", "/usr/share/perl5", "/usr/lib/*/perl", "/usr/lib/*/perl5", "/usr/lib/*/perl-base", "/usr/local/share/perl", "/usr/local/lib/*/perl", "/usr/lib64/perl5", "/usr/share/perl5",
			"/usr/lib/ruby", "/usr/share/ruby", "/usr/share/rubygems-integration", "/var/lib/gems", "/usr/lib/*/ruby",
			"/usr/lib/php", "/usr/share/php", "/usr/lib64/php",
			"/usr/lib/node_modules", "/usr/share/nodejs", "/usr/local/lib/node_modules", "/usr/lib/nodejs",
			"/usr/lib/jvm/*", "/usr/share/java",
			"/usr/share/lua", "/usr/lib/*/lua", "/usr/share/tcltk", "/usr/lib/go-*", "/usr/lib/ocaml"),
	},
	{
		reason: "data folder of the service",
		class:  ClassData,
		whole:  mustPatterns("/var/www/*", "/srv/*", "/var/lib/*", "/var/spool/*", "/var/mail", "/var/cache/bind", "/opt/*", "/home/*/*", "/data/*", "/usr/local/share/*", "/usr/local/etc/*", "/usr/local/lib/*"),
	},
	{
		reason: "configuration folder of the service",
		whole:  mustPatterns("/etc/*"),
	},
}

// shared are folders that match a pattern of a whole folder, and are nobody's
// own: of them, only what was used goes in.
var shared = mustPatterns(
	"/var/lib/apt", "/var/lib/dpkg", "/var/lib/rpm", "/var/lib/dnf", "/var/lib/yum", "/var/lib/systemd", "/var/lib/docker", "/var/lib/containerd", "/var/lib/containers",
	"/var/lib/ucf", "/var/lib/misc", "/var/lib/pam", "/var/lib/polkit-1", "/var/lib/private", "/var/lib/snapd", "/var/lib/lxc", "/var/lib/libvirt", "/var/lib/machines", "/var/lib/update-*",
	"/var/lib/srvd", "/var/lib/srvfs", "/var/spool/cron", "/var/spool/anacron", "/var/spool/rsyslog", "/var/spool/mail",
	"/etc/alternatives", "/etc/apt", "/etc/bash_completion.d", "/etc/ca-certificates", "/etc/cron.*", "/etc/default", "/etc/dpkg", "/etc/init", "/etc/init.d", "/etc/kernel", "/etc/ld.so.conf.d",
	"/etc/logcheck", "/etc/logrotate.d", "/etc/modprobe.d", "/etc/modules-load.d", "/etc/network", "/etc/opt", "/etc/pam.d", "/etc/pki", "/etc/profile.d", "/etc/rc?.d", "/etc/rc.d",
	"/etc/rsyslog.d", "/etc/security", "/etc/selinux", "/etc/skel", "/etc/ssh", "/etc/ssl", "/etc/sudoers.d", "/etc/sysctl.d", "/etc/sysconfig", "/etc/systemd", "/etc/terminfo", "/etc/tmpfiles.d",
	"/etc/udev", "/etc/ufw", "/etc/update-motd.d", "/etc/X11", "/etc/xdg",
)

// unwanted stays out although a package, a rule or a folder would bring it: it
// goes in only when the service used it or the administrator names it.
var unwanted = mustPatterns(
	"/usr/share/doc", "/usr/share/doc-base", "/usr/share/man", "/usr/share/info", "/usr/share/lintian", "/usr/share/bug", "/usr/share/menu", "/usr/share/locale", "/usr/share/linda",
	"/usr/share/pixmaps", "/usr/share/icons", "/usr/share/applications", "/usr/share/bash-completion", "/usr/share/zsh", "/usr/share/fish",
	"/etc/alternatives/*.gz", "/usr/share/zoneinfo/posix", "/usr/share/zoneinfo/right", "/usr/include", "/boot", "/usr/lib/modules", "/usr/lib/firmware",
	"/var/lib/apt", "/var/lib/dpkg", "/var/lib/rpm", "/var/lib/ucf", "/var/cache/apt", "/var/cache/debconf", "/var/cache/man", "/var/cache/ldconfig", "/var/cache/dnf", "/var/cache/yum",
	"/var/lib/srvd", "/var/lib/srvfs", "/var/lib/systemd", "/lost+found", "*.dpkg-old", "*.dpkg-dist", "*.dpkg-new", "*.dpkg-tmp", "*.ucf-old", "*.ucf-dist", "*.rpmsave", "*.rpmnew",
)

// secret goes in only when the service used it or the administrator names it,
// and is listed apart.
var secret = mustPatterns("/etc/shadow*", "/etc/gshadow*", "/etc/security/opasswd", "/etc/ssh/ssh_host_*_key", "/etc/ssl/private/**", "/etc/pki/tls/private/**", "/root/.ssh/**", "/home/*/.ssh/**", "/etc/krb5.keytab")

// key is content that is listed with the secrets wherever it is.
var key = mustPatterns("*.key", "*.keytab", "*_rsa", "*_ed25519", "*_ecdsa", "/etc/letsencrypt/archive/*/privkey*.pem")

// logs are folders of which only the folders go in, and the files that the service
// itself writes to. Their files change all the time, and nobody on the standby
// wants to read the source's. systemd's LogsDirectory= lies there too.
var logs = mustPatterns("/var/log")

// logNames are what logs are called elsewhere.
var logNames = mustPatterns("*.log", "*_log", "log", "logs")

// startsEmpty says why the content of a file that the service writes to stays on
// the source, so that it starts empty on the standby, with its owner, mode and
// attributes; or "".
//
// What is lost by a mistake here is data, so all must agree. Nothing has read the
// file: a service that reads a log when it starts needs it, and what could be read
// through a descriptor counts as read. And it is a log by where it is; or it has
// a log's name and each opening was for writing at its end. The latter alone is
// not enough: a mailbox is appended to as well. Or the service empties it itself, before
// it answers its probes, whatever is in it. What the administrator includes by
// its own name keeps its content.
func startsEmpty(p string, u *use, it *item) string {
	switch {
	case u.read || !u.write || slices.Contains(it.reasons, Reason{ClassUser, includeText + p}):
		return ""
	case matchAny(logs, p):
		return emptyText + "a log"
	case !u.within && matchAny(logNames, p):
		return emptyText + "a log by its name, only ever appended to"
	case u.empties:
		return emptyText + "the service empties it when it starts"
	}
	return ""
}

// emptyText begins the reasons for which a file starts empty.
const emptyText = "its content stays out: "

// includeText begins the reason of what the administrator includes.
const includeText = "--include "

// pseudo are folders that go in empty: the root has file systems of its own
// there.
var pseudo = []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp"}
