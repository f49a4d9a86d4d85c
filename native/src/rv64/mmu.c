// Sv39 and Sv48 page walks and the software TLB (RISC-V privileged ISA, ch. "Supervisor-Level ISA",
// "Virtual Address Translation Process"). A and D are set by the walk, atomically.
#include "rv64/hart.h"

#include <string.h>

#define PTE_V        0x001ull
#define PTE_R        0x002ull
#define PTE_W        0x004ull
#define PTE_X        0x008ull
#define PTE_U        0x010ull
#define PTE_G        0x020ull
#define PTE_A        0x040ull
#define PTE_D        0x080ull
#define PTE_PPN(pte) ((pte) >> 10 & 0xfffffffffffull)
#define PTE_RESERVED (0x7full << 54)
#define PTE_PBMT     (3ull << 61) // Svpbmt: all memory is coherent, so only 3, reserved, matters
#define PTE_N        (1ull << 63) // Svnapot: one of 16 that make a page of 64 KiB

// What a walk found.
typedef struct found {
    uint64_t gpa;
    uint64_t pte;
    bool superpage;
} found;

static crb_result page_fault(crb_hart *hart, uint64_t va, crb_access access) {
    static const uint8_t causes[] = {CRB_CAUSE_LOAD_PAGE, CRB_CAUSE_STORE_PAGE,
                                     CRB_CAUSE_FETCH_PAGE};
    return crb_raise(hart, causes[access], va);
}

static crb_result access_fault(crb_hart *hart, uint64_t va, crb_access access) {
    static const uint8_t causes[] = {CRB_CAUSE_LOAD_ACCESS, CRB_CAUSE_STORE_ACCESS,
                                     CRB_CAUSE_FETCH_ACCESS};
    return crb_raise(hart, causes[access], va);
}

static bool permitted(const crb_hart *hart, uint64_t pte, crb_access access) {
    const bool user = (pte & PTE_U) != 0;
    if (hart->privilege == 0 && !user) return false;
    if (hart->privilege == 1 && user &&
        (access == CRB_EXEC || (hart->status & CRB_STATUS_SUM) == 0))
        return false;
    if (access == CRB_EXEC) return (pte & PTE_X) != 0;
    if (access == CRB_WRITE) return (pte & PTE_W) != 0;
    return (pte & PTE_R) != 0 || ((hart->status & CRB_STATUS_MXR) != 0 && (pte & PTE_X) != 0);
}

// Forgets the entries of one array that lead to a host page.
static void purge(const crb_tlb *tlb, crb_tlb_entry *entries, uint64_t host) {
    const bool logged = tlb->filled <= CRB_TLB_LOG;
    const uint32_t count = logged ? tlb->filled : CRB_TLB_SIZE;
    for (uint32_t i = 0; i < count; i++) {
        crb_tlb_entry *entry = &entries[logged ? tlb->log[i] : i];
        if ((entry->tag & CRB_PAGE_MASK) + entry->addend == host) entry->tag = CRB_TLB_EMPTY;
    }
}

// True for a host address in a base that the page is no longer read from.
static bool is_left(const crb_memory *memory, uint64_t host) {
    for (uint32_t i = 0; i < memory->n_regions; i++) {
        const crb_region *region = &memory->regions[i];
        const uint64_t offset = host - (uintptr_t)region->base;
        if (region->base == NULL || offset >= region->size) continue;
        const uint8_t *state = &region->state[offset >> CRB_PAGE_SHIFT];
        return (__atomic_load_n(state, __ATOMIC_RELAXED) & CRB_PAGE_OVERLAY) != 0;
    }
    return false;
}

// A page that is counted in what is loaded first is an overlay's already (memory.c, own_page).
void crb_moved(crb_hart *hart) {
    const crb_memory *memory = hart->machine->memory;
    hart->moved_seen = __atomic_load_n(hart->moved_count, __ATOMIC_ACQUIRE);
    for (int mode = 0; mode < CRB_MODES; mode++) {
        crb_tlb *tlb = &hart->tlbs[mode];
        const bool logged = tlb->filled <= CRB_TLB_LOG;
        const uint32_t count = logged ? tlb->filled : CRB_TLB_SIZE;
        for (uint32_t i = 0; i < count; i++) {
            crb_tlb_entry *entry = &tlb->read[logged ? tlb->log[i] : i];
            if (entry->tag == CRB_TLB_EMPTY) continue;
            if (is_left(memory, entry->tag + entry->addend)) entry->tag = CRB_TLB_EMPTY;
        }
    }
}

