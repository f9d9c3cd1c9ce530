/* What the forked child does until it is the command. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "exec.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

static const char DEFAULT_PATH[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/* Ours are close-on-exec anyway; an engine may have left others open. */
static void close_from(unsigned first)
{
    DIR *listing;
    struct dirent *entry;

    if (!syscall(SYS_close_range, first, ~0U, 0))
        return;
    listing = opendir("/proc/self/fd");
    if (!listing) {
        for (unsigned fd = first; fd < 65536; fd++)
            close((int)fd);
        return;
    }
    while ((entry = readdir(listing))) {
        int fd = atoi(entry->d_name);

        if (fd >= (int)first && fd != dirfd(listing))
            close(fd);
    }
    closedir(listing);
}

/* As execvp, but alike on every libc: no shell for a file without a format, and a default path like the engines'. */
static void execute(char **argv)
{
    const char *name = argv[0], *path = getenv("PATH"), *end;
    size_t length = strlen(name);
    bool denied = false;
    char *full;

    if (strchr(name, '/')) {
        execv(name, argv);
        return;
    }
    if (!path || !*path)
        path = DEFAULT_PATH;
    full = malloc(strlen(path) + length + 3);
    for (; full && length; path = end + 1) {
        end = strchrnul(path, ':');
        size_t prefix = (size_t)(end - path);

        memcpy(full, path, prefix);
        if (!prefix)
            full[prefix++] = '.';
        full[prefix] = '/';
        memcpy(full + prefix + 1, name, length + 1);
        execv(full, argv);
        if (errno == EACCES)
            denied = true;
        else if (errno != ENOENT && errno != ENOTDIR && errno != ENAMETOOLONG && errno != ELOOP && errno != ESTALE)
            return;
        if (!*end)
            break;
    }
    if (full)
        errno = denied ? EACCES : ENOENT;
}

void become(char **argv, const int streams[3], int errors, pid_t parent)
{
    sigset_t none;
    int number;

    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* outside a PID namespace of ours too, our death is the command's */
    if (getppid() != parent)
        _exit(EXIT_SETUP);
    for (int fd = 0; fd < 3; fd++)
        if (dup2(streams[fd], fd) < 0)
            goto failed;
    if (errors != 3 && dup3(errors, 3, O_CLOEXEC) < 0)
        goto failed;
    errors = 3;
    close_from(4);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL); /* dispositions are the default since the start of run() */
    execute(argv);
failed:
    number = errno;
    if (write_all(errors, (const char *)&number, sizeof number))
        _exit(EXIT_SETUP);
    _exit(number == ENOENT ? 127 : 126);
}
