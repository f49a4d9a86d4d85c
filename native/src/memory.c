// Guest memory: region table, layered translation. See memory.h.
#include "capture.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

static inline uint8_t state_load(uint8_t *state) {
    return __atomic_load_n(state, __ATOMIC_ACQUIRE);
}

int crb_memory_add(crb_memory *memory, uint64_t gpa, uint64_t size, uint8_t *overlay,
                   const uint8_t *base, uint8_t *state) {
    const uint64_t mask = CRB_PAGE_SIZE - 1;
    if (memory->n_regions >= CRB_MAX_REGIONS || overlay == NULL || size == 0) return -1;
    if ((gpa & mask) != 0 || (size & mask) != 0 || gpa + size < gpa) return -1;
    if (base != NULL && state == NULL) return -1;
    for (uint32_t i = 0; i < memory->n_regions; i++) {
        const crb_region *other = &memory->regions[i];
        if (gpa < other->gpa + other->size && other->gpa < gpa + size) return -1;
    }
    memory->regions[memory->n_regions++] =
        (crb_region){.gpa = gpa, .size = size, .overlay = overlay, .base = base, .state = state};
    return 0;
}

static crb_region *find_region(const crb_memory *memory, uint64_t gpa) {
    for (uint32_t i = 0; i < memory->n_regions; i++) {
        const crb_region *region = &memory->regions[i];
        if (gpa - region->gpa < region->size) return (crb_region *)region;
    }
    return NULL;
}

// Makes a page's overlay the one that may be written (or, without `write`, read by all for good). A
// page that needs nothing costs one load. COPYING is a lock bit: exactly one thread or process
// works on the page, the others wait, for 4 KiB to be copied or saved. A holder that dies leaves it
// set: its VM is over then, and `abandoned` ends the wait.
//
// moved_count goes up between OVERLAY and the end of COPYING. So who sees OVERLAY without COPYING
// sees the count too, and can drop what it cached of the base before it writes the overlay; and who
// sees anything that the holder writes later sees the count as well.
static void own_page(crb_memory *memory, crb_region *region, uint64_t page, bool write) {
    uint8_t *state = &region->state[page];
    const uint8_t over = region->base != NULL ? CRB_PAGE_OVERLAY : 0;
    const uint8_t frozen = write ? CRB_PAGE_FROZEN : 0;
    uint8_t seen = state_load(state);
    while ((seen & (over | frozen | CRB_PAGE_COPYING)) != over) {
        if ((seen & CRB_PAGE_COPYING) != 0) {
            if (__atomic_load_n(&memory->abandoned, __ATOMIC_RELAXED)) return;
            sched_yield();
            seen = state_load(state);
            continue;
        }
        if (!__atomic_compare_exchange_n(state, &seen, seen | CRB_PAGE_COPYING, false,
                                         __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            continue;
        if ((seen & frozen) != 0) crb_save_page(memory, region, page, seen);
        if ((seen & over) != over) {
            memcpy(region->overlay + (page << CRB_PAGE_SHIFT),
                   region->base + (page << CRB_PAGE_SHIFT), CRB_PAGE_SIZE);
            __atomic_or_fetch(state, CRB_PAGE_OVERLAY, __ATOMIC_RELEASE);
            if (memory->header != NULL)
                __atomic_add_fetch(&memory->header->moved_count, 1, __ATOMIC_RELEASE);
        }
        __atomic_and_fetch(state, (uint8_t)~(CRB_PAGE_COPYING | frozen), __ATOMIC_RELEASE);
        return;
    }
}

static void mark_written(crb_memory *memory, uint8_t *state) {
    const uint8_t seen = state_load(state);
    if ((seen & CRB_PAGE_DIRTY) == 0) __atomic_or_fetch(state, CRB_PAGE_DIRTY, __ATOMIC_RELAXED);
    if ((seen & (CRB_PAGE_CODE | CRB_PAGE_STALE)) != CRB_PAGE_CODE) return;
    __atomic_or_fetch(state, CRB_PAGE_STALE, __ATOMIC_RELEASE);
    if (memory->header != NULL)
        __atomic_add_fetch(&memory->header->stale_count, 1, __ATOMIC_RELEASE);
}

static void own_pages(crb_memory *memory, crb_region *region, uint64_t first, uint64_t last) {
    for (uint64_t page = first; page <= last; page++) {
        own_page(memory, region, page, true);
        mark_written(memory, &region->state[page]);
    }
}

// The region of `gpa`, `*length` cut to what is contiguous; NULL when it is not RAM.
static crb_region *find_run(const crb_memory *memory, uint64_t gpa, uint64_t *length) {
    crb_region *region = find_region(memory, gpa);
    if (region == NULL || *length == 0) return NULL;
    const uint64_t offset = gpa - region->gpa;
    if (*length > region->size - offset) *length = region->size - offset;
    const uint64_t left = CRB_PAGE_SIZE - (offset & (CRB_PAGE_SIZE - 1));
    if (region->base != NULL && *length > left) *length = left;
    return region;
}

uint8_t *crb_translate(crb_memory *memory, uint64_t gpa, uint64_t *length, bool write) {
    crb_region *region = find_run(memory, gpa, length);
    if (region == NULL) return NULL;
    const uint64_t offset = gpa - region->gpa;
    const uint64_t page = offset >> CRB_PAGE_SHIFT;
    if (write && region->state != NULL)
        own_pages(memory, region, page, (offset + *length - 1) >> CRB_PAGE_SHIFT);
    if (region->base != NULL && !write &&
        (state_load(&region->state[page]) & CRB_PAGE_OVERLAY) == 0)
        return (uint8_t *)region->base + offset;
    return region->overlay + offset;
}

uint8_t *crb_translate_overlay(crb_memory *memory, uint64_t gpa, uint64_t *length) {
    crb_region *region = find_run(memory, gpa, length);
    if (region == NULL) return NULL;
    const uint64_t offset = gpa - region->gpa;
    if (region->base != NULL) own_page(memory, region, offset >> CRB_PAGE_SHIFT, false);
    return region->overlay + offset;
}

int crb_base_cover(const void *base, int fd, const uint32_t *runs, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t at = (uint64_t)runs[2 * i] << CRB_PAGE_SHIFT;
        const uint64_t size = (uint64_t)runs[2 * i + 1] << CRB_PAGE_SHIFT;
        if (mmap((uint8_t *)base + at, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)at) ==
            MAP_FAILED)
            return errno;
    }
    return 0;
}

