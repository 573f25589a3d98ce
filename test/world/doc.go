// Package world builds what the end-to-end tests and the demo need: hosts with
// a root folder of their own from real Debian packages, in mount, pid and
// network namespaces of their own, on a bridge of their own. A host is entered
// as a person would by ssh: programs run in it and see only it. The wire between a
// host and the bridge can have a length and a rate (see Wire).
//
// A world leaves nothing behind. Its namespaces, and with them every mount and
// process in them, vanish when the process that made it ends, however it ends
// (see Private); Close also removes its disk, and reports mounts that are left.
package world
