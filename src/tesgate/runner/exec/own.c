/* Gives scratch files back to the agent's user. Trees were made by a task: any depth, any links, any modes. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "exec.h"

/* One directory on the way down. Only the deepest is open, so that a deep tree costs no descriptors. */
struct level {
    struct level *above;
    dev_t dev;
    ino_t ino;
    char **names; /* subdirectories still to visit */
    size_t count;
};

static int give(int dir, const char *name, const struct stat *status, uid_t uid, gid_t gid)
{
    if (status->st_uid == uid && status->st_gid == gid)
        return 0;
    if (!fchownat(dir, name, uid, gid, AT_SYMLINK_NOFOLLOW) || errno == ENOENT)
        return 0;
    complain("cannot change the owner of", name);
    return -1;
}

/* A directory that its owner may not read is opened to the owner first (without DAC_OVERRIDE root needs that too). */
static int open_directory(int dir, const char *name)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(dir, name, flags), path;
    struct stat status;
    char link[40];

    if (fd >= 0 || errno != EACCES)
        return fd;
    path = openat(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (path < 0)
        return -1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", path);
    if (!fstat(path, &status) && !chmod(link, (status.st_mode & 07777) | 0700))
        fd = openat(dir, name, flags);
    close(path);
    return fd;
}

/* Gives away what is in the open directory, subdirectories excepted: these are listed in a new level. */
static struct level *enter(int fd, struct level *above, uid_t uid, gid_t gid, int *failures)
{
    struct level *level = calloc(1, sizeof *level);
    DIR *listing = fdopendir(fcntl(fd, F_DUPFD_CLOEXEC, 3));
    struct dirent *entry;
    struct stat status;

    if (!level || !listing || fstat(fd, &status)) {
        complain("cannot list", "a directory");
        exit(1);
    }
    level->above = above;
    level->dev = status.st_dev;
    level->ino = status.st_ino;
    while ((entry = readdir(listing))) {
        const char *name = entry->d_name;

        if (!strcmp(name, ".") || !strcmp(name, "..") || fstatat(fd, name, &status, AT_SYMLINK_NOFOLLOW))
            continue;
        if (!S_ISDIR(status.st_mode)) {
            *failures += give(fd, name, &status, uid, gid) != 0;
            continue;
        }
        if (!(level->count & (level->count - 1))) /* grows at each power of two */
            level->names = realloc(level->names, (level->count ? 2 * level->count : 1) * sizeof *level->names);
        if (!level->names || !(level->names[level->count++] = strdup(name))) {
            complain("cannot list", name);
            exit(1);
        }
    }
    closedir(listing);
    return level;
}

/* Back to the directory above `fd`, if it is still the one that we came from. */
static int leave(int fd, const struct level *above)
{
    struct stat status;
    int up = openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    close(fd);
    if (up < 0 || fstat(up, &status) || status.st_dev != above->dev || status.st_ino != above->ino) {
        complain("cannot go back", "to the directory above");
        exit(1);
    }
    return up;
}

static int own_tree(const char *path, uid_t uid, gid_t gid)
{
    int failures = 0, fd;
    struct level *level;
    struct stat status;

    if (lstat(path, &status)) {
        if (errno == ENOENT)
            return 0;
        complain("cannot look at", path);
        return 1;
    }
    if (!S_ISDIR(status.st_mode))
        return give(AT_FDCWD, path, &status, uid, gid) != 0;
    fd = open_directory(AT_FDCWD, path);
    if (fd < 0) {
        complain("cannot open", path);
        return 1;
    }
    level = enter(fd, NULL, uid, gid, &failures);
    while (level) {
        if (level->count) {
            char *name = level->names[level->count - 1];
            int below = open_directory(fd, name);

            if (below >= 0) {
                close(fd);
                fd = below;
                level = enter(fd, level, uid, gid, &failures);
                continue;
            }
            if (errno != ENOENT) {
                complain("cannot open", name);
                failures++;
            }
            level->count--;
            free(name);
        } else {
            struct level *above = level->above;

            /* A directory is given away last: until then its present owner, who may be us, can read it. */
            if (above)
                fd = leave(fd, above);
            free(level->names);
            free(level);
            level = above;
            if (above) {
                char *name = above->names[--above->count];

                if (!fstatat(fd, name, &status, AT_SYMLINK_NOFOLLOW))
                    failures += give(fd, name, &status, uid, gid) != 0;
                free(name);
            }
        }
    }
    close(fd);
    if (!lstat(path, &status))
        failures += give(AT_FDCWD, path, &status, uid, gid) != 0;
    return failures;
}

int own(uid_t uid, gid_t gid, char **paths)
{
    int failures = 0;

    for (; *paths; paths++)
        failures += own_tree(*paths, uid, gid);
    return failures != 0;
}
