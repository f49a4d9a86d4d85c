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

// Page state bits. COPYING is held by whoever is filling the overlay page from the base.
#define CRB_PAGE_OVERLAY 0x01u
#define CRB_PAGE_COPYING 0x02u
// The soft CPU has decoded instructions from this page; a writer that finds it sets STALE and bumps
// the counter in the state header, and the CPU drops its blocks at the next fence.i or time slice.
#define CRB_PAGE_CODE  0x04u
#define CRB_PAGE_STALE 0x08u
#define CRB_PAGE_DIRTY 0x10u

// The first bytes of the page-state object; the states of region 0, then 1, ... follow at
// offset 64.
typedef struct crb_page_state_header {
    uint64_t magic;
    uint64_t pages;
    uint64_t stale_count; // atomic
    uint64_t
        moved_count; // atomic: pages moved from the base to the overlay, before their first write
    uint64_t reserved[4];
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
    crb_page_state_header *header; // NULL without page state
    crb_region regions[CRB_MAX_REGIONS];
} crb_memory;

// 0, or -1 when the table is full, the region is empty, misaligned, wraps or overlaps another.
int crb_memory_add(crb_memory *memory, uint64_t gpa, uint64_t size, uint8_t *overlay,
                   const uint8_t *base, uint8_t *state);

// The host address of `gpa`, or NULL when it is not RAM. `*length` is the number of bytes wanted on
// entry and the number contiguous in host memory on return (at least 1, at most what was asked; cut
// at the page's end where the region has a base). With `write`, the page is moved to the overlay
// first, marked dirty, and marked stale if it holds decoded code. Safe from any thread or process.
uint8_t *crb_translate(crb_memory *memory, uint64_t gpa, uint64_t *length, bool write);

// Copies between guest memory and a host buffer; false when any byte is not RAM (nothing is
// copied).
bool crb_memory_read(crb_memory *memory, uint64_t gpa, void *to, uint64_t length);
bool crb_memory_write(crb_memory *memory, uint64_t gpa, const void *from, uint64_t length);

// True when [gpa, gpa + length) is RAM.
bool crb_memory_has(const crb_memory *memory, uint64_t gpa, uint64_t length);

#endif
