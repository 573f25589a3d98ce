package capture

import (
	"bufio"
	"bytes"
	"io/fs"
	"path"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"srvfs/capture/rootfs"
	"srvfs/manifest"
)

// A folder is one that exists before the service starts, where the root has a
// file system of its own.
type folder struct {
	path     string
	mode     uint32
	uid, gid uint32
}

func (f folder) manifest() manifest.Folder {
	return manifest.Folder{Path: f.path, Mode: f.mode, UID: f.uid, GID: f.gid}
}

func folderOf(p string, info fs.FileInfo) (folder, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return folder{}, false
	}
	return folder{path: p, mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid}, true
}

// tmpfilesDirs are the places of tmpfiles.d(5), the first of which wins when a
// file is in several.
var tmpfilesDirs = []string{"/etc/tmpfiles.d", "/run/tmpfiles.d", "/usr/lib/tmpfiles.d"}

// tmpfilesFolders returns the folders below /run, /tmp and /var/tmp that
// systemd-tmpfiles would make at boot. Lines with specifiers or patterns are
// left out.
func tmpfilesFolders(root *rootfs.Root) map[string]folder {
	files := map[string]string{} // name -> path
	for _, dir := range tmpfilesDirs {
		entries, err := root.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if _, ok := files[e.Name()]; !ok && strings.HasSuffix(e.Name(), ".conf") {
				files[e.Name()] = path.Join(dir, e.Name())
			}
		}
	}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	out := map[string]folder{}
	users, groups := accounts(root, "/etc/passwd"), accounts(root, "/etc/group")
	for _, n := range names {
		if b, err := root.ReadFile(files[n], 1<<20); err == nil {
			parseTmpfiles(b, users, groups, out)
		}
	}
	return out
}

// parseTmpfiles reads lines of the form "TYPE PATH MODE USER GROUP ...".
func parseTmpfiles(b []byte, users, groups map[string]uint32, out map[string]folder) {
	scan := bufio.NewScanner(bytes.NewReader(b))
	for scan.Scan() {
		f := strings.Fields(scan.Text())
		if len(f) < 2 || !strings.ContainsAny(f[0][:1], "dDvqQ") || strings.ContainsAny(f[1], "%*?[\"\\") {
			continue
		}
		p := path.Clean(f[1])
		if rest, ok := strings.CutPrefix(p, "/var/run/"); ok {
			p = "/run/" + rest
		}
		if _, there := out[p]; there || !manifest.ValidPath(p) || !isPseudo(p) || inside(p, "/proc") || inside(p, "/sys") || inside(p, "/dev") ||
			inside(p, "/run/systemd") || inside(p, "/run/user") || inside(p, "/run/log") {
			continue
		}
		one := folder{path: p, mode: 0o755}
		field := func(i int) string {
			if i < len(f) && f[i] != "-" {
				return strings.TrimLeft(f[i], ":~")
			}
			return ""
		}
		if s := field(2); s != "" {
			m, err := strconv.ParseUint(s, 8, 12)
			if err != nil {
				continue
			}
			one.mode = uint32(m)
		}
		var ok bool
		if one.uid, ok = number(field(3), users); !ok {
			continue
		}
		if one.gid, ok = number(field(4), groups); !ok {
			continue
		}
		out[p] = one
	}
}

// number returns the number of an account by name or number; "" is root.
func number(s string, accounts map[string]uint32) (uint32, bool) {
	if s == "" {
		return 0, true
	}
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), true
	}
	n, ok := accounts[s]
	return n, ok
}

// accounts reads names and numbers from passwd(5) or group(5), which have both
// in the same places.
func accounts(root *rootfs.Root, file string) map[string]uint32 {
	out := map[string]uint32{}
	b, err := root.ReadFile(file, 16<<20)
	if err != nil {
		return out
	}
	scan := bufio.NewScanner(bytes.NewReader(b))
	for scan.Scan() {
		f := strings.Split(scan.Text(), ":")
		if len(f) < 3 {
			continue
		}
		if n, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			if _, ok := out[f[0]]; !ok {
				out[f[0]] = uint32(n)
			}
		}
	}
	return out
}
