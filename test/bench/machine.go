package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// describe says on what the figures were made: the date and commit, the
// machine, its disk, and the peers' versions.
func describe(ctx context.Context, s *Site) string {
	commit := output(ctx, "git", "describe", "--always", "--dirty", "--abbrev=10")
	model, cores := processor()
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	parts := []string{
		fmt.Sprintf("%s, commit %s", time.Now().UTC().Format(time.DateOnly), commit),
		fmt.Sprintf("%d x %s, %s of memory", cores, model, memory()),
		"Linux " + strings.TrimSpace(string(release)),
		fmt.Sprintf("the hosts' disks are ext4 in a file on %s", output(ctx, "stat", "-f", "-c", "%T", s.dir)),
		"all hosts on this machine, in network namespaces",
		"peers of Debian 12: " + peerVersions(ctx, s),
	}
	return strings.Join(parts, "; ")
}

func output(ctx context.Context, argv ...string) string {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func processor() (model string, cores int) {
	info, _ := os.ReadFile("/proc/cpuinfo")
	model = "unknown processor"
	for line := range strings.Lines(string(info)) {
		if v, ok := strings.CutPrefix(line, "model name"); ok {
			model = strings.TrimSpace(strings.TrimLeft(strings.TrimSpace(v), ": \t"))
			cores++
		}
	}
	return model, cores
}

func memory() string {
	info, _ := os.ReadFile("/proc/meminfo")
	var kb int64
	if _, err := fmt.Sscanf(string(info), "MemTotal: %d kB", &kb); err != nil {
		return "unknown size"
	}
	return fmt.Sprintf("%.0f GiB", float64(kb)/(1<<20))
}

// peerVersions asks each peer on the standby for its version.
func peerVersions(ctx context.Context, s *Site) string {
	version := regexp.MustCompile(`\d+\.\d+(\.\d+)?(p\d+)?`)
	var all []string
	for _, c := range [][2]string{{"rsync", "rsync --version"}, {"OpenSSH", "ssh -V 2>&1"}, {"sshfs", "sshfs --version 2>&1"}, {"rclone", "rclone version"}, {"nginx", ""}} {
		var out string
		if c[0] == "nginx" {
			out, _ = s.Source.Shell(ctx, "nginx -v 2>&1")
		} else {
			out, _ = s.Standby.Shell(ctx, c[1])
		}
		all = append(all, c[0]+" "+version.FindString(out))
	}
	return strings.Join(all, ", ")
}
