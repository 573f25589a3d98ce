// Package unit finds out how a service is started, and says it in a form that
// needs no init system: a manifest.Unit, with every program, user and path
// resolved in the root that it was found in. It reads systemd units with all
// that belongs to them (drop-ins, templates, specifiers, environment files), SysV
// scripts, and plain commands. Nothing is executed.
//
// # What becomes of systemd's words
//
//	Type=simple, exec, idle   Simple
//	Type=dbus                 Simple; that the bus name appears is not awaited
//	Type=forking              Forking
//	Type=oneshot              Oneshot; also if there is no Type= and no ExecStart=
//	Type=notify, notify-reload  Notify
//	ExecStartPre=, ExecStart=, ExecStartPost=, ExecStop=   Pre, Start, Post, Stop
//	prefixes: -               Command.MayFail
//	          + !             Command.Privileged ("!!" is nothing on today's kernels)
//	          @ :             the extra argv[0] is dropped; variables are left as they are
//	User=, Group=, SupplementaryGroups=  User, in numbers of the root's /etc/passwd and /etc/group
//	Environment=, EnvironmentFile=, UnsetEnvironment=  Env, after PATH, the locale, HOME and so on
//	RuntimeDirectory= and its like  Folders, parents first, and RUNTIME_DIRECTORY= and its like
//	WorkingDirectory=, UMask=, PIDFile=, KillSignal=  Dir, Umask, PIDFile, Signal
//	TimeoutStartSec=, TimeoutStopSec=, TimeoutSec=  StartMax, StopMax; infinity is math.MaxInt64
//
// All that is left of the section [Service] is listed in Info.Ignored.
//
// # MAINPID
//
// $MAINPID is known only when the service runs. So the text $MAINPID or
// ${MAINPID} is left in arguments of Post and Stop, and whoever runs these
// commands puts the number of the main process there. A sole ExecStop= that
// does nothing but "kill -SIGNAL $MAINPID" becomes Signal.
//
// # DynamicUser=
//
// Such a user exists only while the service runs. If its state folder is there,
// the unit runs as the folder's owner, else as a number computed from its name in
// the range that systemd takes them from; Info.Ignored says so.
package unit