// After a move of this hart's own: only what shows the page in its base goes.
static void moved_page(crb_hart *hart, const uint8_t *base, uint64_t page) {
    hart->moved_seen++;
    if ((hart->loaded[page / 64] >> (page % 64) & 1) == 0) return;
    for (int mode = 0; mode < CRB_MODES; mode++)
        purge(&hart->tlbs[mode], hart->tlbs[mode].read, (uintptr_t)base & CRB_PAGE_MASK);
}

// The host address of RAM that may have a base, or whose state a write changes. With several harts
// a page of the base is copied when it is first read: another hart's first write could not
// otherwise be seen without a fence (see README.md).
static CRB_COLD uint8_t *translate(crb_hart *hart, uint64_t gpa, bool write, uint64_t page) {
    crb_machine *machine = hart->machine;
    uint64_t length = 1;
    const uint64_t before = __atomic_load_n(hart->moved_count, __ATOMIC_ACQUIRE);
    uint8_t *from = crb_translate(machine->memory, gpa, &length, false);
    uint8_t *host = from;
    if (write)
        host = crb_translate(machine->memory, gpa, &length, true);
    else if (machine->copy_on_read)
        host = crb_translate_overlay(machine->memory, gpa, &length);
    const uint64_t after = __atomic_load_n(hart->moved_count, __ATOMIC_ACQUIRE);
    // One move in between, and this page's was in between: so it was that one.
    if (host != from && after == before + 1 && hart->moved_seen == before)
        moved_page(hart, from, page);
    else if (after != hart->moved_seen)
        crb_moved(hart);
    return host;
}

// The host address of RAM and its page number; NULL when it is none. A write needs crb_translate
// only for what it marks: once a page is dirty, our own stores to decoded code are tracked by
// granule, and marking it STALE as well would only drop good blocks. (A frozen page is not dirty.)
//
// Whoever moved a page in the overlay that is found here has counted it (memory.c, own_page), and
// then what the read TLB has of its base goes before anything is stored to the overlay.
static inline uint8_t *ram(crb_hart *hart, uint64_t gpa, bool write, uint64_t *page) {
    const crb_machine *machine = hart->machine;
    for (uint32_t i = 0; i < machine->memory->n_regions; i++) {
        const crb_region *region = &machine->memory->regions[i];
        const uint64_t offset = gpa - region->gpa;
        if (offset >= region->size) continue;
        *page = machine->first_page[i] + (offset >> CRB_PAGE_SHIFT);
        if (region->base == NULL && !write) return region->overlay + offset;
        const uint8_t *at = &region->state[offset >> CRB_PAGE_SHIFT];
        const uint8_t state = region->state == NULL ? CRB_PAGE_OVERLAY | CRB_PAGE_DIRTY
                                                    : __atomic_load_n(at, __ATOMIC_ACQUIRE);
        const bool over = region->base == NULL ||
                          (state & (CRB_PAGE_OVERLAY | CRB_PAGE_COPYING)) == CRB_PAGE_OVERLAY;
        if (region->base != NULL &&
            __atomic_load_n(hart->moved_count, __ATOMIC_ACQUIRE) != hart->moved_seen)
            crb_moved(hart);
        if (over && (!write || (state & CRB_PAGE_DIRTY) != 0)) return region->overlay + offset;
        return translate(hart, gpa, write, *page);
    }
    return NULL;
}

static uint64_t *pte_address(crb_hart *hart, uint64_t gpa, bool write) {
    uint64_t page;
    return (uint64_t *)(void *)ram(hart, gpa, write, &page);
}

