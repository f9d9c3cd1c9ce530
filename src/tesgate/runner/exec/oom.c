/* The kernel's count of out-of-memory kills in our cgroup, version 1 or 2, as seen from a container or from the host. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "exec.h"

int64_t oom_count(int fd)
{
    char text[1024];
    const char *found;
    ssize_t length = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);

    if (length <= 0)
        return -1;
    text[length] = '\0';
    for (found = text; found && strncmp(found, "oom_kill ", 9);) {
        found = strchr(found, '\n');
        found = found ? found + 1 : NULL;
    }
    return found ? strtoll(found + 9, NULL, 10) : -1;
}

static int counter(const char *mount, const char *group, const char *file)
{
    char path[4096];
    int fd;

    if (snprintf(path, sizeof path, "%s%s/%s", mount, group, file) >= (int)sizeof path)
        return -1;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && oom_count(fd) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* The descriptor stays open from before the fork, or is -1 where there is no such counter. */
int oom_open(void)
{
    FILE *groups = fopen("/proc/self/cgroup", "re");
    char line[4096];
    int found = -1;

    while (groups && found < 0 && fgets(line, sizeof line, groups)) {
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        const char *mount, *file;

        if (!group)
            continue;
        *group++ = '\0';
        group[strcspn(group, "\n")] = '\0';
        if (!strcmp(controllers + 1, "memory")) {
            mount = "/sys/fs/cgroup/memory";
            file = "memory.oom_control";
        } else if (!controllers[1]) {
            mount = "/sys/fs/cgroup";
            file = "memory.events";
        } else
            continue;
        if (!strstr(group, ".."))
            found = counter(mount, group, file);
        if (found < 0) /* without a cgroup namespace the group is the host's, but the mount is the container's own */
            found = counter(mount, "", file);
    }
    if (groups)
        fclose(groups);
    return found;
}
