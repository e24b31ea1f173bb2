/* Kills the process, or fills its disk, at the n-th change of a folder: preloaded, so that every library's calls are seen.

   A change is a write, an fsync, a rename, a link, a removal, a truncation, or a new file or folder, at a path that begins
   with the watched folder's. Faults: "kill" (SIGKILL instead of the change), "half" (SIGKILL after half of a write) or
   "full" (from then on no write and no new file finds space); with any other, changes are counted. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *folder, *fault;
static long at;
static long *counter;

/* Called by the process that is to break, with memory that it shares with the one that looks on. */
void campaign_arm(const char *watched, const char *what, long number, long *shared) {
    fault = strdup(what);
    at = number;
    counter = shared;
    folder = strdup(watched);
}

static void die(void) { kill(0, SIGKILL); pause(); } /* with all processes of its group */

/* Counts a change; returns whether there is no space for it. */
static int change(int takes_space, int *half) {
    long number = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
    if (number < at) return 0;
    if (!strcmp(fault, "full")) return takes_space;
    if (number == at && !strcmp(fault, "kill")) die();
    if (number == at && !strcmp(fault, "half")) {
        if (!half) die();
        *half = 1;
    }
    return 0;
}

static int ours(const char *path) { return folder && path && !strncmp(path, folder, strlen(folder)); }

static int ours_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return path[0] == '/' && ours(path);
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define FULL return errno = ENOSPC, -1

#define WRITE(name, parameters, whole, part)                    \
    ssize_t name parameters {                                   \
        REAL(name);                                             \
        int half = 0;                                           \
        if (ours_fd(fd) && change(1, &half)) FULL;              \
        if (half) { part; die(); }                              \
        return whole;                                           \
    }
WRITE(write, (int fd, const void *data, size_t n), real(fd, data, n), real(fd, data, n / 2))
WRITE(pwrite, (int fd, const void *data, size_t n, off_t o), real(fd, data, n, o), real(fd, data, n / 2, o))
WRITE(pwrite64, (int fd, const void *data, size_t n, off64_t o), real(fd, data, n, o), real(fd, data, n / 2, o))
WRITE(writev, (int fd, const struct iovec *data, int n), real(fd, data, n), real(fd, data, n / 2))

#define PLAIN(name, parameters, whose, space, whole)            \
    int name parameters {                                       \
        REAL(name);                                             \
        if ((whose) && change(space, 0)) FULL;                  \
        return whole;                                           \
    }
PLAIN(fsync, (int fd), ours_fd(fd), 0, real(fd))
PLAIN(fdatasync, (int fd), ours_fd(fd), 0, real(fd))
PLAIN(ftruncate, (int fd, off_t n), ours_fd(fd), 0, real(fd, n))
PLAIN(ftruncate64, (int fd, off64_t n), ours_fd(fd), 0, real(fd, n))
PLAIN(rename, (const char *a, const char *b), ours(b), 0, real(a, b))
PLAIN(renameat, (int d, const char *a, int e, const char *b), ours(b) || ours_fd(e), 0, real(d, a, e, b))
PLAIN(renameat2, (int d, const char *a, int e, const char *b, unsigned f), ours(b) || ours_fd(e), 0, real(d, a, e, b, f))
PLAIN(link, (const char *a, const char *b), ours(b), 0, real(a, b))
PLAIN(linkat, (int d, const char *a, int e, const char *b, int f), ours(b), 0, real(d, a, e, b, f))
PLAIN(unlink, (const char *a), ours(a), 0, real(a))
PLAIN(unlinkat, (int d, const char *a, int f), ours(a) || ours_fd(d), 0, real(d, a, f))
PLAIN(rmdir, (const char *a), ours(a), 0, real(a))
PLAIN(mkdir, (const char *a, mode_t m), ours(a), 1, real(a, m))
PLAIN(mkdirat, (int d, const char *a, mode_t m), ours(a), 1, real(d, a, m))

#define SPACE(name)                                             \
    int name(const char *path, struct name *found) {            \
        REAL(name);                                             \
        int failed = real(path, found);                         \
        if (!failed && fault && !strcmp(fault, "full") && __atomic_load_n(counter, __ATOMIC_SEQ_CST) >= at) \
            found->f_bfree = found->f_bavail = 0;               \
        return failed;                                          \
    }
SPACE(statvfs) /* a disk that is full says so, too */
SPACE(statvfs64)

#define OPEN(name, first, condition, ...)                                            \
    int name(first const char *path, int flags, ...) {                               \
        int (*real)(first const char *, int, ...) = dlsym(RTLD_NEXT, #name);         \
        va_list rest;                                                                \
        va_start(rest, flags);                                                       \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;      \
        va_end(rest);                                                                \
        if (flags & (O_CREAT | O_TRUNC) && (condition) && change(flags & O_CREAT && access(path, F_OK), 0)) FULL; \
        return real(__VA_ARGS__, flags, mode);                                       \
    }
#define DIRECTORY int d,
OPEN(open, , ours(path), path)
OPEN(open64, , ours(path), path)
OPEN(openat, DIRECTORY, ours(path), d, path)
OPEN(openat64, DIRECTORY, ours(path), d, path)

FILE *fopen64(const char *path, const char *mode) {
    FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, "fopen64");
    if (mode[0] != 'r' && ours(path) && change(1, 0)) return errno = ENOSPC, (FILE *)0;
    return real(path, mode);
}
