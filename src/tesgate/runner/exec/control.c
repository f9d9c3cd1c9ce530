/* Files in the control directory. The task may write there, so names are never followed, and never believed twice. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "exec.h"

int control_open(const char *path)
{
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

    if (dir >= 0 && flock(dir, LOCK_EX | LOCK_NB) && errno != EWOULDBLOCK)
        complain("cannot lock", path); /* a file system without locks: the runner then takes every result at its word */
    return dir;
}

void control_release(int dir)
{
    flock(dir, LOCK_UN);
}

/* A task that owns the directory may have taken our own permission away. */
void control_make_writable(int dir)
{
    struct stat status;

    if (!fstat(dir, &status) && status.st_uid == geteuid() && (status.st_mode & 0700) != 0700 &&
        fchmod(dir, (status.st_mode & 07777) | 0700))
        complain("cannot make writable", "the control directory");
}

bool result_exists(int dir)
{
    struct stat status;

    return !fstatat(dir, "result", &status, AT_SYMLINK_NOFOLLOW) && S_ISREG(status.st_mode) && status.st_size > 0;
}

/* Says what the marker tells. Its content is written and synced just before the fork, hence: empty means that nothing
 * ever began, and anything that is not our own regular file was put there by a task that did begin. */
enum marker marker_lock(int dir, int *fd, int64_t *began_ns)
{
    const int flags = O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    struct stat status;
    char text[64];
    ssize_t length;

    *fd = openat(dir, "started", O_RDWR | O_CREAT | flags, 0644);
    if (*fd < 0 && errno == EACCES)
        *fd = openat(dir, "started", O_RDONLY | flags);
    if (*fd < 0)
        return errno == ELOOP || errno == EISDIR || errno == ENXIO ? MARKER_LEFT : MARKER_FAILED;
    if (fstat(*fd, &status))
        return MARKER_FAILED;
    if (!S_ISREG(status.st_mode))
        return MARKER_LEFT;
    if (flock(*fd, LOCK_EX | LOCK_NB))
        return errno == EWOULDBLOCK ? MARKER_RUNNING : MARKER_FAILED;
    length = pread(*fd, text, sizeof text - 1, 0);
    if (length < 0)
        return MARKER_FAILED;
    text[length] = '\0';
    if (length && sscanf(text, "%*d %" SCNd64, began_ns) != 1)
        *began_ns = 0;
    return length ? MARKER_LEFT : MARKER_NEW;
}

int marker_write(int fd, int64_t start_ns)
{
    char text[64];
    int length = snprintf(text, sizeof text, "%d %" PRId64 "\n", (int)getpid(), start_ns), saved;

    /* Synced: a container that its engine starts again after a power cut must find it. */
    if (!write_all(fd, text, (size_t)length) && !fchmod(fd, 0644) && (!fsync(fd) || errno == EINVAL))
        return 0;
    saved = errno;
    if (ftruncate(fd, 0))
        complain("cannot empty", "the start marker");
    errno = saved;
    return -1;
}

int write_all(int fd, const char *text, size_t length)
{
    while (length) {
        ssize_t written = write(fd, text, length);

        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return -1;
        text += written;
        length -= (size_t)written;
    }
    return 0;
}

