/* The `crumble` command: has a process that is there already do it, or becomes the Python that
 * does.
 *
 * Python takes 20 ms to begin and 30 more to import what a `run` needs. Where `crumble up` runs, a
 * process that has done both waits on the socket `commands` (crumble/cli/served.py). What we are
 * (arguments, environment, directory, limits) it reads in /proc; our standard streams we give it.
 * Then signals go to it and its status comes back, and when we end so does it. As Mercurial's chg
 * and emacsclient do.
 *
 *   there → here   'r' + a pidfd of it        ready; or 'd', not me: do it yourself
 *   here → there   'g' + fds 0, 1, 2          go; nothing has happened before
 *   there → here   int32                      exit status
 *
 * Whatever does not go as it should before 'g' ends in the Python beside us, which needs nobody.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* LONGEST_BASE: of $XDG_RUNTIME_DIR, for sockets to fit below it. */
enum { FAILED = 125, STREAMS = 3, PATIENCE_MS = 2000, LONGEST_BASE = 75 };

static const int forwarded[] = {SIGINT,  SIGTERM, SIGHUP,  SIGQUIT, SIGWINCH,
                                SIGUSR1, SIGUSR2, SIGCONT, SIGTSTP};

static volatile sig_atomic_t worker = -1, last;

static void forward(int number) {
    int before = errno;
    last = number;
    /* Its process group is an orphan: SIGTSTP would do nothing there. */
    syscall(SYS_pidfd_send_signal, (int)worker, number == SIGTSTP ? SIGSTOP : number, NULL, 0);
    if (number == SIGTSTP) raise(SIGSTOP); /* SIGCONT comes to us, and goes on to it */
    errno = before;
}

static void forward_signals(void) {
    for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; i++) {
        struct sigaction action;
        if (sigaction(forwarded[i], NULL, &action) || action.sa_handler == SIG_IGN)
            continue; /* nohup, a shell's background job */
        action = (struct sigaction){.sa_handler = forward, .sa_flags = SA_RESTART};
        sigfillset(&action.sa_mask);
        sigaction(forwarded[i], &action, NULL);
    }
}

/* The Python beside us: crumble-python is a console script, so it knows its interpreter. */
static void become_python(char **argv) {
    char path[PATH_MAX + sizeof "-python"];
    ssize_t size = readlink("/proc/self/exe", path, PATH_MAX);
    if (size > 0) {
        memcpy(path + size, "-python", sizeof "-python");
        argv[0] = path;
        execv(path, argv);
    }
    fprintf(stderr, "crumble: Cannot start Python: %s. Install Crumble again.\n", strerror(errno));
    _exit(FAILED);
}

/* As common/crumble_common/paths.py has it: false when there is no such place. */
static int find_socket(struct sockaddr_un *address) {
    const char *chosen = getenv("CRUMBLE_RUNTIME_DIR"), *base = getenv("XDG_RUNTIME_DIR");
    size_t room = sizeof address->sun_path;
    int size;
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (chosen && *chosen)
        size = snprintf(address->sun_path, room, "%s/daemon/commands", chosen);
    else if (base && *base && strlen(base) < LONGEST_BASE && !access(base, W_OK))
        size = snprintf(address->sun_path, room, "%s/crumble/daemon/commands", base);
    else
        size = snprintf(address->sun_path, room, "/tmp/crumble-%u/daemon/commands",
                        (unsigned)getuid());
    return size > 0 && (size_t)size < room;
}

/* A connection to who waits, and is ours: -1 when there is nobody. */
static int find_worker(void) {
    struct sockaddr_un address;
    struct ucred owner;
    socklen_t size = sizeof owner;
    int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connection < 0) return -1;
    if (find_socket(&address) &&
        !connect(connection, (struct sockaddr *)&address, sizeof address) &&
        !getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &owner, &size) && owner.uid == geteuid())
        return connection;
    close(connection);
    return -1;
}

/* Go. */
static int give_streams(int connection) {
    union {
        char bytes[CMSG_SPACE(STREAMS * sizeof(int))];
        struct cmsghdr header;
    } control = {0};
    struct iovec data = {.iov_base = "g", .iov_len = 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    int fds[STREAMS] = {0, 1, 2};
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(&control.header), fds, sizeof fds);
    return sendmsg(connection, &message, MSG_NOSIGNAL) == 1;
}

/* Its pidfd, when it is ready: -1 when it is not. */
static int take_answer(int connection) {
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control = {0};
    char answer = 0;
    int fd = -1;
    struct pollfd ready = {.fd = connection, .events = POLLIN};
    struct iovec data = {.iov_base = &answer, .iov_len = 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    if (poll(&ready, 1, PATIENCE_MS) != 1 || recvmsg(connection, &message, MSG_CMSG_CLOEXEC) != 1 ||
        answer != 'r')
        return -1;
    struct cmsghdr *given = CMSG_FIRSTHDR(&message);
    if (given && given->cmsg_level == SOL_SOCKET && given->cmsg_type == SCM_RIGHTS &&
        given->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(given), sizeof fd);
    return fd;
}

/* Has it done, and ends as it does. Returns when nobody has begun. */
static void have_it_done(int connection) {
    int32_t status;
    ssize_t size;
    if ((worker = take_answer(connection)) < 0) return;
    forward_signals();
    if (!give_streams(connection)) return;
    do
        size = recv(connection, &status, sizeof status, 0);
    while (size < 0 && errno == EINTR);
    if (size == sizeof status) _exit((int)status);
    if (last) { /* it did not take that signal */
        signal(last, SIG_DFL);
        raise(last);
    }
    fprintf(stderr, "crumble: The process that ran this command was killed. Its VM is ended.\n");
    _exit(FAILED);
}

int main(int argc, char **argv) {
    int quick = argc > 1 && (!strcmp(argv[1], "run") || !strcmp(argv[1], "exec")) &&
                !getenv("CRUMBLE_ALONE");
    for (int fd = 0; fd < STREAMS; fd++)
        quick = quick && fcntl(fd, F_GETFD) >= 0;
    int connection = quick ? find_worker() : -1;
    if (connection >= 0) {
        have_it_done(connection);
        close(connection);
    }
    become_python(argv);
}
