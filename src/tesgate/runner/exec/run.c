/* One step, from its first look at the control directory to its result. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "exec.h"

/* A stream of the command: where it writes, and our own way to read that back (-1: not a regular, readable file). */
struct stream {
    int write, read;
};

struct step {
    const struct options *options;
    struct result result;
    struct reserved files[3]; /* result, stdout.tail, stderr.tail */
    struct stream out, err;
    int dir, input;
    int64_t copied;
};

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Goes on while the machine sleeps, where the kernel has such a clock. */
int64_t clock_ms(void)
{
    struct timespec now;

    if (clock_gettime(CLOCK_BOOTTIME, &now))
        clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

/* Signals are taken by sigtimedwait() alone; all others stay blocked, so that none of them ends us. */
static void take_signals(void)
{
    static const unsigned long DEFAULT[8]; /* a kernel's sigaction of zeros: SIG_DFL, no flags, empty mask */
    sigset_t all;

    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    /* An ignored SIGCHLD reaps by itself, an ignored SIGPIPE would be the command's. Not by signal(): the C library keeps
     * some numbers for itself, and posix_spawn() hands those down ignored. */
    for (int number = 1; number <= 64; number++)
        if (number != SIGKILL && number != SIGSTOP)
            syscall(SYS_rt_sigaction, number, DEFAULT, NULL, (size_t)8);
}

static bool failed(struct result *result, const char *what)
{
    result->error = what;
    result->error_number = errno;
    return false;
}

static int enter_workdir(const char *path)
{
    char *copy = strdup(path), *slash = copy;
    int first = 0;

    while (slash && *slash) { /* parents first; what is there already says EEXIST */
        slash = strchr(slash + 1, '/');
        if (slash)
            *slash = '\0';
        if (mkdir(copy, 0777) && errno != EEXIST && !first)
            first = errno;
        if (slash)
            *slash = '/';
    }
    free(copy);
    if (!chdir(path))
        return 0;
    if (errno == ENOENT && first)
        errno = first; /* why it could not be made */
    return -1;
}

static bool same_file(int a, int b)
{
    struct stat first, second;

    return !fstat(a, &first) && !fstat(b, &second) && S_ISREG(first.st_mode) && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

/* Non-blocking only while opening: a FIFO without its other end must not hang us. */
static int open_plain(const char *path, int flags)
{
    int fd = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);

    if (fd >= 0)
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    return fd;
}

/* O_APPEND: a stream only grows, even when the command opens /dev/stderr anew or shares the file. */
static int open_output(int dir, const char *path, const char *name, struct stream *stream)
{
    if (path) {
        stream->write = open_plain(path, O_WRONLY | O_APPEND | O_CREAT | O_TRUNC);
    } else {
        unlinkat(dir, name, 0);
        stream->write = openat(dir, name, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
        if (stream->write >= 0 && fchmod(stream->write, 0644))
            return -1;
    }
    if (stream->write >= 0 && same_file(stream->write, stream->write)) {
        stream->read = path ? open_plain(path, O_RDONLY) : openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (stream->read >= 0 && !same_file(stream->write, stream->read)) {
            close(stream->read);
            stream->read = -1;
        }
    }
    return stream->write < 0 ? -1 : 0;
}

static int open_nothing(void)
{
    int ends[2], fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    if (fd >= 0 || pipe2(ends, O_CLOEXEC))
        return fd;
    close(ends[1]); /* an image without /dev/null: an empty pipe */
    return ends[0];
}

/* Whoever made the mounts followed a path. That it led to what was looked at before is certain only from inside, where
 * nothing can change any more. What we cannot reach proves nothing: it may be opened for the command later. */
static int is_bound(const char *spec)
{
    struct stat found;
    char *end;
    const unsigned long long device = strtoull(spec, &end, 10), inode = *end == ':' ? strtoull(end + 1, &end, 10) : 0;

    if (*end != ':' || !inode) {
        errno = EINVAL;
        return -1;
    }
    if (stat(end + 1, &found))
        return -1;
    errno = ESTALE;
    return found.st_dev == device && found.st_ino == inode ? 0 : -1;
}

static bool open_streams(struct step *step)
{
    const struct options *o = step->options;

    for (char **spec = o->bound; *spec; spec++)
        if (is_bound(*spec))
            return failed(&step->result, "bind");
    if (o->workdir && enter_workdir(o->workdir))
        return failed(&step->result, "workdir");
    step->input = o->stdin_path ? open_plain(o->stdin_path, O_RDONLY) : open_nothing();
    if (step->input < 0)
        return failed(&step->result, "stdin");
    if (open_output(step->dir, o->stdout_path, "stdout", &step->out))
        return failed(&step->result, "stdout");
    if (open_output(step->dir, o->stderr_path, "stderr", &step->err))
        return failed(&step->result, "stderr");
    if (same_file(step->out.write, step->err.write)) {
        close(step->err.write);
        step->err.write = step->out.write;
    }
    return true;
}

/* What a killed predecessor's command had written, for the tails. */
static void find_streams(struct step *step)
{
    const struct options *o = step->options;
    const int flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;

    step->out.read = o->stdout_path ? open(o->stdout_path, flags) : openat(step->dir, "stdout", flags | O_NOFOLLOW);
    step->err.read = o->stderr_path ? open(o->stderr_path, flags) : openat(step->dir, "stderr", flags | O_NOFOLLOW);
}

/* Copies what is new of stdout to our own, which must never make us wait longer than `patience_ms`. */
static void copy_stdout(struct step *step, int64_t most, int64_t patience_ms)
{
    const int64_t until = clock_ms() + patience_ms, end = step->options->copy_bytes;
    char buffer[4096]; /* PIPE_BUF: a pipe that is ready takes so much at once */

    while (step->out.read >= 0 && step->copied < end && most > 0) {
        struct pollfd ours = {.fd = STDOUT_FILENO, .events = POLLOUT};
        int64_t left = until - clock_ms(), size = end - step->copied;
        ssize_t got = pread(step->out.read, buffer, size < 4096 ? (size_t)size : 4096, step->copied);

        if (got <= 0 || poll(&ours, 1, left > 0 ? (int)left : 0) <= 0)
            return;
        got = write(STDOUT_FILENO, buffer, (size_t)got);
        if (got < 0)
            step->copied = end; /* nobody reads it */
        else
            step->copied += got;
        most -= got;
    }
}

/* Reaps orphans; true when `leader` itself has ended (it stays a zombie, so that its number stays its own). */
static bool has_ended(pid_t leader, struct result *result)
{
    for (;;) {
        struct rusage usage;
        siginfo_t info = {0};
        int status;

        memset(&info, 0, sizeof info);
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT)) {
            if (errno == EINTR)
                continue;
            return true;
        }
        if (!info.si_pid || info.si_pid == leader)
            return info.si_pid != 0;
        if (wait4(info.si_pid, &status, WNOHANG, &usage) > 0)
            count_usage(result, &usage);
    }
}

