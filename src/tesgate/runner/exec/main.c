/* Options and subcommands. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "exec.h"

#ifndef VERSION
#define VERSION "unknown"
#endif
/* Of options and result; exec/__init__.py knows which one it needs. Higher with each change that the runner relies on. */
#define PROTOCOL "2"

static const char USAGE[] =
    "usage: tesgate-exec run --control DIR [--stdin P] [--stdout P] [--stderr P] [--workdir P] [--tail BYTES]\n"
    "                        [--timeout-ms N] [--grace-ms N] [--copy-stdout BYTES] [--bound DEV:INO:P]... -- ARGV...\n"
    "       tesgate-exec own UID GID PATH...\n"
    "       tesgate-exec version\n";

void complain(const char *what, const char *name)
{
    fprintf(stderr, "tesgate-exec: %s %s: %s\n", what, name, strerror(errno));
}

static int usage(const char *what)
{
    fprintf(stderr, "tesgate-exec: %s\n%s", what, USAGE);
    return EXIT_USAGE;
}

static bool number(const char *text, int64_t most, int64_t *value)
{
    char *end;

    errno = 0;
    *value = strtoll(text, &end, 10);
    return *text >= '0' && *text <= '9' && !*end && !errno && *value <= most;
}

/* Whoever started us may have closed 0, 1 or 2; a file of ours that landed there would be overwritten by dup2. */
static void occupy_standard_streams(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR);
        if (fd < 0)
            fd = open("/", O_RDONLY);
    } while (fd >= 0 && fd <= 2);
    if (fd > 2)
        close(fd);
}

static int run_command(int argc, char **argv)
{
    static const struct option LONG[] = {
        {"control", required_argument, NULL, 'c'},    {"stdin", required_argument, NULL, 'i'},
        {"stdout", required_argument, NULL, 'o'},     {"stderr", required_argument, NULL, 'e'},
        {"workdir", required_argument, NULL, 'w'},    {"tail", required_argument, NULL, 't'},
        {"timeout-ms", required_argument, NULL, 'l'}, {"grace-ms", required_argument, NULL, 'g'},
        {"copy-stdout", required_argument, NULL, 'p'}, {"bound", required_argument, NULL, 'b'},
        {NULL, 0, NULL, 0},
    };
    const int64_t most = INT64_MAX / 4; /* room to add a deadline to a clock */
    struct options options = {.tail_bytes = TAIL_BYTES_DEFAULT, .grace_ms = 10000};
    bool good = true;
    int option, bound = 0;

    options.bound = calloc((size_t)argc, sizeof *options.bound);
    if (!options.bound)
        return usage("no memory");

    while ((option = getopt_long(argc, argv, "+", LONG, NULL)) != -1) {
        switch (option) {
        case 'c': options.control = optarg; break;
        case 'i': options.stdin_path = optarg; break;
        case 'o': options.stdout_path = optarg; break;
        case 'e': options.stderr_path = optarg; break;
        case 'w': options.workdir = optarg; break;
        case 't': good = good && number(optarg, TAIL_BYTES_MAX, &options.tail_bytes); break;
        case 'l': good = good && number(optarg, most, &options.timeout_ms); break;
        case 'g': good = good && number(optarg, most, &options.grace_ms); break;
        case 'p': good = good && number(optarg, most, &options.copy_bytes); break;
        case 'b': options.bound[bound++] = optarg; break;
        default: return usage("unknown option");
        }
    }
    options.argv = argv + optind;
    if (!good)
        return usage("a number is missing, negative or too big");
    if (!options.control || !*options.argv)
        return usage("--control and a command are needed");
    return run(&options);
}

int main(int argc, char **argv)
{
    int64_t uid, gid;

    occupy_standard_streams();
    if (argc >= 2 && !strcmp(argv[1], "run"))
        return run_command(argc - 1, argv + 1);
    if (argc >= 5 && !strcmp(argv[1], "own")) {
        if (!number(argv[2], UINT32_MAX - 1, &uid) || !number(argv[3], UINT32_MAX - 1, &gid))
            return usage("UID and GID are numbers");
        return own((uid_t)uid, (gid_t)gid, argv + 4);
    }
    if (argc == 2 && !strcmp(argv[1], "version"))
        return puts("tesgate-exec " VERSION " protocol " PROTOCOL) < 0;
    return usage("unknown command");
}
