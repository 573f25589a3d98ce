// Package elf finds what an executable needs in order to be loaded: the
// interpreter of an ELF program and its shared libraries, and the interpreters
// of a script. It reads files only. (ldd is no help here: it may execute its
// argument, and answers for this host and not for another root.)
//
// # What the dynamic linker does, and so do we
//
// Libraries are loaded breadth first; one that is already loaded, by name or
// by DT_SONAME, is not searched for again. glibc looks for a name without a
// slash in: DT_RPATH of the file that needs it, of the file that needed that
// one, and so on up to the program (a file that has DT_RUNPATH asks for none of
// this); LD_LIBRARY_PATH; DT_RUNPATH of the file; /etc/ld.so.cache; the default
// folders. musl looks in LD_LIBRARY_PATH, the run paths up the chain, and the
// folders of /etc/ld-musl-ARCH.path. A file of another class or machine is
// passed over. $ORIGIN, $LIB and $PLATFORM are replaced.
//
// # Processors
//
// Folders glibc-hwcaps/NAME hold variants of a library for better processors.
// The one that this machine's processor would get is found in its place; the
// others, and the plain one, are returned too, marked Variant: the standby's
// processor may be another.
//
// # Limits
//
// Libraries that a program opens by itself while it runs (dlopen) are not
// written in it: only a trace shows them. They may be asked for in turn like
// programs. Of a file that is hostile or damaged no more is believed than its
// size allows; it gives ErrNotELF.
package elf