static void forward(pid_t leader, int number)
{
    if (kill(-leader, number))
        kill(leader, number); /* not the head of its group yet */
}

/* Until `leader` has ended: forwards signals, keeps the time limit and the grace, copies stdout. */
static void follow(struct step *step, pid_t leader)
{
    static const int WANTED[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
    const struct options *o = step->options;
    const int64_t never = INT64_MAX / 2;
    int64_t limit = o->timeout_ms ? clock_ms() + o->timeout_ms : never, kill_at = never;
    sigset_t wanted;

    sigemptyset(&wanted);
    for (size_t i = 0; i < sizeof WANTED / sizeof *WANTED; i++)
        sigaddset(&wanted, WANTED[i]);
    while (!has_ended(leader, &step->result)) {
        int64_t now = clock_ms(), wait = 5000; /* short, for sigtimedwait's own clock stops while the machine sleeps */
        struct timespec span;
        siginfo_t info = {0};
        int number;

        if (kill_at == never && now >= limit) {
            step->result.timed_out = true;
            forward(leader, SIGTERM);
            kill_at = now + o->grace_ms;
        }
        if (now >= kill_at) {
            kill_all(leader);
            kill_at = now + 1000; /* again: it may have forked meanwhile */
        }
        if (step->copied < o->copy_bytes) {
            copy_stdout(step, 1 << 20, 0);
            wait = 500;
        }
        if (kill_at - now < wait)
            wait = kill_at - now;
        else if (kill_at == never && limit - now < wait)
            wait = limit - now;
        span.tv_sec = wait / 1000;
        span.tv_nsec = wait % 1000 * 1000000;
        number = sigtimedwait(&wanted, &info, &span);
        if (number <= 0 || number == SIGCHLD)
            continue;
        forward(leader, number);
        if ((number == SIGTERM || number == SIGINT) && kill_at == never) {
            kill_at = clock_ms() + o->grace_ms;
            /* As pid 1: from outside the namespace (no sender that we could see). The task itself may not claim it. */
            if (getpid() != 1 || !info.si_pid)
                step->result.terminated = number;
        }
    }
}

/* Starts the command and sees it through to the last of its descendants. */
static void carry_out(struct step *step)
{
    struct result *result = &step->result;
    const int streams[3] = {step->input, step->out.write, step->err.write};
    const int counter = oom_open();
    const int64_t before = oom_count(counter);
    const pid_t self = getpid();
    int errors[2], number;
    pid_t leader = -1;

    if (!pipe2(errors, O_CLOEXEC))
        leader = fork();
    if (leader < 0) {
        failed(result, "fork");
        return;
    }
    if (!leader)
        become(step->options->argv, streams, errors[1], self);
    close(errors[1]);
    close(step->input);
    follow(step, leader);
    result->end_ns = now_ns();
    end_all(leader, result);
    result->oom_killed = before >= 0 && oom_count(counter) > before;
    fcntl(errors[0], F_SETFL, O_NONBLOCK);
    if (read(errors[0], &number, sizeof number) == (ssize_t)sizeof number) {
        result->error = "exec";
        result->error_number = number;
    }
    if (step->options->copy_bytes)
        copy_stdout(step, step->options->copy_bytes, 2000);
}

static int64_t size_of(int fd)
{
    struct stat status;

    return fd >= 0 && !fstat(fd, &status) && S_ISREG(status.st_mode) ? status.st_size : 0;
}

static int finish(struct step *step)
{
    struct result *result = &step->result;
    const int64_t tail = step->options->tail_bytes;

    if (!result->end_ns)
        result->end_ns = now_ns();
    result->stdout_bytes = size_of(step->out.write >= 0 ? step->out.write : step->out.read);
    result->stderr_bytes = size_of(step->err.write >= 0 ? step->err.write : step->err.read);
    control_make_writable(step->dir);
    if (publish_tail(step->dir, &step->files[1], step->out.read, tail) ||
        publish_tail(step->dir, &step->files[2], step->err.read, tail))
        complain("cannot write", "the tails"); /* the result matters more */
    if (publish_result(step->dir, &step->files[0], result)) {
        complain("cannot write", "the result");
        return EXIT_CONTROL;
    }
    control_release(step->dir);
    if (result->killed)
        return 0;
    if (result->signal >= 0)
        return 128 + result->signal;
    return result->exit_code >= 0 ? result->exit_code : EXIT_SETUP;
}

/* Takes the room for all that is written at the end. */
static int take_room(struct step *step)
{
    const off_t tail = (off_t)step->options->tail_bytes;
    int saved;

    if (!reserve(step->dir, &step->files[0], "result", RESULT_BYTES) &&
        !reserve(step->dir, &step->files[1], "stdout.tail", tail) &&
        !reserve(step->dir, &step->files[2], "stderr.tail", tail))
        return 0;
    saved = errno;
    for (int i = 0; i < 3; i++)
        unreserve(step->dir, &step->files[i]);
    errno = saved;
    return -1;
}

int run(const struct options *options)
{
    struct step step = {
        .options = options,
        .result = {.exit_code = -1, .signal = -1},
        .files = {{.fd = -1}, {.fd = -1}, {.fd = -1}},
        .out = {-1, -1},
        .err = {-1, -1},
        .input = -1,
    };
    int64_t began_ns = 0;
    enum marker marker;
    int lock;

    take_signals();
    prctl(PR_SET_DUMPABLE, 0); /* no ptrace, no /proc/PID/{fd,mem,root} for a command of our own user */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    step.dir = control_open(options->control);
    if (step.dir < 0) {
        complain("cannot open the control directory", options->control);
        return EXIT_CONTROL;
    }
    control_make_writable(step.dir);
    if (result_exists(step.dir))
        return 0;
    marker = marker_lock(step.dir, &lock, &began_ns);
    if (marker == MARKER_RUNNING)
        return EXIT_RUNNING;
    if (marker == MARKER_FAILED) {
        complain("cannot lock", "the start marker");
        return EXIT_CONTROL;
    }
    if (result_exists(step.dir)) /* it ended between the first look and the lock */
        return 0;
    if (take_room(&step)) {
        complain("no room for", "the result");
        return EXIT_CONTROL;
    }
    step.result.start_ns = now_ns();
    if (marker == MARKER_LEFT) {
        step.result.killed = true;
        if (began_ns > 0)
            step.result.start_ns = began_ns;
        find_streams(&step);
        return finish(&step);
    }
    if (marker_write(lock, step.result.start_ns)) {
        complain("cannot write", "the start marker");
        for (int i = 0; i < 3; i++)
            unreserve(step.dir, &step.files[i]);
        return EXIT_CONTROL;
    }
    if (open_streams(&step))
        carry_out(&step);
    return finish(&step);
}
