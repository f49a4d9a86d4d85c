#include "crumble/files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int result(long value) {
    return value < 0 ? -errno : (int)value;
}

int crb_openat2(int directory, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};
    // EAGAIN: something was renamed while ".." or a beneath check was resolved.
    for (int attempt = 0; attempt < 16; attempt++) {
        long fd = syscall(SYS_openat2, directory, path, &how, sizeof how);
        if (fd >= 0 || (errno != EAGAIN && errno != EINTR)) {
            return result(fd);
        }
    }
    return -EAGAIN;
}

int crb_fallocate(int fd, int mode, int64_t offset, int64_t length) {
    return result(fallocate(fd, mode, offset, length));
}

int crb_renameat2(int old_directory, const char *old_name, int new_directory, const char *new_name,
                  unsigned int flags) {
    return result(renameat2(old_directory, old_name, new_directory, new_name, flags));
}

int crb_syncfs(int fd) {
    return result(syncfs(fd));
}

int64_t crb_birth_time(int fd) {
    struct statx found;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &found) < 0) {
        return -errno;
    }
    if (!(found.stx_mask & STATX_BTIME)) {
        return 0;
    }
    return found.stx_btime.tv_sec * 1000000000 + found.stx_btime.tv_nsec;
}
