/* Faults of the disk and the clock, on request, for a process that preloads this library.
 *
 * The file named by FAULTS holds the faults that are on, as words:
 *   fsync    fsync and fdatasync fail with EIO
 *   readonly writes to files fail with EROFS, as once the kernel has given up on a file system
 *   full     writes that make a file longer fail with ENOSPC
 *   hang     fsync and fdatasync wait until the word is gone
 *   clock=N  the wall clock is N seconds ahead (or, if negative, behind)
 * When a fault strikes, the file FAULTS.struck comes into being.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

/* The faults that are on. Bare system calls, so as not to come back here. */
static const char *faults(char *text, size_t size) {
    const char *path = getenv("FAULTS");
    int saved = errno;
    long n = -1;
    if (path != NULL) {
        long fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
        if (fd >= 0) {
            n = syscall(SYS_read, fd, text, size - 1);
            syscall(SYS_close, fd);
        }
    }
    text[n > 0 ? n : 0] = 0;
    errno = saved;
    return text;
}

static void struck(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s.struck", getenv("FAULTS"));
    long fd = syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0)
        syscall(SYS_close, fd);
}

/* Whether a write that ends there fails; errno says how. */
static int write_fails(int fd, off_t end) {
    char text[256];
    struct stat about;
    int saved = errno;
    if (fstat(fd, &about) != 0 || !S_ISREG(about.st_mode)) {
        errno = saved;
        return 0;
    }
    errno = saved;
    faults(text, sizeof text);
    int error = strstr(text, "readonly") ? EROFS
              : strstr(text, "full") && end > about.st_size ? ENOSPC : 0;
    if (error == 0)
        return 0;
    struck();
    errno = error;
    return 1;
}

static int sync_fails(void) {
    char text[256];
    while (strstr(faults(text, sizeof text), "hang")) {
        struck();
        syscall(SYS_nanosleep, &(struct timespec){0, 2000000}, NULL);
    }
    if (strstr(text, "fsync") == NULL)
        return 0;
    struck();
    errno = EIO;
    return 1;
}

static off_t length(const struct iovec *from, int n) {
    off_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += (off_t)from[i].iov_len;
    return sum;
}

/* Where the next write without a position begins. */
static off_t here(int fd) {
    int saved = errno;
    off_t at = lseek(fd, 0, SEEK_CUR);
    errno = saved;
    return at < 0 ? 0 : at;
}

ssize_t write(int fd, const void *from, size_t n) {
    return write_fails(fd, here(fd) + (off_t)n) ? -1 : REAL(write)(fd, from, n);
}
ssize_t writev(int fd, const struct iovec *from, int n) {
    return write_fails(fd, here(fd) + length(from, n)) ? -1 : REAL(writev)(fd, from, n);
}
ssize_t pwrite(int fd, const void *from, size_t n, off_t at) {
    return write_fails(fd, at + (off_t)n) ? -1 : REAL(pwrite)(fd, from, n, at);
}
ssize_t pwrite64(int fd, const void *from, size_t n, off64_t at) {
    return write_fails(fd, at + (off_t)n) ? -1 : REAL(pwrite64)(fd, from, n, at);
}
ssize_t pwritev(int fd, const struct iovec *from, int n, off_t at) {
    return write_fails(fd, at + length(from, n)) ? -1 : REAL(pwritev)(fd, from, n, at);
}
ssize_t pwritev64(int fd, const struct iovec *from, int n, off64_t at) {
    return write_fails(fd, at + length(from, n)) ? -1 : REAL(pwritev64)(fd, from, n, at);
}
int fallocate(int fd, int mode, off_t at, off_t n) {
    return write_fails(fd, at + n) ? -1 : REAL(fallocate)(fd, mode, at, n);
}
int fallocate64(int fd, int mode, off64_t at, off64_t n) {
    return write_fails(fd, at + n) ? -1 : REAL(fallocate64)(fd, mode, at, n);
}
int fsync(int fd) {
    return sync_fails() ? -1 : REAL(fsync)(fd);
}
int fdatasync(int fd) {
    return sync_fails() ? -1 : REAL(fdatasync)(fd);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, which, now);
    if (result == 0 && which == CLOCK_REALTIME) {
        char text[256];
        const char *word = strstr(faults(text, sizeof text), "clock=");
        if (word != NULL)
            now->tv_sec += atol(word + strlen("clock="));
    }
    return result;
}
