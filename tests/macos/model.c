/* Makes Linux behave towards the program as macOS would, where the two differ and the program has to care.
 *
 * It is preloaded by launch.c into the program alone: it takes itself out of the environment, so what the program
 * starts does not have it. What is modelled, with its source in XNU, adv_cmds, Rust's std:
 *
 * - poll(2) reports nothing for an entry that asks for no event, not even POLLHUP; a half-closed socket is POLLHUP.
 * - There is no pipe2, and no CLOEXEC for socketpair and accept: the flag is set by a second call, here 20 ms late.
 * - A pipe holds 16 KiB and can't be widened.
 * - There is no PR_SET_PDEATHSIG.
 * - There is no /proc.
 * - The program's own path is the one by which it was called, links and all.
 * - fsync(2) stands for F_FULLFSYNC, which a network volume does not support: ENOTSUP, where MODEL_NO_FULLFSYNC is set.
 * - A full backlog refuses a connection; MODEL_BUSY says how many are refused first.
 * - ps prints as on macOS (the script beside this file), unless another stands before it on PATH.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Found once: between fork and exec dlsym may not be called. */
#define NEXT(name) next_##name
#define DECLARE(name) static __typeof__(&name) next_##name
#define FIND(name) next_##name = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

DECLARE(accept4);
DECLARE(connect);
DECLARE(execvp);
DECLARE(fcntl);
DECLARE(fsync);
DECLARE(open);
DECLARE(opendir);
DECLARE(pipe2);
DECLARE(poll);
DECLARE(prctl);
DECLARE(readlink);
DECLARE(socketpair);

static char own_path[4096];
static char ps_path[4096];
static int has_no_fullfsync;
static int refusals;

static void take(const char *name, char *value, size_t size)
{
    const char *given = getenv(name);
    snprintf(value, size, "%s", given ? given : "");
    unsetenv(name);
}

__attribute__((constructor)) static void begin(void)
{
    FIND(accept4);
    FIND(connect);
    FIND(execvp);
    FIND(fcntl);
    FIND(fsync);
    FIND(open);
    FIND(opendir);
    FIND(pipe2);
    FIND(poll);
    FIND(prctl);
    FIND(readlink);
    FIND(socketpair);
    take("MODEL_OWN_PATH", own_path, sizeof own_path);
    take("MODEL_PS", ps_path, sizeof ps_path);
    refusals = getenv("MODEL_BUSY") ? atoi(getenv("MODEL_BUSY")) : 0;
    has_no_fullfsync = getenv("MODEL_NO_FULLFSYNC") != NULL;
    unsetenv("LD_PRELOAD");
}

static void set_cloexec_late(int fd)
{
    usleep(20000);
    int flags = NEXT(fcntl)(fd, F_GETFD);
    NEXT(fcntl)(fd, F_SETFD, flags | FD_CLOEXEC);
}

int pipe2(int ends[2], int flags)
{
    int result = NEXT(pipe2)(ends, flags & ~O_CLOEXEC);
    if (result == 0) {
        NEXT(fcntl)(ends[0], F_SETPIPE_SZ, 16384);
        if (flags & O_CLOEXEC) {
            set_cloexec_late(ends[0]);
            set_cloexec_late(ends[1]);
        }
    }
    return result;
}

int socketpair(int domain, int type, int protocol, int ends[2])
{
    int result = NEXT(socketpair)(domain, type & ~SOCK_CLOEXEC, protocol, ends);
    if (result == 0 && type & SOCK_CLOEXEC) {
        set_cloexec_late(ends[0]);
        set_cloexec_late(ends[1]);
    }
    return result;
}

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    int accepted = NEXT(accept4)(fd, address, size, flags & ~SOCK_CLOEXEC);
    if (accepted >= 0 && flags & SOCK_CLOEXEC)
        set_cloexec_late(accepted);
    return accepted;
}

int poll(struct pollfd *set, nfds_t count, int timeout)
{
    struct pollfd *asked = malloc((count + 1) * sizeof *asked);
    for (nfds_t at = 0; at < count; at++) {
        asked[at] = set[at];
        if (set[at].events == 0)
            asked[at].fd = -1;
        else
            asked[at].events |= POLLRDHUP;
    }
    int result = NEXT(poll)(asked, count, timeout);
    for (nfds_t at = 0; at < count && result >= 0; at++) {
        short ready = asked[at].revents;
        if (ready & POLLRDHUP)
            ready = (ready & ~POLLRDHUP) | POLLHUP;
        set[at].revents = ready;
    }
    free(asked);
    return result;
}

int prctl(int option, ...)
{
    va_list rest;
    va_start(rest, option);
    unsigned long a = va_arg(rest, unsigned long), b = va_arg(rest, unsigned long);
    unsigned long c = va_arg(rest, unsigned long), d = va_arg(rest, unsigned long);
    va_end(rest);
    return option == PR_SET_PDEATHSIG ? 0 : NEXT(prctl)(option, a, b, c, d);
}

int fcntl(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (command == F_SETPIPE_SZ) {
        errno = EINVAL;
        return -1;
    }
    return NEXT(fcntl)(fd, command, argument);
}

int fcntl64(int fd, int command, ...) __attribute__((alias("fcntl")));

static int is_in_proc(const char *path)
{
    if (path != NULL && strncmp(path, "/proc", 5) == 0 && (path[5] == '/' || path[5] == 0)) {
        errno = ENOENT;
        return 1;
    }
    return 0;
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return is_in_proc(path) ? -1 : NEXT(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

DIR *opendir(const char *path)
{
    return is_in_proc(path) ? NULL : NEXT(opendir)(path);
}

ssize_t readlink(const char *path, char *target, size_t size)
{
    if (strcmp(path, "/proc/self/exe") == 0 && own_path[0] != 0) {
        size_t length = strlen(own_path) < size ? strlen(own_path) : size;
        memcpy(target, own_path, length);
        return length;
    }
    return is_in_proc(path) ? -1 : NEXT(readlink)(path, target, size);
}

int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    if (refusals > 0) {
        refusals--;
        errno = ECONNREFUSED;
        return -1;
    }
    return NEXT(connect)(fd, address, size);
}

int fsync(int fd)
{
    if (has_no_fullfsync) {
        errno = ENOTSUP;
        return -1;
    }
    return NEXT(fsync)(fd);
}

int execvp(const char *program, char *const words[])
{
    int is_system_ps = strcmp(program, "/bin/ps") == 0 || strcmp(program, "/usr/bin/ps") == 0;
    return NEXT(execvp)(is_system_ps && ps_path[0] != 0 ? ps_path : program, words);
}