static int create(int dir, struct reserved *file)
{
    for (int attempt = 0; attempt < 100; attempt++) {
        snprintf(file->temporary, sizeof file->temporary, ".%s.%d", file->name, attempt);
        unlinkat(dir, file->temporary, 0); /* a predecessor's; a planted directory stays, and the next name is tried */
        file->fd = openat(dir, file->temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
        if (file->fd >= 0)
            return fchmod(file->fd, 0644); /* whatever the umask: the runner may be another user */
        if (errno != EEXIST)
            return -1;
    }
    return -1;
}

int reserve(int dir, struct reserved *file, const char *name, off_t bytes)
{
    static const char ZEROS[4096];

    file->name = name;
    file->fd = -1;
    if (create(dir, file))
        return -1;
    if (!bytes || !fallocate(file->fd, 0, 0, bytes))
        return 0;
    if (errno == ENOSPC || errno == EDQUOT || errno == EIO)
        return -1;
    for (off_t done = 0; done < bytes; done += (off_t)sizeof ZEROS) /* a file system without fallocate */
        if (write_all(file->fd, ZEROS, sizeof ZEROS))
            return -1;
    return 0;
}

void unreserve(int dir, struct reserved *file)
{
    if (file->fd >= 0) {
        unlinkat(dir, file->temporary, 0);
        close(file->fd);
        file->fd = -1;
    }
}

/* Copies `length` bytes; gives up quietly where the source ends early. */
static int copy(int from, off_t offset, int to, off_t length)
{
    static char buffer[1 << 16];

    while (length > 0) {
        size_t some = length < (off_t)sizeof buffer ? (size_t)length : sizeof buffer;
        ssize_t got = pread(from, buffer, some, offset);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return (int)got;
        if (write_all(to, buffer, (size_t)got))
            return -1;
        offset += got;
        length -= got;
    }
    return 0;
}

/* The name may have been taken away or given to another file by the task: then the content gets a new one. */
static int ensure_named(int dir, struct reserved *file, off_t length)
{
    struct stat ours, named;
    int old = file->fd, status;

    if (fstat(old, &ours))
        return -1;
    if (!fstatat(dir, file->temporary, &named, AT_SYMLINK_NOFOLLOW) && named.st_dev == ours.st_dev &&
        named.st_ino == ours.st_ino && ours.st_nlink == 1)
        return 0;
    status = create(dir, file) || copy(old, 0, file->fd, length) ? -1 : 0;
    if (old != file->fd)
        close(old);
    return status;
}

/* Cuts the file to `length`, gives it its final name and closes it. */
static int publish(int dir, struct reserved *file, off_t length, bool sync)
{
    char aside[48];
    int status = -1;

    if (ftruncate(file->fd, length) || ensure_named(dir, file, length))
        return -1;
    if (sync && fsync(file->fd) && errno != EINVAL)
        complain("cannot sync", file->name); /* still better shown than not */
    for (int attempt = 0; attempt < 100; attempt++) {
        status = renameat(dir, file->temporary, dir, file->name);
        if (!status || (errno != EISDIR && errno != ENOTEMPTY && errno != EEXIST))
            break;
        snprintf(aside, sizeof aside, ".planted-%s.%d", file->name, attempt); /* a planted directory */
        if (renameat(dir, file->name, dir, aside) && errno != ENOTEMPTY && errno != EEXIST && errno != ENOTDIR)
            break;
    }
    close(file->fd);
    file->fd = -1;
    return status;
}

int publish_tail(int dir, struct reserved *file, int source, int64_t tail_bytes)
{
    struct stat status;
    off_t length = 0;

    if (lseek(file->fd, 0, SEEK_SET) < 0)
        return -1;
    if (source >= 0 && !fstat(source, &status) && S_ISREG(status.st_mode)) {
        length = status.st_size < tail_bytes ? status.st_size : tail_bytes;
        if (copy(source, status.st_size - length, file->fd, length))
            length = 0;
    }
    return publish(dir, file, length, false);
}

static const char *nullable(char *text, size_t size, int value)
{
    snprintf(text, size, "%d", value);
    return value < 0 ? "null" : text;
}

static const char *truth(bool value)
{
    return value ? "true" : "false";
}

int publish_result(int dir, struct reserved *file, const struct result *r)
{
    char text[RESULT_BYTES], code[16], sig[16], ended[16];
    const char *quote = r->error ? "\"" : "";
    int length = snprintf(
        text, sizeof text,
        "{\"wire\":1,\"exit_code\":%s,\"signal\":%s,\"terminated\":%s,\"timed_out\":%s,\"oom_killed\":%s,\"killed\":%s,"
        "\"error\":%s%s%s,\"errno\":%d,\"start_ns\":%" PRId64 ",\"end_ns\":%" PRId64 ",\"user_us\":%" PRId64
        ",\"system_us\":%" PRId64 ",\"max_rss_bytes\":%" PRId64 ",\"stdout_bytes\":%" PRId64
        ",\"stderr_bytes\":%" PRId64 "}\n",
        nullable(code, sizeof code, r->exit_code), nullable(sig, sizeof sig, r->signal),
        nullable(ended, sizeof ended, r->terminated ? r->terminated : -1), truth(r->timed_out),
        truth(r->oom_killed), truth(r->killed), quote, r->error ? r->error : "null", quote, r->error_number,
        r->start_ns, r->end_ns, r->user_us, r->system_us, r->max_rss_bytes, r->stdout_bytes, r->stderr_bytes);

    if (lseek(file->fd, 0, SEEK_SET) < 0 || write_all(file->fd, text, (size_t)length))
        return -1;
    return publish(dir, file, length, true);
}
