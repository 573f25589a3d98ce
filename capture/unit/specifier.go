package unit

import (
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"srvfs/capture/rootfs"
)

// specifiers replace %x in values of one unit (systemd.unit(5)).
type specifiers struct {
	root *rootfs.Root
	name string // "postgresql@15-main.service"
	file string // of the unit
}

// expand replaces all specifiers in s. Unknown ones stay, as in systemd.
func (p *specifiers) expand(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		if v, ok := p.value(s[i]); ok {
			b.WriteString(v)
		} else {
			b.WriteByte('%')
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func (p *specifiers) value(c byte) (string, bool) {
	prefix, instance, _ := splitName(p.name)
	switch c {
	case '%':
		return "%", true
	case 'n':
		return p.name, true
	case 'N':
		base, _ := cutSuffix(p.name)
		return base, true
	case 'p':
		return prefix, true
	case 'P':
		return unescapeName(prefix), true
	case 'i':
		return instance, true
	case 'I':
		return unescapeName(instance), true
	case 'j':
		return lastPart(prefix), true
	case 'J':
		return unescapeName(lastPart(prefix)), true
	case 'f':
		if instance == "" {
			instance = prefix
		}
		return path.Join("/", unescapeName(instance)), true
	case 'u', 'g': // of the service manager
		return "root", true
	case 'U', 'G':
		return "0", true
	case 'h':
		return "/root", true
	case 's':
		return "/bin/sh", true
	case 't':
		return "/run", true
	case 'S':
		return "/var/lib", true
	case 'C':
		return "/var/cache", true
	case 'L':
		return "/var/log", true
	case 'E':
		return "/etc", true
	case 'D':
		return "/usr/share", true
	case 'T':
		return "/tmp", true
	case 'V':
		return "/var/tmp", true
	case 'y':
		return p.file, true
	case 'Y':
		return path.Dir(p.file), true
	case 'd':
		return "/run/credentials/" + p.name, true
	case 'H':
		return p.hostname(), true
	case 'l':
		h, _, _ := strings.Cut(p.hostname(), ".")
		return h, true
	case 'q':
		return p.variable("/etc/machine-info", "PRETTY_HOSTNAME", p.hostname()), true
	case 'm':
		return p.line("/etc/machine-id"), true
	case 'b':
		return strings.ReplaceAll(p.line("/proc/sys/kernel/random/boot_id"), "-", ""), true
	case 'v', 'a':
		var u unix.Utsname
		if unix.Uname(&u) != nil {
			return "", false
		}
		if c == 'v' {
			return unix.ByteSliceToString(u.Release[:]), true
		}
		return strings.ReplaceAll(unix.ByteSliceToString(u.Machine[:]), "_", "-"), true
	case 'o', 'w', 'B', 'M', 'A', 'W':
		key := map[byte]string{'o': "ID", 'w': "VERSION_ID", 'B': "BUILD_ID", 'M': "IMAGE_ID", 'A': "IMAGE_VERSION", 'W': "VARIANT_ID"}[c]
		return p.variable("/etc/os-release", key, ""), true
	}
	return "", false
}

func lastPart(prefix string) string { return prefix[strings.LastIndexByte(prefix, '-')+1:] }

func (p *specifiers) hostname() string {
	if h := p.line("/etc/hostname"); h != "" {
		return h
	}
	return "localhost"
}

// line returns the first line of a small file that is no comment, or "".
func (p *specifiers) line(file string) string {
	b, err := p.root.ReadFile(file, 4096)
	if err != nil {
		return ""
	}
	for l := range strings.Lines(string(b)) {
		if l = strings.TrimSpace(l); l != "" && l[0] != '#' && strings.IndexByte(l, 0) < 0 {
			return l
		}
	}
	return ""
}

func (p *specifiers) variable(file, key, otherwise string) string {
	b, err := p.root.ReadFile(file, maxEnvFile)
	if err != nil {
		return otherwise
	}
	for _, v := range parseEnvFile(string(b)) {
		if v.name == key {
			otherwise = v.value
		}
	}
	return otherwise
}

// unescapeName undoes systemd-escape: "-" is "/", \xHH a byte.
func unescapeName(s string) string {
	if !strings.ContainsAny(s, `-\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '-':
			b.WriteByte('/')
		case s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x':
			v, err := strconv.ParseUint(s[i+2:i+4], 16, 8)
			if err != nil || v == 0 {
				b.WriteByte(s[i])
				continue
			}
			b.WriteByte(byte(v))
			i += 3
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
