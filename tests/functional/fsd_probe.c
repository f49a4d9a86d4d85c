// File system calls that no shell makes, in a directory given as argument: one line of output for
// each, to be the same on every file system. Run on tmpfs and on fsd by test_fsd_guest.py.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static void say(const char *what, long result) {
    printf("%s: %ld%s%s\n", what, result, result < 0 ? " " : "", result < 0 ? strerror(errno) : "");
    fflush(stdout);
}

static int make(const char *name, const char *data) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (data && write(fd, data, strlen(data)) < 0) {
        perror(name);
    }
    return fd;
}

static void show(const char *what, int fd, off_t offset, size_t size) {
    char data[64] = {0};
    ssize_t got = pread(fd, data, size, offset);
    printf("%s: %zd [", what, got);
    for (ssize_t i = 0; i < got; i++) {
        printf("%c", data[i] ? data[i] : '.');
    }
    printf("]\n");
}

static void mappings(void) {
    int fd = make("mapped", NULL);
    say("grow", ftruncate(fd, 3 * 4096));
    char *map = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    strcpy(map + 4096 - 3, "across pages");
    show("read what was mapped", fd, 4090, 20);
    say("write under the map", pwrite(fd, "below", 5, 8192));
    printf("map sees: %.5s\n", map + 8192);
    say("msync", msync(map, 3 * 4096, MS_SYNC));
    munmap(map, 3 * 4096);
    int again = open("mapped", O_RDONLY);
    show("reopened", again, 4093, 12);
    char *private = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 4096);
    private[0] = '!';
    show("private map stays private", fd, 4096, 9);
    close(again);
    close(fd);
}

static long in_child(int (*body)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        _exit(body());
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WEXITSTATUS(status);
}

static int posix_lock(int fd, int command, short kind, off_t start, off_t length) {
    struct flock lock = {.l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, command, &lock);
}

static int try_posix(void) {
    int fd = open("locked", O_RDWR);
    int inside = posix_lock(fd, F_SETLK, F_WRLCK, 5, 5) == 0;
    int outside = posix_lock(fd, F_SETLK, F_WRLCK, 20, 5) == 0;
    return inside | outside << 1;
}

static int try_flock(void) {
    int fd = open("locked", O_RDWR);
    return flock(fd, LOCK_EX | LOCK_NB) == 0;
}

static int wait_posix(void) {
    int fd = open("locked", O_RDWR);
    alarm(20);
    return posix_lock(fd, F_SETLKW, F_WRLCK, 0, 10) == 0 ? 7 : 1;
}

static void locks(void) {
    int fd = make("locked", "0123456789");
    say("posix lock", posix_lock(fd, F_SETLK, F_WRLCK, 0, 10));
    say("another process", in_child(try_posix));
    fflush(stdout);
    pid_t waiter = fork();
    if (waiter == 0) {
        _exit(wait_posix());
    }
    usleep(100000);
    say("unlock", posix_lock(fd, F_SETLK, F_UNLCK, 0, 0));
    int status = 0;
    waitpid(waiter, &status, 0);
    say("the waiter got it", WEXITSTATUS(status));
    int other = open("locked", O_RDWR);
    say("OFD lock", posix_lock(fd, F_OFD_SETLK, F_WRLCK, 0, 5));
    say("OFD lock of another open file", posix_lock(other, F_OFD_SETLK, F_RDLCK, 4, 1));
    close(fd);
    say("after its close", posix_lock(other, F_OFD_SETLK, F_RDLCK, 4, 1));
    say("flock", flock(other, LOCK_EX));
    say("flock of another process", in_child(try_flock));
    close(other);
    say("flock after close", in_child(try_flock));
}

