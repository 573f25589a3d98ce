// writer DIR FILES RATE makes files of 100 bytes, a thousand in each new folder of DIR, RATE
// in a second, or with 0 as fast as it can, and prints how many it made in a second. If it is
// late it makes up for that.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
	if (argc != 4 || chdir(argv[1])) {
		perror("writer");
		return 1;
	}
	int files = atoi(argv[2]);
	double rate = atof(argv[3]);
	char text[100], name[64];
	memset(text, 'x', sizeof text);
	double start = now();
	for (int i = 0; i < files; i++) {
		while (rate > 0 && now() < start + i / rate)
			usleep(200);
		snprintf(name, sizeof name, "new%d", i / 1000);
		if (i % 1000 == 0 && mkdir(name, 0755)) {
			perror(name);
			return 1;
		}
		snprintf(name, sizeof name, "new%d/file%d", i / 1000, i);
		memcpy(text, name, strlen(name)); // each has a content of its own
		int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0644);
		if (fd < 0 || write(fd, text, sizeof text) != sizeof text || close(fd)) {
			perror(name);
			return 1;
		}
	}
	printf("%f\n", files / (now() - start));
	return 0;
}
