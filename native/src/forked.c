#include "crumble/forked.h"

#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096

uint64_t crb_forked_thread(void) {
    return (uint64_t)(uintptr_t)pthread_self();
}

struct segments {
    uint64_t *ranges;
    uint32_t most, count;
};

static int add_segments(struct dl_phdr_info *info, size_t size, void *data) {
    struct segments *found = data;
    for (uint32_t i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *head = &info->dlpi_phdr[i];
        if (head->p_type != PT_LOAD) continue;
        const uint64_t start = info->dlpi_addr + head->p_vaddr;
        if (found->count < found->most) {
            found->ranges[2 * found->count] = start & ~(uint64_t)(PAGE - 1);
            found->ranges[2 * found->count + 1] =
                (start + head->p_memsz + PAGE - 1) & ~(uint64_t)(PAGE - 1);
        }
        found->count++;
    }
    return 0;
}

uint32_t crb_forked_segments(uint64_t *ranges, uint32_t most) {
    struct segments found = {.ranges = ranges, .most = most};
    dl_iterate_phdr(add_segments, &found);
    return found.count;
}

static int write_all(int fd, uint64_t start, uint64_t end) {
    while (start < end) {
        const ssize_t done = write(fd, (const void *)(uintptr_t)start, end - start);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return done < 0 ? -errno : -EIO;
        start += (uint64_t)done;
    }
    return 0;
}

// Nobody, and no child that was taken over, may change what all read.
static int seal(int fd) {
    const int all = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
    return fcntl(fd, F_ADD_SEALS, all) < 0 ? -errno : 0;
}

static int map_all(int fd, const uint64_t *ranges, uint32_t n, uint64_t *kept, uint64_t size) {
    void *all = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (all == MAP_FAILED) return -errno;
    off_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        void *start = (void *)(uintptr_t)ranges[2 * i];
        const size_t length = ranges[2 * i + 1] - ranges[2 * i];
        const int flags = MAP_PRIVATE | MAP_FIXED;
        if (mmap(start, length, PROT_READ | PROT_WRITE, flags, fd, at) == MAP_FAILED)
            abort(); // what was there may be gone
        at += (off_t)length;
    }
    *kept = (uint64_t)(uintptr_t)all;
    return 0;
}

int crb_forked_keep(const uint64_t *ranges, uint32_t n, uint64_t *kept) {
    uint64_t size = 0;
    int status = 0;
    if (sysconf(_SC_PAGESIZE) != PAGE) return -ENOTSUP; // madvise() would take more than it is told
    const int fd = memfd_create("crumble-forked", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -errno;
    for (uint32_t i = 0; i < n && status == 0; i++) {
        status = write_all(fd, ranges[2 * i], ranges[2 * i + 1]);
        size += ranges[2 * i + 1] - ranges[2 * i];
    }
    if (status == 0) status = seal(fd);
    if (status == 0) status = map_all(fd, ranges, n, kept, size);
    close(fd);
    return status;
}

uint64_t crb_forked_return(const uint64_t *ranges, uint32_t n, uint64_t kept) {
    const uint8_t *was = (const uint8_t *)(uintptr_t)kept;
    uint64_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *const start = (uint8_t *)(uintptr_t)ranges[2 * i];
        uint8_t *const end = (uint8_t *)(uintptr_t)ranges[2 * i + 1];
        uint8_t *same = start; // from here on pages are what they were
        for (uint8_t *at = start; at <= end; at += PAGE, was += PAGE) {
            if (at < end && memcmp(at, was, PAGE) == 0) continue;
            if (same < at && madvise(same, (size_t)(at - same), MADV_DONTNEED) == 0)
                count += (uint64_t)(at - same) / PAGE;
            same = at + PAGE;
        }
        was -= PAGE;
    }
    // Of no use until the next time.
    madvise((void *)(uintptr_t)kept, (uint64_t)(uintptr_t)was - kept, MADV_DONTNEED);
    return count;
}
