/*
 * slices does the same work in several roots in turn, in slices so short that
 * what else the machine does meets all of them alike.
 *
 *	slices WORK SLICES OPERATIONS ROOT PATH [ROOT PATH]...
 *
 * WORK is what is done with PATH in each ROOT, OPERATIONS times in each slice:
 *
 *	exec        executes it, and waits until it has ended
 *	sequential  reads its next 4 KiB, from the beginning again after its end
 *	random      reads 4 KiB at a random place
 *	mmap        touches its next 4 KiB in a mapping that each pass makes anew
 *
 * It prints a line for each slice: the nanoseconds per operation in each root. It
 * is linked statically: it opens nothing in the roots but what it measures.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <signal.h>

enum { page = 4096 };

static const char *work, *path;
static int fd;
static uint64_t pages, next, state = 88172645463325252ull;
static unsigned char buffer[page];
static volatile unsigned char seen;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void execute(void)
{
	char *argv[] = {(char *)path, NULL}, *env[] = {NULL};
	int status;
	pid_t pid = vfork();
	if (pid == 0) {
		execve(path, argv, env);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
		errx(1, "%s did not run and end with 0", path);
}

static void get(uint64_t at)
{
	if (pread(fd, buffer, page, at * page) != page)
		err(1, "read %s", path);
}

static void touch(long n)
{
	while (n > 0) {
		unsigned char *m = mmap(NULL, pages * page, PROT_READ, MAP_PRIVATE, fd, 0);
		if (m == MAP_FAILED)
			err(1, "map %s", path);
		for (uint64_t i = 0; i < pages && n > 0; i++, n--)
			seen = m[i * page];
		munmap(m, pages * page);
	}
}

static void slice(long n)
{
	if (!strcmp(work, "mmap")) {
		touch(n);
		return;
	}
	for (; n > 0; n--) {
		if (!strcmp(work, "exec")) {
			execute();
		} else if (!strcmp(work, "sequential")) {
			get(next++ % pages);
		} else {
			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
			get(state % pages);
		}
	}
}

/* work_in does slices in a root, one for each byte that it reads from orders. */
static void work_in(const char *root, long n, int orders, int reports)
{
	char order;
	struct stat st;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (chroot(root) || chdir("/"))
		err(1, "enter %s", root);
	if (strcmp(work, "exec")) {
		if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0 || fstat(fd, &st))
			err(1, "open %s", path);
		if ((pages = st.st_size / page) == 0)
			errx(1, "%s has no 4 KiB", path);
		for (uint64_t i = 0; i < pages; i++)
			get(i);
	} else {
		slice(10);
	}
	while (read(orders, &order, 1) == 1) {
		double start = now(), took;
		slice(n);
		took = (now() - start) / n;
		if (write(reports, &took, sizeof took) != sizeof took)
			err(1, "report");
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	int roots = (argc - 4) / 2;
	if (roots < 1 || argc != 4 + 2 * roots)
		errx(2, "want WORK SLICES OPERATIONS ROOT PATH [ROOT PATH]...");
	work = argv[1];
	long slices = atol(argv[2]), n = atol(argv[3]);
	int orders[roots], reports[roots];
	double took[roots];

	/* One processor for all: none has a better one than the others. */
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	if (sched_setaffinity(0, sizeof one, &one))
		err(1, "stay on one processor");
	/* Where it is permitted, nobody else gets that one in between. */
	struct sched_param first = {.sched_priority = 1};
	(void)sched_setscheduler(0, SCHED_FIFO, &first);
	for (int i = 0; i < roots; i++) {
		int o[2], r[2];
		if (pipe2(o, O_CLOEXEC) || pipe2(r, O_CLOEXEC))
			err(1, "pipe");
		pid_t pid = fork();
		if (pid < 0)
			err(1, "fork");
		if (pid == 0) {
			path = argv[5 + 2 * i];
			close(o[1]);
			work_in(argv[4 + 2 * i], n, o[0], r[1]);
		}
		close(o[0]);
		close(r[1]);
		orders[i] = o[1];
		reports[i] = r[0];
	}
	for (long s = -1; s < slices; s++) { /* the first one warms */
		for (int j = 0; j < roots; j++) {
			int i = s % 2 ? roots - 1 - j : j; /* to and fro: a drift cancels out */
			if (write(orders[i], "", 1) != 1 || read(reports[i], &took[i], sizeof took[i]) != sizeof took[i])
				errx(1, "the work in %s ended", argv[4 + 2 * i]);
		}
		for (int i = 0; s >= 0 && i < roots; i++)
			printf("%.1f%c", took[i], i + 1 < roots ? ' ' : '\n');
	}
	return 0;
}
