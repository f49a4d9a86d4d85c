// Guest memory: where every process finds a guest-physical byte.
//
// A region is one run of guest RAM. It has an overlay (pages this VM has written, shared between
// the VM's processes) and, for a restored VM, a base (the snapshot's memory file, read-only, shared
// by all clones). A byte of page state a page, itself in shared memory, says which layer holds it.
// Without a base every page is in the overlay and a region is one contiguous run.
//
// crb_translate() is the only way from a guest-physical address to a host pointer.
#ifndef CRUMBLE_MEMORY_H
#define CRUMBLE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CRB_PAGE_SHIFT 12
#define CRB_PAGE_SIZE  4096u
// vhost-user's SET_MEM_TABLE holds 8; nothing here needs more.
#define CRB_MAX_REGIONS 8

// Page state bits. COPYING is a lock: held by whoever fills the overlay page from the base, or
// saves a page it is about to write.
#define CRB_PAGE_OVERLAY 0x01u
#define CRB_PAGE_COPYING 0x02u
// The soft CPU has decoded instructions from this page; a writer that finds it sets STALE and bumps
// the counter in the state header, and the CPU drops its blocks at the next fence.i or time slice.
#define CRB_PAGE_CODE  0x04u
#define CRB_PAGE_STALE 0x08u
#define CRB_PAGE_DIRTY 0x10u
// The page's content belongs to a capture that has not saved it yet: whoever is to write it saves
// it first. Never set together with DIRTY, so who only looks for DIRTY before it writes is right.
#define CRB_PAGE_FROZEN 0x20u

// The first bytes of the page-state object; the states of region 0, then 1, ... follow at
// offset 64.
typedef struct crb_page_state_header {
    uint64_t magic;
    uint64_t pages;
    uint64_t stale_count; // atomic
    uint64_t
        moved_count; // atomic: pages moved from the base to the overlay, before their first write
    uint64_t capture_error; // atomic: errno of the first failure to save a page; 0 none
    uint64_t saved_count;   // atomic: pages written to the capture's file
    uint64_t capture_holes; // pages of zeroes need not be written: the file is new
    uint64_t reserved;
} crb_page_state_header;

typedef struct crb_region {
    uint64_t gpa;  // page aligned
    uint64_t size; // bytes, multiple of the page size
    uint8_t *overlay;
    const uint8_t *base; // NULL: no snapshot below
    uint8_t *state;      // one byte a page; NULL: no page state (foreign memory)
} crb_region;

typedef struct crb_memory {
    uint32_t n_regions;
    int32_t capture_fd;            // atomic: where this process saves frozen pages; -1 none
    bool abandoned;                // atomic: the VM ends; nobody waits for a page any more
    crb_page_state_header *header; // NULL without page state
    crb_region regions[CRB_MAX_REGIONS];
} crb_memory;

// 0, or -1 when the table is full, the region is empty, misaligned, wraps or overlaps another.
int crb_memory_add(crb_memory *memory, uint64_t gpa, uint64_t size, uint8_t *overlay,
                   const uint8_t *base, uint8_t *state);

// The host address of `gpa`, or NULL when it is not RAM. `*length` is the number of bytes wanted on
// entry and the number contiguous in host memory on return (at least 1, at most what was asked; cut
// at the page's end where the region has a base). With `write`, the page is saved if it is frozen,
// moved to the overlay, marked dirty, and marked stale if it holds decoded code. Safe from any
// thread or process.
uint8_t *crb_translate(crb_memory *memory, uint64_t gpa, uint64_t *length, bool write);

// For who reads but must not see the base: moves the page to the overlay and marks nothing.
uint8_t *crb_translate_overlay(crb_memory *memory, uint64_t gpa, uint64_t *length);

// Copies between guest memory and a host buffer; false when any byte is not RAM (nothing is
// copied).
bool crb_memory_read(crb_memory *memory, uint64_t gpa, void *to, uint64_t length);
bool crb_memory_write(crb_memory *memory, uint64_t gpa, const void *from, uint64_t length);

// True when [gpa, gpa + length) is RAM.
bool crb_memory_has(const crb_memory *memory, uint64_t gpa, uint64_t length);

// ---- Captures: docs/decisions say why it is right. One at a time; of a memory with a header.

// Puts all pages of all regions into a capture: FROZEN, no longer DIRTY. Nobody may be writing
// guest memory, in any process, and whoever caches that a page may be written must forget it before
// it goes on. `dirty_only`: only pages that were DIRTY.
void crb_memory_freeze(crb_memory *memory, bool dirty_only);

// Saves all that is frozen to capture_fd (page n of the RAM object, `ram_fd`, at byte n * 4096) and
// returns when nothing is: 0, or an errno after which the file is worth nothing (nothing is frozen
// then either). ECANCELED: abandoned.
int crb_memory_save(crb_memory *memory, int ram_fd);

// Gives the capture up: nothing is frozen any more.
void crb_memory_release(crb_memory *memory);

// The base's holes (`base_fd`, mapped from byte `offset` for a region) read as zeroes in the
// overlay as well: no page there needs to be copied before it is written. For the first process
// that maps, while it is the only one.
void crb_memory_skip_holes(crb_memory *memory, int base_fd);

// A base of several files: maps the pages of `fd` in `count` runs (first page, pages) over what
// `base` maps so far, each at its own place. 0 or an errno.
int crb_base_cover(const void *base, int fd, const uint32_t *runs, uint64_t count);

// Moves all of the base to the overlay, for those that reach guest memory without translating; the
// regions have no base any more, in this process. Under the same condition.
void crb_memory_flatten(crb_memory *memory);

#endif
