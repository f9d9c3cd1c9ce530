/* Kills and reaps what the command leaves behind, wherever it hid: orphans become our children (PID 1 or subreaper). */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "exec.h"

/* Something that SIGKILL does not end by then hangs in the kernel and runs no code of its own any more. */
enum { PATIENCE_MS = 30000 };

void count_usage(struct result *result, const struct rusage *usage)
{
    result->user_us += usage->ru_utime.tv_sec * INT64_C(1000000) + usage->ru_utime.tv_usec;
    result->system_us += usage->ru_stime.tv_sec * INT64_C(1000000) + usage->ru_stime.tv_usec;
    if (usage->ru_maxrss * INT64_C(1024) > result->max_rss_bytes)
        result->max_rss_bytes = usage->ru_maxrss * INT64_C(1024);
}

/* A /proc of another PID namespace holds numbers that mean something else here. */
static bool proc_is_ours(void)
{
    char text[16];
    ssize_t length = readlink("/proc/self", text, sizeof text - 1);

    if (length <= 0)
        return false;
    text[length] = '\0';
    return atoi(text) == getpid();
}

/* Kills our own children and their groups. Only we reap them, so that neither number can belong to anybody else by
 * now; and no group holds a stranger, since every descendant lives in a session that a descendant made. What is deeper
 * becomes our child when its parent dies, and is met in the next round. */
static void kill_children(void)
{
    DIR *proc = opendir("/proc");
    struct dirent *entry;

    while (proc && (entry = readdir(proc))) {
        char path[300], text[512], *close_paren;
        int pid = atoi(entry->d_name), parent, group, fd;
        ssize_t length;

        if (!isdigit((unsigned char)*entry->d_name))
            continue;
        snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        if (fd >= 0)
            close(fd);
        if (length <= 0)
            continue;
        text[length] = '\0';
        close_paren = strrchr(text, ')'); /* the name before it may hold anything */
        if (!close_paren || sscanf(close_paren + 1, " %*c %d %d", &parent, &group) != 2 || parent != getpid())
            continue;
        if (group > 1 && group != getpgrp())
            kill(-group, SIGKILL);
        kill(pid, SIGKILL);
    }
    if (proc)
        closedir(proc);
}

/* `leader` is not reaped yet. */
void kill_all(pid_t leader)
{
    kill(-leader, SIGKILL);
    kill(leader, SIGKILL); /* it may not have its own group yet */
    if (getpid() == 1)
        kill(-1, SIGKILL);
    else if (proc_is_ours())
        kill_children();
}

/* Reaps `leader`, which has ended or cannot be waited for, then kills and reaps until nothing is left. */
void end_all(pid_t leader, struct result *result)
{
    const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
    const bool init = getpid() == 1;
    const int64_t until = clock_ms() + PATIENCE_MS;
    struct rusage usage;
    sigset_t ended;
    int status;
    pid_t pid;

    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    kill(-leader, SIGKILL); /* before it is reaped: now the number is surely its own */
    while ((pid = wait4(leader, &status, 0, &usage)) < 0 && errno == EINTR)
        continue;
    if (pid == leader) {
        count_usage(result, &usage);
        if (WIFSIGNALED(status))
            result->signal = WTERMSIG(status);
        else
            result->exit_code = WEXITSTATUS(status);
    }
    while (clock_ms() < until) {
        bool others = init && !kill(-1, SIGKILL); /* also those that entered our namespace from outside */

        while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
            count_usage(result, &usage);
        if (pid < 0 && errno == ECHILD && !others)
            return;
        if (!init && !proc_is_ours())
            return; /* no way to find them */
        if (!init)
            kill_children();
        sigtimedwait(&ended, NULL, &pause);
    }
}
