/* Makes chosen calls to the system fail, for a process that preloads this library.
 *
 *   FAIL_UNDER  the folder: only calls about files in it count
 *   FAIL_CALL   which calls count: sync, write, open, rename, resize or remove
 *   FAIL_FROM   the number of the first one that fails, from 1
 *   FAIL_TO     the number of the last one that fails
 *   FAIL_WITH   the error's number; 0 makes a write shorter, by half
 *   FAIL_NOTES  a file: for each call that failed it gets a line, `CALL PATH`
 *
 * `open` is that of a file which is not there yet.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

static atomic_long counted;

static long number(const char *name) {
    const char *text = getenv(name);
    return text == NULL ? 0 : atol(text);
}

/* Bare system calls, so as not to come back here. */
static void note(const char *call, const char *path) {
    char line[PATH_MAX + 32];
    const char *notes = getenv("FAIL_NOTES");
    int n = snprintf(line, sizeof line, "%s %s\n", call, path);
    if (notes == NULL || n <= 0)
        return;
    long fd = syscall(SYS_openat, AT_FDCWD, notes, O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0) {
        syscall(SYS_write, fd, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
        syscall(SYS_close, fd);
    }
}

/* Whether this call is one that fails; `call` is what it is, `kind` what it is counted as. */
static int fails(const char *kind, const char *call, const char *path) {
    const char *under = getenv("FAIL_UNDER"), *wanted = getenv("FAIL_CALL");
    if (under == NULL || wanted == NULL || strcmp(kind, wanted) != 0 ||
        strncmp(path, under, strlen(under)) != 0)
        return 0;
    long now = atomic_fetch_add(&counted, 1) + 1;
    if (now < number("FAIL_FROM") || now > number("FAIL_TO"))
        return 0;
    note(call, path);
    return 1;
}

static int fd_fails(const char *kind, const char *call, int fd) {
    char link[64], path[PATH_MAX];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (n <= 0)
        return 0;
    path[n] = 0;
    return fails(kind, call, path);
}

static int refuse(void) {
    errno = (int)number("FAIL_WITH");
    return -1;
}

/* How much of `n` bytes a call that fails writes: nothing, or half where it is to be short. */
static ssize_t part(size_t n) {
    return number("FAIL_WITH") == 0 && n > 1 ? (ssize_t)(n / 2) : -1;
}

ssize_t write(int fd, const void *from, size_t n) {
    if (!fd_fails("write", "write", fd))
        return REAL(write)(fd, from, n);
    return part(n) > 0 ? REAL(write)(fd, from, (size_t)part(n)) : refuse();
}
ssize_t pwrite64(int fd, const void *from, size_t n, off64_t at) {
    if (!fd_fails("write", "pwrite", fd))
        return REAL(pwrite64)(fd, from, n, at);
    return part(n) > 0 ? REAL(pwrite64)(fd, from, (size_t)part(n), at) : refuse();
}
ssize_t pwrite(int fd, const void *from, size_t n, off_t at) {
    return pwrite64(fd, from, n, at);
}
ssize_t writev(int fd, const struct iovec *from, int n) {
    if (!fd_fails("write", "writev", fd))
        return REAL(writev)(fd, from, n);
    return n > 0 && part(from[0].iov_len) > 0
               ? REAL(write)(fd, from[0].iov_base, (size_t)part(from[0].iov_len))
               : refuse();
}
ssize_t pwritev64(int fd, const struct iovec *from, int n, off64_t at) {
    if (!fd_fails("write", "pwritev", fd))
        return REAL(pwritev64)(fd, from, n, at);
    return n > 0 && part(from[0].iov_len) > 0
               ? REAL(pwrite64)(fd, from[0].iov_base, (size_t)part(from[0].iov_len), at)
               : refuse();
}
ssize_t pwritev(int fd, const struct iovec *from, int n, off_t at) {
    return pwritev64(fd, from, n, at);
}

int fsync(int fd) {
    return fd_fails("sync", "fsync", fd) ? refuse() : REAL(fsync)(fd);
}
int fdatasync(int fd) {
    return fd_fails("sync", "fdatasync", fd) ? refuse() : REAL(fdatasync)(fd);
}

int ftruncate64(int fd, off64_t n) {
    return fd_fails("resize", "ftruncate", fd) ? refuse() : REAL(ftruncate64)(fd, n);
}
int ftruncate(int fd, off_t n) {
    return ftruncate64(fd, n);
}
int fallocate64(int fd, int mode, off64_t at, off64_t n) {
    return fd_fails("resize", "fallocate", fd) ? refuse() : REAL(fallocate64)(fd, mode, at, n);
}
int fallocate(int fd, int mode, off_t at, off_t n) {
    return fallocate64(fd, mode, at, n);
}

int rename(const char *from, const char *to) {
    return fails("rename", "rename", to) ? refuse() : REAL(rename)(from, to);
}
int unlink(const char *path) {
    return fails("remove", "unlink", path) ? refuse() : REAL(unlink)(path);
}

/* Whether an open that makes a new file fails. */
static int open_fails(const char *path, int flags) {
    struct stat about;
    int saved = errno;
    int is_new = (flags & O_CREAT) && stat(path, &about) != 0;
    errno = saved;
    return is_new && fails("open", "open", path);
}
int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open_fails(path, flags) ? refuse() : REAL(open64)(path, flags, mode);
}
int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open64(path, flags, mode);
}
int mkdir(const char *path, mode_t mode) {
    return fails("open", "mkdir", path) ? refuse() : REAL(mkdir)(path, mode);
}
