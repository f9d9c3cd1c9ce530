/* tesgate-exec: carries out one step beside the compute and writes how it ended.
 *
 *   main.c     options
 *   run.c      one step from its first look at the control directory to its result
 *   child.c    what the forked child does until it is the command
 *   control.c  files in the control directory, which the task itself may write: nothing there is trusted
 *   ending.c   kills and reaps what the command leaves behind
 *   oom.c      the kernel's count of out-of-memory kills
 *   own.c      gives scratch files back to the agent's user
 *
 * Exit codes: the command's own (128 + n for a signal, 126 and 127 as a shell), 0 where a result was there already or
 * was written for a predecessor that had been killed, and the ones below. The result file is what counts.
 */
#ifndef TESGATE_EXEC_H
#define TESGATE_EXEC_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

enum {
    EXIT_USAGE = 64,   /* wrong options; nothing begun */
    EXIT_CONTROL = 74, /* no control directory, no lock or no room for the result: nothing begun, or no result */
    EXIT_RUNNING = 75, /* another exec lives in this control directory; nothing touched */
    EXIT_SETUP = 125,  /* the result's `error` is bind, workdir, stdin, stdout, stderr or fork */
};

enum { RESULT_BYTES = 1024, TAIL_BYTES_DEFAULT = 10240, TAIL_BYTES_MAX = 16 << 20 };

struct options {
    const char *control, *stdin_path, *stdout_path, *stderr_path, *workdir; /* all but control may be NULL */
    int64_t tail_bytes, timeout_ms, grace_ms, copy_bytes;                   /* timeout 0: none */
    char **bound; /* DEV:INO:PATH of what must be mounted there, up to NULL */
    char **argv;
};

struct result {
    int exit_code, signal; /* -1: null */
    int terminated;        /* the TERM or INT that came from outside, 0: none */
    bool timed_out, oom_killed, killed;
    const char *error; /* NULL: null */
    int error_number;
    int64_t start_ns, end_ns; /* CLOCK_REALTIME */
    int64_t user_us, system_us, max_rss_bytes, stdout_bytes, stderr_bytes;
};

/* A file whose blocks are taken before the fork, so that a full disk cannot swallow it; made visible at the end. */
struct reserved {
    int fd;
    const char *name;
    char temporary[32];
};

enum marker { MARKER_NEW, MARKER_LEFT, MARKER_RUNNING, MARKER_FAILED };

/* control.c; unless said otherwise 0 is success, -1 a failure in errno */
int control_open(const char *path); /* and locks it: a task can replace any file in there, but not the directory */
void control_release(int dir);      /* the result is there, and nothing of the command lives any more */
void control_make_writable(int dir);
bool result_exists(int dir);
enum marker marker_lock(int dir, int *fd, int64_t *began_ns);
int marker_write(int fd, int64_t start_ns);
int reserve(int dir, struct reserved *file, const char *name, off_t bytes);
void unreserve(int dir, struct reserved *file);
int publish_tail(int dir, struct reserved *file, int source, int64_t tail_bytes);
int publish_result(int dir, struct reserved *file, const struct result *result);
int write_all(int fd, const char *text, size_t length);

/* child.c */
void become(char **argv, const int streams[3], int errors, pid_t parent) __attribute__((noreturn));

/* ending.c */
void count_usage(struct result *result, const struct rusage *usage);
void kill_all(pid_t leader);
void end_all(pid_t leader, struct result *result);

/* oom.c */
int oom_open(void);
int64_t oom_count(int fd);

/* run.c, own.c */
int run(const struct options *options);
int own(uid_t uid, gid_t gid, char **paths);

int64_t clock_ms(void);
void complain(const char *what, const char *name);

#endif