// Sets A, and D for a write. False when the entry changed meanwhile: walk again.
static bool set_accessed(crb_hart *hart, uint64_t at, uint64_t *pte, crb_access access) {
    const uint64_t wanted = *pte | PTE_A | (access == CRB_WRITE ? PTE_D : 0);
    if (wanted == *pte) return true;
    uint64_t page = 0;
    uint64_t *host = (uint64_t *)(void *)ram(hart, at, true, &page);
    if (!__atomic_compare_exchange_n(host, pte, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return false;
    // A table may lie in a page that also holds code.
    crb_code_written(hart, page, CRB_OFFSET(at), sizeof(uint64_t));
    *pte = wanted;
    return true;
}

static bool malformed(uint64_t pte) {
    return (pte & PTE_V) == 0 || (pte & PTE_RESERVED) != 0 || (pte & PTE_PBMT) == PTE_PBMT ||
           (pte & (PTE_R | PTE_W)) == PTE_W;
}

// Where the last level's table for an address is, kept until the next fence or change of satp.
static crb_walk_entry *walk_entry(crb_hart *hart, uint64_t va) {
    return &hart->walks[va >> CRB_SPAN_SHIFT & (CRB_WALKS - 1)];
}

// One walk: CRB_NEXT, CRB_TRAP, or CRB_AGAIN when another hart changed the entry.
static crb_result walk_once(crb_hart *hart, uint64_t va, crb_access access, found *out) {
    const int levels = hart->satp >> 60 == 8 ? 3 : 4;
    const int unused = 64 - (12 + 9 * levels);
    if ((uint64_t)((int64_t)(va << unused) >> unused) != va) return page_fault(hart, va, access);
    uint64_t table = (hart->satp & 0xfffffffffffull) << CRB_PAGE_SHIFT;
    crb_walk_entry *cached = walk_entry(hart, va);
    const bool hit = cached->span == va >> CRB_SPAN_SHIFT && cached->gen == hart->walk_gen;
    if (hit) table = cached->table;
    for (int level = hit ? 0 : levels - 1; level >= 0; level--) {
        const int shift = CRB_PAGE_SHIFT + 9 * level;
        const uint64_t at = table + (va >> shift & 511) * 8;
        const uint64_t *host = pte_address(hart, at, false);
        if (host == NULL) return access_fault(hart, va, access);
        uint64_t pte = __atomic_load_n(host, __ATOMIC_ACQUIRE);
        if (malformed(pte)) return page_fault(hart, va, access);
        table = PTE_PPN(pte) << CRB_PAGE_SHIFT;
        if ((pte & (PTE_R | PTE_X)) == 0) {
            if ((pte & (PTE_A | PTE_D | PTE_U | PTE_PBMT | PTE_N)) != 0) break;
            if (level == 1)
                *cached = (crb_walk_entry){
                    .span = va >> CRB_SPAN_SHIFT, .table = table, .gen = hart->walk_gen};
            continue;
        }
        const bool napot = (pte & PTE_N) != 0;
        const uint64_t within = napot ? 0xffff : (1ull << shift) - 1;
        if (napot && (level > 0 || (table & within) != 0x8000)) break;
        if (napot) table &= ~within;
        if (!permitted(hart, pte, access) || (table & within) != 0) break;
        if (!set_accessed(hart, at, &pte, access)) return CRB_AGAIN;
        *out = (found){.gpa = table | (va & within), .pte = pte, .superpage = level > 0 || napot};
        return CRB_NEXT;
    }
    return page_fault(hart, va, access);
}

static crb_result walk(crb_hart *hart, uint64_t va, crb_access access, found *out) {
    if (hart->satp == 0) {
        *out = (found){.gpa = va, .pte = PTE_G | PTE_R | PTE_W | PTE_X | PTE_D};
        return CRB_NEXT;
    }
    crb_result result = CRB_AGAIN;
    while (result == CRB_AGAIN)
        result = walk_once(hart, va, access, out);
    const int half = va >> 63 != 0;
    if (result == CRB_NEXT && out->superpage) {
        const uint64_t page = va & CRB_PAGE_MASK;
        if (page < hart->super_low[half]) hart->super_low[half] = page;
        if (page > hart->super_high[half]) hart->super_high[half] = page;
    }
    return result;
}

static void note_nonglobal(crb_hart *hart, uint64_t pte) {
    if (hart->privilege == 1 && (pte & PTE_G) == 0) hart->s_nonglobal = true;
}

crb_result crb_walk(crb_hart *hart, uint64_t va, crb_access access, uint64_t *gpa) {
    found out;
    const crb_result result = walk(hart, va, access, &out);
    if (result != CRB_NEXT) return result;
    note_nonglobal(hart, out.pte);
    *gpa = out.gpa;
    return CRB_NEXT;
}

// ---- Flushing

static void flush_set(crb_tlb *tlb) {
    if (tlb->filled > CRB_TLB_LOG) {
        for (uint32_t i = 0; i < CRB_TLB_SIZE; i++)
            tlb->read[i].tag = tlb->write[i].tag = CRB_TLB_EMPTY;
    } else {
        for (uint32_t i = 0; i < tlb->filled; i++)
            tlb->read[tlb->log[i]].tag = tlb->write[tlb->log[i]].tag = CRB_TLB_EMPTY;
    }
    tlb->filled = 0;
}

void crb_tlb_flush(crb_hart *hart) {
    hart->counters.tlb_flushes++;
    hart->walk_gen++;
    if (hart->gen == 0)
        for (int mode = 0; mode < CRB_MODES; mode++)
            hart->tlbs[mode].filled = UINT32_MAX;
    for (int mode = 0; mode < CRB_MODES; mode++)
        flush_set(&hart->tlbs[mode]);
    for (int half = 0; half < 2; half++) {
        hart->super_low[half] = UINT64_MAX;
        hart->super_high[half] = 0;
    }
    hart->s_nonglobal = false;
    crb_exec_flush(hart, 0);
    crb_exec_flush(hart, 1);
}

// What an address space owns. S without SUM sees no user page, so its entries are global ones
// unless the supervisor made others.
void crb_tlb_flush_asid(crb_hart *hart) {
    if (hart->s_nonglobal) {
        crb_tlb_flush(hart);
        return;
    }
    hart->walk_gen++;
    flush_set(&hart->tlbs[CRB_MODE_U]);
    flush_set(&hart->tlbs[CRB_MODE_SUM]);
    crb_exec_flush(hart, 0);
}

void crb_tlb_flush_va(crb_hart *hart, uint64_t va) {
    const uint64_t page = va & CRB_PAGE_MASK;
    const uint32_t index = page >> CRB_PAGE_SHIFT & (CRB_TLB_SIZE - 1);
    const int half = va >> 63 != 0;
    // The page may be a piece of a superpage whose other pieces must go too.
    if (page >= hart->super_low[half] && page <= hart->super_high[half]) {
        crb_tlb_flush(hart);
        return;
    }
    hart->walk_gen++;
    for (int mode = 0; mode < CRB_MODES; mode++) {
        hart->tlbs[mode].read[index].tag = CRB_TLB_EMPTY;
        hart->tlbs[mode].write[index].tag = CRB_TLB_EMPTY;
    }
    crb_exec_flush_va(hart, va);
}

void crb_tlb_flush_writes(crb_hart *hart) {
    for (int mode = 0; mode < CRB_MODES; mode++)
        for (uint32_t i = 0; i < CRB_TLB_SIZE; i++)
            hart->tlbs[mode].write[i].tag = CRB_TLB_EMPTY;
}

void crb_tlb_purge_page(crb_hart *hart, uint64_t page) {
    if ((hart->stored[page / 64] >> (page % 64) & 1) == 0) return;
    uint64_t length = 1;
    const uint64_t gpa = crb_page_gpa(hart->machine, page);
    const uint64_t host = (uintptr_t)crb_translate(hart->machine->memory, gpa, &length, false);
    for (int mode = 0; mode < CRB_MODES; mode++)
        purge(&hart->tlbs[mode], hart->tlbs[mode].write, host);
}

void crb_set_mode(crb_hart *hart) {
    hart->mode = hart->privilege == 0                   ? CRB_MODE_U
                 : (hart->status & CRB_STATUS_SUM) != 0 ? CRB_MODE_SUM
                                                        : CRB_MODE_S;
    hart->tlb = &hart->tlbs[hart->mode];
    hart->jump_gen = hart->mode_gen[hart->privilege];
}

// ---- Filling

static void log_fill(crb_tlb *tlb, uint32_t index) {
    if (tlb->filled < CRB_TLB_LOG) tlb->log[tlb->filled] = (uint16_t)index;
    if (tlb->filled <= CRB_TLB_LOG) tlb->filled++;
}

// Host address of `va`, now in the TLB; NULL when *result says trap, or with CRB_NEXT when it is no
// RAM (*gpa). *page is its number.
static uint8_t *fill(crb_hart *hart, uint64_t va, bool write, crb_result *result, uint64_t *gpa,
                     uint64_t *page) {
    found out;
    *result = walk(hart, va, write ? CRB_WRITE : CRB_READ, &out);
    if (*result != CRB_NEXT) return NULL;
    *gpa = out.gpa;
    uint8_t *host = ram(hart, out.gpa & CRB_PAGE_MASK, write, page);
    if (host == NULL) return NULL;
    if (CRB_UNLIKELY(hart->debug != NULL) && crb_debug_watches_page(hart, va))
        return host + CRB_OFFSET(va);
    const uint64_t tag = va & CRB_PAGE_MASK;
    const uint32_t index = tag >> CRB_PAGE_SHIFT & (CRB_TLB_SIZE - 1);
    const uint64_t addend = (uintptr_t)host - tag;
    crb_tlb *tlb = hart->tlb;
    // With SUM it goes with the address space in any case, as what is copied from and to users
    // does.
    if (hart->mode != CRB_MODE_SUM) note_nonglobal(hart, out.pte);
    log_fill(tlb, index);
    hart->counters.tlb_fills++;
    if (!write) {
        hart->loaded[*page / 64] |= 1ull << (*page % 64);
        tlb->read[index] = (crb_tlb_entry){.tag = tag, .addend = addend};
    } else {
        hart->stored[*page / 64] |= 1ull << (*page % 64);
        const bool code = __atomic_load_n(&hart->machine->granules[*page], __ATOMIC_SEQ_CST) != 0;
        tlb->write[index] =
            (crb_tlb_entry){.tag = tag | (code ? CRB_TLB_CODE : 0), .addend = addend};
    }
    return host + CRB_OFFSET(va);
}

// ---- Slow loads and stores

typedef struct __attribute__((packed)) unaligned {
    uint64_t value;
} unaligned;

static uint64_t get(const uint8_t *host, uint32_t size) {
    uint64_t value = 0;
    switch (size) {
    case 1:
        return *host;
    case 2:
        memcpy(&value, host, 2);
        return value;
    case 4:
        memcpy(&value, host, 4);
        return value;
    default:
        return ((const unaligned *)(const void *)host)->value;
    }
}

static void put(uint8_t *host, uint32_t size, uint64_t value) {
    switch (size) {
    case 1:
        *host = (uint8_t)value;
        break;
    case 2:
        memcpy(host, &value, 2);
        break;
    case 4:
        memcpy(host, &value, 4);
        break;
    default:
        ((unaligned *)(void *)host)->value = value;
    }
}

// Across two pages: both are translated before either is touched. Devices take no such access.
typedef struct halves {
    uint8_t *host[2];
    uint64_t page[2];
    uint32_t first; // bytes in the first page
} halves;

static crb_result translate_across(crb_hart *hart, uint64_t va, bool write, halves *out) {
    out->first = CRB_PAGE_SIZE - (uint32_t)CRB_OFFSET(va);
    for (int i = 0; i < 2; i++) {
        const uint64_t at = i == 0 ? va : va + out->first;
        crb_result result;
        uint64_t gpa;
        out->host[i] = fill(hart, at, write, &result, &gpa, &out->page[i]);
        if (result != CRB_NEXT) return result;
        if (out->host[i] == NULL) return access_fault(hart, at, write ? CRB_WRITE : CRB_READ);
    }
    return CRB_NEXT;
}

static crb_result load_across(crb_hart *hart, uint64_t va, uint32_t size, uint64_t *value) {
    halves at;
    const crb_result result = translate_across(hart, va, false, &at);
    if (result != CRB_NEXT) return result;
    uint8_t bytes[8] = {0};
    memcpy(bytes, at.host[0], at.first);
    memcpy(bytes + at.first, at.host[1], size - at.first);
    memcpy(value, bytes, sizeof *value);
    return CRB_NEXT;
}

static crb_result store_across(crb_hart *hart, uint64_t va, uint32_t size, uint64_t value) {
    halves at;
    const crb_result result = translate_across(hart, va, true, &at);
    if (result != CRB_NEXT) return result;
    memcpy(at.host[0], &value, at.first);
    memcpy(at.host[1], (uint8_t *)&value + at.first, size - at.first);
    crb_code_written(hart, at.page[0], CRB_OFFSET(va), at.first);
    crb_code_written(hart, at.page[1], 0, size - at.first);
    return CRB_NEXT;
}

static crb_result at_va(crb_hart *hart, crb_result result, uint64_t va) {
    if (result == CRB_TRAP) hart->tval = va;
    return result;
}

crb_result crb_load_slow(crb_hart *hart, uint64_t va, uint32_t size, uint64_t *value) {
    if (CRB_UNLIKELY(hart->debug != NULL)) crb_debug_access(hart, va, size, CRB_WATCH_READ);
    if (CRB_OFFSET(va) + size > CRB_PAGE_SIZE) return load_across(hart, va, size, value);
    crb_result result;
    uint64_t gpa;
    uint64_t page;
    const uint8_t *host = fill(hart, va, false, &result, &gpa, &page);
    if (result != CRB_NEXT) return result;
    if (host == NULL) return at_va(hart, crb_mmio_load(hart, gpa, size, value), va);
    *value = get(host, size);
    return CRB_NEXT;
}

// A store to a page with code, its mapping known.
static crb_result store_code(crb_hart *hart, crb_tlb_entry *entry, uint64_t va, uint32_t size,
                             uint64_t value) {
    crb_machine *machine = hart->machine;
    uint8_t *host = (uint8_t *)(uintptr_t)(va + entry->addend);
    const uint64_t page = crb_page_of_host(machine, host);
    put(host, size, value);
    crb_code_written(hart, page, CRB_OFFSET(va), size);
    if (__atomic_load_n(&machine->granules[page], __ATOMIC_SEQ_CST) == 0)
        entry->tag &= ~CRB_TLB_CODE;
    return CRB_NEXT;
}

crb_result crb_store_slow(crb_hart *hart, uint64_t va, uint32_t size, uint64_t value) {
    if (CRB_UNLIKELY(hart->debug != NULL)) crb_debug_access(hart, va, size, CRB_WATCH_WRITE);
    if (CRB_OFFSET(va) + size > CRB_PAGE_SIZE) return store_across(hart, va, size, value);
    crb_tlb_entry *entry = &hart->tlb->write[va >> CRB_PAGE_SHIFT & (CRB_TLB_SIZE - 1)];
    if (entry->tag == ((va & CRB_PAGE_MASK) | CRB_TLB_CODE))
        return store_code(hart, entry, va, size, value);
    crb_result result;
    uint64_t gpa;
    uint64_t page;
    uint8_t *host = fill(hart, va, true, &result, &gpa, &page);
    if (result != CRB_NEXT) return result;
    if (host == NULL) return at_va(hart, crb_mmio_store(hart, gpa, size, value), va);
    put(host, size, value);
    crb_code_written(hart, page, CRB_OFFSET(va), size);
    return CRB_NEXT;
}

uint8_t *crb_atomic_slow(crb_hart *hart, uint64_t va, uint32_t size, bool write) {
    if (va % size != 0) {
        crb_raise(hart, write ? CRB_CAUSE_STORE_MISALIGNED : CRB_CAUSE_LOAD_MISALIGNED, va);
        return NULL;
    }
    crb_result result;
    uint64_t gpa;
    uint64_t page;
    if (CRB_UNLIKELY(hart->debug != NULL))
        crb_debug_access(hart, va, size, write ? CRB_WATCH_READ | CRB_WATCH_WRITE : CRB_WATCH_READ);
    uint8_t *host = fill(hart, va, write, &result, &gpa, &page);
    if (result != CRB_NEXT) return NULL;
    if (host == NULL)
        access_fault(hart, va, write ? CRB_WRITE : CRB_READ);
    else if (write)
        crb_code_written(hart, page, CRB_OFFSET(va), size);
    return host;
}

// Kernels clear pages by it, so all blocks of a page but the first hit the TLB.
crb_result crb_zero_block(crb_hart *hart, uint64_t va) {
    crb_result result;
    uint64_t gpa;
    uint64_t page;
    const crb_tlb_entry *entry = &hart->tlb->write[va >> CRB_PAGE_SHIFT & (CRB_TLB_SIZE - 1)];
    if (CRB_LIKELY(entry->tag == (va & CRB_PAGE_MASK))) {
        memset((uint8_t *)(uintptr_t)((va & ~63ull) + entry->addend), 0, 64);
        return CRB_NEXT;
    }
    if (CRB_UNLIKELY(hart->debug != NULL)) crb_debug_access(hart, va & ~63ull, 64, CRB_WATCH_WRITE);
    uint8_t *host = fill(hart, va & ~63ull, true, &result, &gpa, &page);
    if (result != CRB_NEXT) return at_va(hart, result, va);
    if (host == NULL) return access_fault(hart, va, CRB_WRITE);
    memset(host, 0, 64);
    crb_code_written(hart, page, CRB_OFFSET(va & ~63ull), 64);
    return CRB_NEXT;
}