static void flatten(crb_region *region) {
    const uint64_t pages = region->size >> CRB_PAGE_SHIFT;
    for (uint64_t page = 0, end; page < pages; page = end) {
        for (end = page; end < pages && (region->state[end] & CRB_PAGE_OVERLAY) == 0; end++)
            region->state[end] |= CRB_PAGE_OVERLAY;
        memcpy(region->overlay + (page << CRB_PAGE_SHIFT), region->base + (page << CRB_PAGE_SHIFT),
               (end - page) << CRB_PAGE_SHIFT);
        if (end == page) end++;
    }
    region->base = NULL;
}

void crb_memory_flatten(crb_memory *memory) {
    for (uint32_t i = 0; i < memory->n_regions; i++)
        if (memory->regions[i].base != NULL) flatten(&memory->regions[i]);
}

bool crb_memory_has(const crb_memory *memory, uint64_t gpa, uint64_t length) {
    while (length > 0) {
        const crb_region *region = find_region(memory, gpa);
        if (region == NULL) return false;
        const uint64_t here = region->size - (gpa - region->gpa);
        if (length <= here) return true;
        gpa += here;
        length -= here;
    }
    return true;
}

bool crb_memory_read(crb_memory *memory, uint64_t gpa, void *to, uint64_t length) {
    if (!crb_memory_has(memory, gpa, length)) return false;
    uint8_t *out = to;
    while (length > 0) {
        uint64_t run = length;
        const uint8_t *from = crb_translate(memory, gpa, &run, false);
        memcpy(out, from, run);
        out += run;
        gpa += run;
        length -= run;
    }
    return true;
}

bool crb_memory_write(crb_memory *memory, uint64_t gpa, const void *from, uint64_t length) {
    if (!crb_memory_has(memory, gpa, length)) return false;
    const uint8_t *in = from;
    while (length > 0) {
        uint64_t run = length;
        uint8_t *to = crb_translate(memory, gpa, &run, true);
        memcpy(to, in, run);
        in += run;
        gpa += run;
        length -= run;
    }
    return true;
}
