// Package service builds the root of a service, starts the service in it,
// watches it and stops it, and leaves nothing behind.
//
// # The root
//
// A root is one overlay mount: a private writable folder (the upper) over the
// snapshot's tree. Where the kernel has data-only layers, the tree is names
// only, and two layers below it hold content by digest: the gate, which is
// asked for a file's content at its first open, and the store's blobs, from
// which the kernel then reads (see [Layers]). On top lie /proc, a minimal
// /dev, an empty /run, /tmp and /dev/shm. /sys is empty: a server that needs
// it is rare, and a host's /sys tells a guest too much. /etc/hosts and
// /etc/resolv.conf are the snapshot's, so a service that asks a resolver asks
// the source's; where the standby lies in another network, the service's own
// configuration has to say so.
//
// All of it is mounted inside the sandbox's own mount namespace. Nothing shows
// in the host's mount table, and nothing is left of it when the sandbox ends,
// in whatever way it ends.
//
// # Who touches the view
//
// The process that serves the FUSE view must never wait for the view while it
// forks, and must not hold files of it open. So this package never walks the
// root: mounts, folders and commands are made by the sandbox's processes. What
// the daemon itself has to see lies in plain folders beside the root: /run is
// a folder of the service's directory (run/) mounted into the root, and a pid
// file elsewhere is read from the upper, where the daemon that wrote it has
// put it.
//
// # Starting
//
// Units start in the snapshot's order. For each: its folders, its Pre commands,
// its Start by kind, its Post commands. A command's user, groups, environment,
// umask and working directory are exactly the unit's (USER and LOGNAME are added
// as systemd does, and MAINPID and NOTIFY_SOCKET where they have a meaning); its
// output goes to the service's log file. The host name is the source's. When all units have started, the snapshot's probes must
// answer. If anything fails, all of it is undone and the error says which unit,
// which command, how it ended and what the service wrote last.
//
// # What belongs to whom
//
// A service has one directory of its own on the host:
//
//	door         where the sandbox of a service that outlives its starter is taken over
//	lock         locked while the service starts, runs, stops or is removed
//	state.json   what was done and when; written before it is done
//	upper/       what the service changed, as overlayfs keeps it; stays after Stop
//	upper.new/   an upper that is being made
//	work/        overlayfs's own
//	root/        the mountpoint; empty when seen from the host
//	run/         the service's /run, new at each start
//	service.log  standard output and error of the service; service.log.1 is the
//	             one before, when the log had grown beyond 16 MiB at a start
//
// The upper is made in one piece, by rename, with the files that were prepared
// for it in their places ([Prepared]): a start that is killed leaves a whole one
// or none. An upper that is there is never removed but by [Remove], which takes the whole
// directory, whatever else lies in it. The log file is written by the service
// directly, and so is not bounded while the service runs: a server that logs
// much does so into files of its own.
//
// # What can fail
//
// A kernel without data-only layers ([CanLayer] tells), an upper on a file
// system that overlayfs refuses (another overlay, NFS), an upper that was
// written over another snapshot ([manifest.ErrStale]), a service that is
// already running ([ErrRunning]), a unit that does not start ([*StartError]).
//
// # Limits
//
// A unit that ends is not started again; [Instance.Done] tells. The network,
// its addresses and its ports are the caller's. Capabilities, resource limits
// and control groups of systemd units are not set.
package service
