package test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"srvfs/test/world"
)

// A mounted view moves with its source, while it is read, and through the loss of the
// connection; a view that a service runs on does not.
func TestViewFollows(t *testing.T) {
	s := newSite(t, world.StandbyRoot)
	s.on(s.source, "mkdir /var/www/html/queue && cd /var/www/html/queue && for i in $(seq 3000); do echo $i > message-$i; done")
	s.on(s.source, "srvd capture web -q --unit nginx --include /var/www --probe http://127.0.0.1/")
	_, _, err := s.source.Start(s.ctx, "srvd", "serve", "--follow")
	s.check(err)
	s.check(s.source.Await(s.ctx, "127.0.0.1:7077"))
	s.paired()
	s.on(s.standby, "mkdir /mnt/view /mnt/old && srvfs mount --follow --prefetch "+s.source.Addr+"/web /mnt/view")
	s.fails(s.standby, 2, "the newest snapshot, whichever that is", "srvfs mount --follow "+s.source.Addr+"/web@1 /mnt/old")
	s.fails(s.standby, 2, "for a view that follows", "srvfs mount --prefetch "+s.source.Addr+"/web /mnt/old")
	s.on(s.standby, "srvfs run "+s.source.Addr+"/web")

	// All that a reader can see of a folder.
	see := func(h *world.Host, root string) string {
		out, err := h.Shell(s.ctx, "cd "+root+"/var/www/html && find . -printf '%p %y %m %U %G %n %T@ %l\\n' | sort && find . -type f | sort | xargs -d '\\n' sha256sum")
		if err != nil {
			return err.Error() // it was changed while it was looked at
		}
		return out
	}
	follows := func(what string) {
		t.Helper()
		var want, got string
		deadline := time.Now().Add(time.Minute)
		s.await("the view shows "+what, func() bool {
			want, got = see(s.source, ""), see(s.standby, "/mnt/view")
			if want != got && time.Now().After(deadline) {
				t.Fatalf("the view does not show %s:\n%s", what, different(want, got))
			}
			return want == got
		})
	}
	follows("what was captured")
	// What is open stays what it was.
	_, _, err = s.standby.Start(s.ctx, "sh", "-c", "exec 3</mnt/view/var/www/html/index.html; echo open > /tmp/open; while ! test -e /tmp/moved; do sleep 0.05; done; cat <&3 > /tmp/read; echo done > /tmp/done")
	s.check(err)
	s.await("a file is open", func() bool { _, err := s.standby.Shell(s.ctx, "test -s /tmp/open"); return err == nil })
	for _, change := range []string{
		"echo changed > index.html",
		"echo more >> index.html; truncate -s 3 queue/message-7; chmod 600 queue/message-8; chown 33:33 queue/message-9",
		"echo over > x && mv x queue/message-10; rm queue/message-11; touch queue/message-3001",
		"mkdir -p deep/er && echo page > deep/er/page.html && ln -s er deep/link",
		"mv deep moved; ln index.html other.html",
		"rm other.html; echo again >> index.html",
		"rm -r moved; echo file > moved; rm queue/message-12; mkdir queue/message-12",
		"head -c 700000 /dev/urandom > large; cp -a large larger",
		"printf x | dd of=large bs=1 seek=300000 conv=notrunc 2>/dev/null; rm -r queue; mkdir queue; echo one > queue/message-1",
	} {
		s.on(s.source, "cd /var/www/html && "+change)
		follows(change)
	}
	s.on(s.standby, "echo > /tmp/moved")
	s.await("the open file is read", func() bool { _, err := s.standby.Shell(s.ctx, "test -s /tmp/done"); return err == nil })
	if got := s.on(s.standby, "cat /tmp/read"); got != page {
		t.Errorf("the file that was open holds %q", got)
	}
	if got := s.get(s.standby, "/"); got != page {
		t.Errorf("the service that runs serves %q: its view has moved", got)
	}
	s.await("all content is here", func() bool {
		st := s.status("/mnt/view")
		return st.Content.Detached && st.Following != nil && st.Following.Sequence == s.sequence("web")
	})
	if out := s.on(s.standby, "srvfs status"); !strings.Contains(out, "mounted, follows") {
		t.Errorf("status:\n%s", out)
	}
	if out := s.on(s.standby, "srvfs status /mnt/view"); !strings.Contains(out, "follows") || !strings.Contains(out, "is here; the source was heard") {
		t.Errorf("status:\n%s", out)
	}

	// The source is away, changes, and comes back.
	s.endProcess(s.source, "srvd", "KILL")
	s.await("the loss is noticed", func() bool {
		return strings.Contains(s.on(s.standby, "srvfs status /mnt/view"), "reason")
	})
	s.on(s.source, "cd /var/www/html && echo meanwhile > index.html && rm moved")
	if out := s.on(s.standby, "cat /mnt/view/var/www/html/moved"); out != "file\n" {
		t.Errorf("without its source the view has %q", out)
	}
	_, _, err = s.source.Start(s.ctx, "srvd", "serve", "--follow")
	s.check(err)
	s.check(s.source.Await(s.ctx, "127.0.0.1:7077"))
	follows("what changed meanwhile")
	s.on(s.source, "echo last > /var/www/html/index.html")
	follows("what changed after that")
	s.on(s.standby, "srvfs umount /mnt/view && ln -s /usr/local/sbin/srvfs /sbin/mount.fuse.srvfs && mkdir -p /mnt/fstab && mount -t fuse.srvfs -o follow,prefetch "+s.source.Addr+"/web /mnt/fstab")
	if out := s.on(s.standby, "srvfs status /mnt/fstab; umount /mnt/fstab"); !strings.Contains(out, "follows") {
		t.Errorf("status:\n%s", out)
	}
	s.on(s.standby, "srvfs remove web; rmdir /mnt/fstab")
	s.noResidue(s.standby)
	if out := string(must(os.ReadFile(s.standby.Root + "/var/lib/srvfs/daemon.log"))(t)); strings.Contains(out, "level=ERROR") {
		t.Errorf("the daemon says:\n%s", out)
	}
}

// different returns the lines that only one of two texts has.
func different(want, got string) string {
	var b strings.Builder
	x, y := strings.Split(want, "\n"), strings.Split(got, "\n")
	for _, l := range x {
		if !slices.Contains(y, l) {
			b.WriteString("- " + l + "\n")
		}
	}
	for _, l := range y {
		if !slices.Contains(x, l) {
			b.WriteString("+ " + l + "\n")
		}
	}
	return b.String()
}