static void ranges(void) {
    int fd = make("ranges", "head");
    say("write far away", pwrite(fd, "tail", 4, 1 << 20));
    say("data", lseek(fd, 0, SEEK_DATA));
    say("next data", lseek(fd, 8192, SEEK_DATA));
    say("hole at the end", lseek(fd, 1 << 20, SEEK_HOLE));
    say("past the end", lseek(fd, 2 << 20, SEEK_DATA));
    say("punch", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    show("punched", fd, 0, 4);
    say("allocate", fallocate(fd, 0, 0, 2 << 20));
    say("keep size", fallocate(fd, FALLOC_FL_KEEP_SIZE, 4 << 20, 4096));
    struct stat st;
    fstat(fd, &st);
    say("size", st.st_size);
    int to = make("copy", NULL);
    off_t from = 1 << 20, at = 10;
    say("copy_file_range", copy_file_range(fd, &from, to, &at, 100, 0));
    show("copied", to, 8, 8);
    struct iovec parts[2] = {{"gather", 6}, {" them", 5}};
    say("pwritev", pwritev(to, parts, 2, 200));
    show("gathered", to, 198, 16);
    close(to);
    close(fd);
}

static void names(void) {
    int fd = open(".", O_TMPFILE | O_RDWR, 0600);
    say("O_TMPFILE", fd < 0 ? -1 : 0);
    say("write to it", write(fd, "nameless", 8));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    say("linkat", linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
    show("named", open("named", O_RDONLY), 0, 8);
    close(make("other", "other"));
    say("exchange", renameat2(AT_FDCWD, "named", AT_FDCWD, "other", RENAME_EXCHANGE));
    show("exchanged", open("named", O_RDONLY), 0, 8);
    say("noreplace", renameat2(AT_FDCWD, "named", AT_FDCWD, "other", RENAME_NOREPLACE));
    int directory = open(".", O_RDONLY | O_DIRECTORY);
    mkdir("gone", 0755);
    int gone = open("gone", O_RDONLY | O_DIRECTORY);
    rmdir("gone");
    say("create in a removed directory", openat(gone, "f", O_CREAT | O_RDWR, 0644));
    say("fsync of a directory", fsync(directory));
    close(gone);
    close(directory);
}

static void attributes(void) {
    int fd = make("attributes", "x");
    say("setxattr", fsetxattr(fd, "user.name", "value", 5, XATTR_CREATE));
    say("again", fsetxattr(fd, "user.name", "value", 5, XATTR_CREATE));
    char value[16] = {0};
    say("getxattr", fgetxattr(fd, "user.name", value, sizeof value));
    say("too small", fgetxattr(fd, "user.name", value, 2));
    say("listxattr", flistxattr(fd, value, sizeof value));
    say("removexattr", fremovexattr(fd, "user.name"));
    say("none", fgetxattr(fd, "user.name", value, sizeof value));
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                {.tv_sec = 1234567890, .tv_nsec = 987654321}};
    say("futimens", futimens(fd, times));
    struct stat st;
    fstat(fd, &st);
    printf("mtime: %lld.%09ld\n", (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    fchmod(fd, 06755);
    fchown(fd, 1000, 1000);
    fstat(fd, &st);
    printf("after chown: %o\n", st.st_mode & 07777);
    fchmod(fd, 06755);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        setgid(1000);
        setuid(1000);
        _exit(write(fd, "as another", 10) == 10 ? 0 : 1);
    }
    waitpid(pid, NULL, 0);
    fstat(fd, &st);
    printf("after a write: %o\n", st.st_mode & 07777);
    say("open as nobody's", in_child(try_flock));
    close(fd);
}

static void direct(void) {
    char *page = aligned_alloc(4096, 8192);
    memset(page, 'd', 8192);
    int fd = open("direct", O_RDWR | O_CREAT | O_DIRECT, 0644);
    if (fd < 0) { // tmpfs of old kernels
        fd = open("direct", O_RDWR | O_CREAT, 0644);
    }
    say("direct write", pwrite(fd, page, 8192, 0));
    memset(page, 0, 8192);
    say("direct read", pread(fd, page, 8192, 0));
    printf("it was %c and %c\n", page[0], page[8191]);
    say("read past the end", pread(fd, page, 4096, 8192));
    close(fd);
}

static void listing(void) {
    mkdir("many", 0755);
    char name[300];
    for (int i = 0; i < 3000; i++) {
        snprintf(name, sizeof name, "many/entry-%d", i);
        close(open(name, O_CREAT | O_WRONLY, 0644));
    }
    DIR *directory = opendir("many");
    int seen = 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (entry->d_name[0] == '.') {
            continue;
        }
        seen++;
        snprintf(name, sizeof name, "many/%s", entry->d_name);
        unlink(name);
    }
    say("listed while removing", seen);
    rewinddir(directory);
    int left = 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        left += entry->d_name[0] != '.';
    }
    say("left", left);
    closedir(directory);
    say("rmdir", rmdir("many"));
}

int main(int argc, char **argv) {
    if (argc != 2 || chdir(argv[1]) < 0) {
        return 2;
    }
    mappings();
    locks();
    ranges();
    names();
    attributes();
    direct();
    listing();
    return 0;
}
