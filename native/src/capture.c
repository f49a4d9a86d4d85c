// Captures of guest memory while the guest runs: copy before write. See memory.h.
//
// Freezing sets FROZEN on every page while nobody writes. Then there are two ways to save one:
//
// - A writer (crb_translate, in any process) takes COPYING, saves the page, and clears FROZEN
// before
//   it writes (own_page in memory.c).
// - The saver copies the page and clears FROZEN by compare-and-swap from a state without COPYING.
//   FROZEN still there means that no writer has written, so the copy is the frozen content;
//   otherwise the copy is dropped, as the writer has saved the page. The saver holds no lock: no
//   guest waits for it.
//
// Both clear FROZEN exactly once for a page, so it is saved once.
#include "capture.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BATCH 64

static bool is_zero(const uint8_t *page) {
    const uint64_t *words = (const uint64_t *)(const void *)page;
    uint64_t any = 0;
    for (uint32_t i = 0; i < CRB_PAGE_SIZE / 8 && any == 0; i += 8)
        any = words[i] | words[i + 1] | words[i + 2] | words[i + 3] | words[i + 4] | words[i + 5] |
              words[i + 6] | words[i + 7];
    return any == 0;
}

// The page's number in the RAM object: its state's place says it.
static uint64_t object_page(const crb_memory *memory, const crb_region *region, uint64_t page) {
    return (uint64_t)(&region->state[page] - (const uint8_t *)(memory->header + 1));
}

static const uint8_t *content(const crb_region *region, uint64_t page, uint8_t state) {
    const bool below = region->base != NULL && (state & CRB_PAGE_OVERLAY) == 0;
    return (below ? region->base : region->overlay) + (page << CRB_PAGE_SHIFT);
}

static bool failed(const crb_memory *memory) {
    return __atomic_load_n(&memory->header->capture_error, __ATOMIC_ACQUIRE) != 0;
}

// The first error is the capture's.
static void fail(crb_memory *memory, int error) {
    uint64_t none = 0;
    __atomic_compare_exchange_n(&memory->header->capture_error, &none, (uint64_t)error, false,
                                __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static void write_pages(crb_memory *memory, uint64_t first, const uint8_t *data, uint64_t count) {
    const int fd = __atomic_load_n(&memory->capture_fd, __ATOMIC_ACQUIRE);
    const uint64_t size = count << CRB_PAGE_SHIFT;
    uint64_t done = 0;
    while (done < size && !failed(memory)) {
        const ssize_t n =
            pwrite(fd, data + done, size - done, (off_t)((first << CRB_PAGE_SHIFT) + done));
        if (n > 0) done += (uint64_t)n;
        if (n < 0 && errno != EINTR) fail(memory, errno);
        if (n == 0) fail(memory, ENOSPC);
    }
    if (done == size) __atomic_add_fetch(&memory->header->saved_count, count, __ATOMIC_RELAXED);
}

void crb_save_page(crb_memory *memory, const crb_region *region, uint64_t page, uint8_t state) {
    const uint8_t *data = content(region, page, state);
    if (failed(memory) || (memory->header->capture_holes != 0 && is_zero(data))) return;
    write_pages(memory, object_page(memory, region, page), data, 1);
}

static void freeze_region(const crb_region *region, bool dirty_only) {
    for (uint64_t page = 0; page < region->size >> CRB_PAGE_SHIFT; page++) {
        const uint8_t state = region->state[page];
        const bool in = !dirty_only || (state & CRB_PAGE_DIRTY) != 0;
        region->state[page] = (uint8_t)((state & ~CRB_PAGE_DIRTY) | (in ? CRB_PAGE_FROZEN : 0));
    }
}

void crb_memory_freeze(crb_memory *memory, bool dirty_only) {
    __atomic_store_n(&memory->header->capture_error, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&memory->header->saved_count, 0, __ATOMIC_RELAXED);
    memory->header->capture_holes = !dirty_only;
    for (uint32_t i = 0; i < memory->n_regions; i++)
        freeze_region(&memory->regions[i], dirty_only);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static bool over(const crb_memory *memory) {
    return failed(memory) || __atomic_load_n(&memory->abandoned, __ATOMIC_RELAXED);
}

// Clears FROZEN; false when a writer has.
static bool claim(const crb_memory *memory, uint8_t *state) {
    uint8_t seen = __atomic_load_n(state, __ATOMIC_ACQUIRE);
    while ((seen & CRB_PAGE_FROZEN) != 0 && !over(memory)) {
        if ((seen & CRB_PAGE_COPYING) != 0) {
            sched_yield();
            seen = __atomic_load_n(state, __ATOMIC_ACQUIRE);
        } else if (__atomic_compare_exchange_n(state, &seen, (uint8_t)(seen & ~CRB_PAGE_FROZEN),
                                               false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            return true;
        }
    }
    return false;
}

// Consecutive pages copied, not yet written.
typedef struct batch {
    uint8_t *data;
    uint64_t first; // page of the RAM object
    uint64_t count;
} batch;

static void flush(crb_memory *memory, batch *pages) {
    if (pages->count != 0) write_pages(memory, pages->first, pages->data, pages->count);
    pages->count = 0;
}

static void save_one(crb_memory *memory, const crb_region *region, uint64_t page, uint8_t seen,
                     batch *pages) {
    const uint64_t number = object_page(memory, region, page);
    if (pages->count == BATCH || pages->first + pages->count != number) flush(memory, pages);
    uint8_t *copy = pages->data + (pages->count << CRB_PAGE_SHIFT);
    memcpy(copy, content(region, page, seen), CRB_PAGE_SIZE);
    if (!claim(memory, &region->state[page])) return;
    if (memory->header->capture_holes != 0 && is_zero(copy)) return;
    if (pages->count == 0) pages->first = number;
    pages->count++;
}

// The data extent of the RAM object that a page is in or before. What the object does not hold was
// never touched: it is zeroes, and reading it through the mapping would make it memory.
typedef struct extent {
    int fd;
    uint64_t start, end; // pages
} extent;

static bool is_hole(extent *data, uint64_t number) {
    if (number >= data->end) {
        const off_t start = lseek(data->fd, (off_t)(number << CRB_PAGE_SHIFT), SEEK_DATA);
        const off_t end = start < 0 ? -1 : lseek(data->fd, start, SEEK_HOLE);
        const bool none = start < 0 && errno == ENXIO;
        data->start = none ? UINT64_MAX : start < 0 ? number : (uint64_t)start >> CRB_PAGE_SHIFT;
        data->end = end < 0 ? UINT64_MAX : (uint64_t)(end + CRB_PAGE_SIZE - 1) >> CRB_PAGE_SHIFT;
    }
    return number < data->start;
}

static void save_region(crb_memory *memory, const crb_region *region, int ram_fd, batch *pages) {
    extent data = {.fd = ram_fd};
    for (uint64_t page = 0; page < region->size >> CRB_PAGE_SHIFT && !over(memory); page++) {
        const uint8_t seen = __atomic_load_n(&region->state[page], __ATOMIC_ACQUIRE);
        if ((seen & CRB_PAGE_FROZEN) == 0) continue;
        const bool below = region->base != NULL && (seen & CRB_PAGE_OVERLAY) == 0;
        if (!below && memory->header->capture_holes != 0 &&
            is_hole(&data, object_page(memory, region, page)))
            claim(memory, &region->state[page]);
        else
            save_one(memory, region, page, seen, pages);
    }
    flush(memory, pages);
}

void crb_memory_release(crb_memory *memory) {
    for (uint32_t i = 0; i < memory->n_regions; i++) {
        const crb_region *region = &memory->regions[i];
        for (uint64_t page = 0; page < region->size >> CRB_PAGE_SHIFT; page++)
            if ((__atomic_load_n(&region->state[page], __ATOMIC_RELAXED) & CRB_PAGE_FROZEN) != 0)
                __atomic_and_fetch(&region->state[page], (uint8_t)~CRB_PAGE_FROZEN,
                                   __ATOMIC_RELEASE);
    }
}

int crb_memory_save(crb_memory *memory, int ram_fd) {
    batch pages = {.data = malloc((size_t)BATCH << CRB_PAGE_SHIFT)};
    if (pages.data == NULL) fail(memory, ENOMEM);
    for (uint32_t i = 0; i < memory->n_regions && !over(memory); i++)
        save_region(memory, &memory->regions[i], ram_fd, &pages);
    free(pages.data);
    if (__atomic_load_n(&memory->abandoned, __ATOMIC_RELAXED)) return ECANCELED;
    if (failed(memory)) crb_memory_release(memory);
    return (int)__atomic_load_n(&memory->header->capture_error, __ATOMIC_ACQUIRE);
}

void crb_memory_skip_holes(crb_memory *memory, int base_fd) {
    for (uint32_t i = 0; i < memory->n_regions; i++) {
        const crb_region *region = &memory->regions[i];
        const uint64_t pages = region->size >> CRB_PAGE_SHIFT;
        const uint64_t first = object_page(memory, region, 0);
        extent data = {.fd = base_fd};
        for (uint64_t page = 0; page < pages;) {
            if (!is_hole(&data, first + page)) {
                page = data.end - first;
                continue;
            }
            const uint64_t end = data.start - first < pages ? data.start - first : pages;
            for (; page < end; page++)
                region->state[page] |= CRB_PAGE_OVERLAY;
        }
    }
}
