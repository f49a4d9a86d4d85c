// Pre-decoded blocks: made, found by physical address, chained within their page, and dropped when
// their bytes change. All of it belongs to one hart; only granules and page_gen are shared.
#include "rv64/hart.h"
#include "rv64/jit.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// ---- Storage

static void *map_pages(uint64_t size) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static uint64_t hash_bytes(const crb_hart *hart) {
    return sizeof *hart->hash << hart->hash_bits;
}

int crb_blocks_init(crb_hart *hart) {
    hart->hash_bits = CRB_HASH_MIN;
    hart->ops = map_pages(CRB_MAX_OPS * sizeof *hart->ops);
    hart->meta = map_pages(CRB_MAX_OPS * sizeof *hart->meta);
    hart->blocks = map_pages(CRB_MAX_BLOCKS * sizeof *hart->blocks);
    hart->code_pages = map_pages(CRB_MAX_CODE_PAGES * sizeof *hart->code_pages);
    hart->page_index = map_pages(hart->machine->n_pages * sizeof *hart->page_index);
    hart->hash = map_pages(hash_bytes(hart));
    hart->young = map_pages(CRB_MAX_YOUNG * sizeof *hart->young);
    hart->stored = map_pages(hart->machine->n_pages / 8 + sizeof *hart->stored);
    hart->loaded = map_pages(hart->machine->n_pages / 8 + sizeof *hart->loaded);
    if (hart->ops == NULL || hart->meta == NULL || hart->blocks == NULL ||
        hart->code_pages == NULL || hart->page_index == NULL || hart->hash == NULL ||
        hart->young == NULL || hart->stored == NULL || hart->loaded == NULL)
        return -1;
    hart->n_ops = hart->n_blocks = hart->n_code_pages = 1;
    return 0;
}

static void unmap(void *at, uint64_t size) {
    if (at != NULL) munmap(at, size);
}

void crb_blocks_free(crb_hart *hart) {
    unmap(hart->ops, CRB_MAX_OPS * sizeof *hart->ops);
    unmap(hart->meta, CRB_MAX_OPS * sizeof *hart->meta);
    unmap(hart->blocks, CRB_MAX_BLOCKS * sizeof *hart->blocks);
    unmap(hart->code_pages, CRB_MAX_CODE_PAGES * sizeof *hart->code_pages);
    unmap(hart->page_index, hart->machine->n_pages * sizeof *hart->page_index);
    unmap(hart->hash, hash_bytes(hart));
    unmap(hart->young, CRB_MAX_YOUNG * sizeof *hart->young);
    unmap(hart->stored, hart->machine->n_pages / 8 + sizeof *hart->stored);
    unmap(hart->loaded, hart->machine->n_pages / 8 + sizeof *hart->loaded);
}

static uint8_t *page_state(const crb_machine *machine, uint64_t page) {
    const uint32_t i = crb_page_region(machine, page);
    uint8_t *state = machine->memory->regions[i].state;
    return state == NULL ? NULL : state + (page - machine->first_page[i]);
}

// The page is no code any more: stores to it may be fast again.
static void forget_code(crb_machine *machine, uint64_t page) {
    uint8_t *state = page_state(machine, page);
    __atomic_store_n(&machine->granules[page], 0, __ATOMIC_SEQ_CST);
    if (state != NULL)
        __atomic_and_fetch(state, (uint8_t)~(CRB_PAGE_CODE | CRB_PAGE_STALE), __ATOMIC_SEQ_CST);
}

void crb_blocks_flush(crb_hart *hart) {
    for (uint32_t i = 1; i < hart->n_code_pages; i++) {
        const uint64_t page = hart->code_pages[i].page;
        hart->page_index[page] = 0;
        if (hart->machine->n_harts == 1) forget_code(hart->machine, page);
    }
    memset(hart->hash, 0, hash_bytes(hart));
    hart->n_ops = hart->n_blocks = hart->n_code_pages = 1;
    hart->n_hashed = hart->n_young = 0;
    hart->counters.block_flushes++;
    crb_jit_flush(hart);
    crb_exec_flush(hart, 0);
    crb_exec_flush(hart, 1);
    // Writable mappings of pages that are no longer code may be fast again.
    crb_tlb_flush_writes(hart);
}

// What is zero again, its whole pages.
static void give_back(void *at, uint64_t size) {
    const uint64_t start = ((uintptr_t)at + CRB_PAGE_SIZE - 1) & CRB_PAGE_MASK;
    const uint64_t end = ((uintptr_t)at + size) & CRB_PAGE_MASK;
    if (start < end) madvise((void *)start, end - start, MADV_DONTNEED);
}

void crb_blocks_trim(crb_hart *hart) {
    crb_blocks_flush(hart);
    give_back(hart->ops, CRB_MAX_OPS * sizeof *hart->ops);
    give_back(hart->meta, CRB_MAX_OPS * sizeof *hart->meta);
    give_back(hart->blocks, CRB_MAX_BLOCKS * sizeof *hart->blocks);
    give_back(hart->code_pages, CRB_MAX_CODE_PAGES * sizeof *hart->code_pages);
    give_back(hart->hash, hash_bytes(hart));
    give_back(hart->page_index, hart->machine->n_pages * sizeof *hart->page_index);
    if (hart->machine->n_harts == 1)
        give_back(hart->machine->granules, hart->machine->n_pages * sizeof(uint64_t));
    // Of no generation that there is.
    give_back(hart->jumps, sizeof hart->jumps);
    give_back(hart->jit_jumps, sizeof hart->jit_jumps);
    crb_jit_trim(hart);
}

// ---- Jump and exec caches: entries are valid while their generation is the mode's

void crb_exec_flush(crb_hart *hart, uint32_t privilege) {
    if (hart->gen == UINT32_MAX) {
        memset(hart->jumps, 0, sizeof hart->jumps);
        memset(hart->exec, 0, sizeof hart->exec);
        crb_jit_forget_addresses(hart);
        hart->gen = 1;
        hart->mode_gen[privilege ^ 1] = 1;
    }
    hart->mode_gen[privilege] = ++hart->gen;
    hart->jump_gen = hart->mode_gen[hart->privilege];
    memset(hart->exec_filter[privilege], 0, sizeof hart->exec_filter[privilege]);
}

static uint32_t filter_bit(uint64_t va) {
    return va >> CRB_PAGE_SHIFT & (CRB_EXEC_FILTER - 1);
}

void crb_exec_flush_va(crb_hart *hart, uint64_t va) {
    const uint32_t bit = filter_bit(va);
    for (uint32_t privilege = 0; privilege < 2; privilege++)
        if ((hart->exec_filter[privilege][bit / 64] >> (bit % 64) & 1) != 0)
            crb_exec_flush(hart, privilege);
}

static bool exec_page(crb_hart *hart, uint64_t pc, uint64_t *page) {
    const uint64_t va = pc & CRB_PAGE_MASK;
    crb_exec_entry *entry = &hart->exec[va >> CRB_PAGE_SHIFT & (CRB_EXEC_ENTRIES - 1)];
    if (entry->va == va && entry->gen == hart->jump_gen) {
        *page = entry->page;
        return true;
    }
    uint64_t gpa;
    if (crb_walk(hart, pc, CRB_EXEC, &gpa) != CRB_NEXT) return false;
    if (!crb_page_number(hart->machine, gpa, page)) {
        crb_raise(hart, CRB_CAUSE_FETCH_ACCESS, pc);
        return false;
    }
    *entry = (crb_exec_entry){.va = va, .gen = hart->jump_gen, .page = (uint32_t)*page};
    const uint32_t bit = filter_bit(va);
    hart->exec_filter[hart->privilege][bit / 64] |= 1ull << (bit % 64);
    return true;
}

// ---- The hash: (page, offset) + 1 above 24 bits of operation; operation 0 is a killed block's
// place

static uint64_t hash_key(uint64_t page, uint32_t offset) {
    return (page << (CRB_PAGE_SHIFT - 1) | offset >> 1) + 1;
}

// The slot that holds the key, or the free one where it belongs.
static uint32_t hash_slot(const crb_hart *hart, uint64_t key) {
    const uint32_t mask = (1u << hart->hash_bits) - 1;
    uint32_t slot = (uint32_t)((key * 0x9e3779b97f4a7c15ull) >> (64 - hart->hash_bits));
    while (hart->hash[slot] != 0 && hart->hash[slot] >> 24 != key)
        slot = (slot + 1) & mask;
    return slot;
}

static bool hash_full(const crb_hart *hart) {
    return hart->n_hashed > (3u << hart->hash_bits) / 4;
}

// Twice as large; killed blocks stay behind. False when it cannot grow.
static bool grow_hash(crb_hart *hart) {
    if (hart->hash_bits == CRB_HASH_MAX) return false;
    uint64_t *const old = hart->hash;
    const uint64_t old_bytes = hash_bytes(hart);
    uint64_t *grown = map_pages(2 * old_bytes);
    if (grown == NULL) return false;
    hart->hash = grown;
    hart->hash_bits++;
    hart->n_hashed = 0;
    for (uint32_t i = 1; i < hart->n_blocks; i++) {
        crb_block *block = &hart->blocks[i];
        const uint64_t entry = block->slot < old_bytes / sizeof *old ? old[block->slot] : 0;
        if ((entry & 0xffffff) != block->first) continue;
        block->slot = hash_slot(hart, entry >> 24);
        hart->hash[block->slot] = entry;
        hart->n_hashed++;
    }
    unmap(old, old_bytes);
    return true;
}

static uint32_t find(const crb_hart *hart, uint64_t page, uint32_t offset) {
    return (uint32_t)hart->hash[hash_slot(hart, hash_key(page, offset))] & 0xffffff;
}

// ---- Code pages

// What crb_code_written() looks at, set before the first byte is read; returns what was set before.
// With several harts under the lock: a page is marked wholly before or wholly after another hart
// forgets it (forget_shared).
static uint64_t set_granules(crb_machine *machine, uint64_t page, uint64_t granules) {
    uint8_t *state = page_state(machine, page);
    if (machine->n_harts > 1) pthread_mutex_lock(&machine->lock);
    const uint64_t before = __atomic_fetch_or(&machine->granules[page], granules, __ATOMIC_SEQ_CST);
    if (before == 0 && state != NULL) __atomic_or_fetch(state, CRB_PAGE_CODE, __ATOMIC_SEQ_CST);
    if (machine->n_harts > 1) pthread_mutex_unlock(&machine->lock);
    return before;
}

static void ask_purge(crb_hart *hart) {
    crb_machine *machine = hart->machine;
    for (uint32_t i = 0; i < machine->n_harts; i++) {
        crb_hart *other = machine->harts[i];
        if (other == hart) continue;
        __atomic_add_fetch(&other->purge_wanted, 1, __ATOMIC_SEQ_CST);
        crb_attract(other, CRB_ATTENTION_PURGE);
    }
}

// Other harts may write the page unseen until they have served their purges, whoever asked for
// them: fence.i waits for that and drops what was decoded until then.
static void make_young(crb_hart *hart, crb_code_page *code) {
    code->marked = true;
    if (hart->n_young == CRB_MAX_YOUNG) return; // all are, then
    hart->young[hart->n_young++] = (uint32_t)(code - hart->code_pages);
}

// From now on every writer of the page is seen.
static void mark_code(crb_hart *hart, crb_code_page *code, uint64_t granules) {
    const bool several = hart->machine->n_harts > 1;
    code->granules |= granules;
    code->stores = 0;
    const uint64_t before = set_granules(hart->machine, code->page, granules);
    if (before == 0 || (several && !code->marked)) crb_tlb_purge_page(hart, code->page);
    if (several && !code->marked) make_young(hart, code);
    if (several && before == 0) ask_purge(hart);
}

static crb_code_page *code_page(crb_hart *hart, uint64_t page) {
    uint32_t index = hart->page_index[page];
    if (index == 0) {
        index = hart->n_code_pages++;
        hart->page_index[page] = index;
        hart->code_pages[index] = (crb_code_page){
            .page = page,
            .gen = __atomic_load_n(&hart->machine->page_gen[page], __ATOMIC_SEQ_CST),
        };
    }
    return &hart->code_pages[index];
}

// ---- Killing: the first operation sends whoever comes back to the look-up; the rest stays until
// the next flush, so a block may kill itself.

static void kill_block(crb_hart *hart, crb_block *block) {
    crb_op *op = &hart->ops[block->first];
    if (op->kind == CRB_OP_NATIVE) crb_jit_kill(hart, (uint32_t)op->imm);
    op->handler = crb_handlers[CRB_OP_DEAD];
    op->kind = CRB_OP_DEAD;
    hart->hash[block->slot] &= ~0xffffffull;
}

static void kill_granules(crb_hart *hart, crb_code_page *code, uint64_t granules) {
    uint64_t left = 0;
    uint32_t *link = &code->blocks;
    while (*link != 0) {
        crb_block *block = &hart->blocks[*link];
        if ((block->granules & granules) != 0) {
            kill_block(hart, block);
            *link = block->next;
        } else {
            left |= block->granules;
            link = &block->next;
        }
    }
    code->granules = left;
    if (hart->machine->n_harts == 1 && left != 0)
        __atomic_store_n(&hart->machine->granules[code->page], left, __ATOMIC_SEQ_CST);
}

// A page without blocks stays marked as code for some stores: it may be one that is rewritten and
// run in turns, and marking it again would cost a search of the TLB each time. With several harts
// it is others' blocks that may be there, so more of them.
#define STORES_TO_FORGET        64
#define STORES_TO_FORGET_SHARED 512

// The new generation comes before the writes that nobody sees any more, so blocks that other harts
// have are dropped at their next fence.i.
static void forget_shared(crb_machine *machine, uint64_t page) {
    pthread_mutex_lock(&machine->lock);
    __atomic_add_fetch(&machine->page_gen[page], 1, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&machine->memory->header->stale_count, 1, __ATOMIC_SEQ_CST);
    forget_code(machine, page);
    pthread_mutex_unlock(&machine->lock);
}

static void stored_beside(crb_hart *hart, crb_code_page *code) {
    crb_machine *machine = hart->machine;
    if (code->granules != 0) return;
    code->stores++;
    if (machine->n_harts == 1 && code->stores >= STORES_TO_FORGET) forget_code(machine, code->page);
    if (machine->n_harts > 1 && code->stores >= STORES_TO_FORGET_SHARED) {
        code->stores = 0;
        forget_shared(machine, code->page);
    }
}

static uint64_t granule_mask(uint64_t offset, uint64_t size) {
    const uint64_t first = offset >> 6;
    const uint64_t last = (offset + size - 1) >> 6;
    return (UINT64_MAX << first) & (UINT64_MAX >> (63 - last));
}

void crb_code_written(crb_hart *hart, uint64_t page, uint64_t offset, uint64_t size) {
    crb_machine *machine = hart->machine;
    const uint64_t granules = __atomic_load_n(&machine->granules[page], __ATOMIC_SEQ_CST);
    if (granules == 0) return;
    const uint64_t mask = granule_mask(offset, size);
    // Another hart's page becomes one of ours to count the stores, while there is room.
    const bool known = hart->page_index[page] != 0 || hart->n_code_pages < CRB_MAX_CODE_PAGES;
    crb_code_page *code = known ? code_page(hart, page) : NULL;
    if (known) stored_beside(hart, code);
    if ((granules & mask) == 0) return;
    if (known && (code->granules & mask) != 0) kill_granules(hart, code, mask);
    if (machine->n_harts == 1) return;
    const uint32_t gen = __atomic_fetch_add(&machine->page_gen[page], 1, __ATOMIC_SEQ_CST);
    if (known && code->gen == gen) code->gen = gen + 1;
    __atomic_add_fetch(&machine->memory->header->stale_count, 1, __ATOMIC_SEQ_CST);
}

// STALE becomes a new page_gen, which every hart compares; cleared only behind that.
static void check_page(crb_hart *hart, crb_code_page *code) {
    crb_machine *machine = hart->machine;
    uint8_t *state = page_state(machine, code->page);
    uint32_t *gen = &machine->page_gen[code->page];
    if (state != NULL && (__atomic_load_n(state, __ATOMIC_SEQ_CST) & CRB_PAGE_STALE) != 0) {
        __atomic_add_fetch(gen, 1, __ATOMIC_SEQ_CST);
        __atomic_and_fetch(state, (uint8_t)~CRB_PAGE_STALE, __ATOMIC_SEQ_CST);
    }
    const uint32_t now = __atomic_load_n(gen, __ATOMIC_SEQ_CST);
    if (now == code->gen) return;
    code->gen = now;
    code->marked = false;
    kill_granules(hart, code, UINT64_MAX);
    if (machine->n_harts == 1) forget_code(machine, code->page);
}

static void settle_young(crb_hart *hart) {
    crb_machine *machine = hart->machine;
    for (uint32_t i = 0; i < machine->n_harts; i++) {
        crb_hart *other = machine->harts[i];
        if (other != hart) crb_await(hart, other, &other->purge_wanted, &other->purge_done);
    }
    const bool all = hart->n_young == CRB_MAX_YOUNG;
    const uint32_t count = all ? hart->n_code_pages - 1 : hart->n_young;
    for (uint32_t i = 0; i < count; i++)
        kill_granules(hart, &hart->code_pages[all ? i + 1 : hart->young[i]], UINT64_MAX);
    hart->n_young = 0;
}

void crb_drop_stale(crb_hart *hart, bool fence) {
    if (fence && hart->n_young != 0) settle_young(hart);
    const uint64_t count =
        __atomic_load_n(&hart->machine->memory->header->stale_count, __ATOMIC_SEQ_CST);
    if (count == hart->stale_seen) return;
    hart->stale_seen = count;
    for (uint32_t i = 1; i < hart->n_code_pages; i++)
        check_page(hart, &hart->code_pages[i]);
}

// ---- Decoding

static void put_end(crb_op *op, crb_op_meta *meta, uint32_t offset, uint32_t count) {
    const uint32_t kind = offset < CRB_PAGE_SIZE ? CRB_OP_END_U : CRB_OP_END_X;
    *op = (crb_op){.handler = crb_handlers[kind],
                   .kind = (uint8_t)kind,
                   .rd = (uint8_t)count,
                   .imm = (int32_t)offset};
    *meta = (crb_op_meta){.offset = (uint16_t)offset, .count = (uint8_t)count};
}

static uint32_t load_half(const uint8_t *host, uint32_t offset) {
    return __atomic_load_n((const uint16_t *)(const void *)(host + offset), __ATOMIC_RELAXED);
}

static bool decode_half_or_word(crb_op *op, uint32_t half, uint32_t word, uint32_t offset,
                                uint32_t count) {
    if ((half & 3) == 3) return crb_decode(op, word, 4, offset, count);
    const bool ended = crb_decode(op, crb_rvc_expand(half), 2, offset, count);
    if (op->kind == CRB_OP_ILLEGAL) op->imm = (int32_t)half;
    return ended;
}

// The word's second half lies in the next page, whatever that is mapped to when it runs.
static void put_straddle(crb_op *op, crb_op_meta *meta, uint32_t word) {
    const uint32_t offset = CRB_PAGE_SIZE - 2;
    *op = (crb_op){
        .handler = crb_handlers[CRB_OP_STRADDLE], .kind = CRB_OP_STRADDLE, .imm = (int32_t)word};
    put_end(op + 2, meta + 2, offset + 4, 1);
    put_end(op + 3, meta + 3, offset + 4, 1);
    crb_decode(op + 1, word, 4, offset, 0);
    meta[0] = (crb_op_meta){.offset = (uint16_t)offset};
    meta[1] = (crb_op_meta){.offset = (uint16_t)offset, .length = 4};
}

static void put_entry(crb_op *op, const struct crb_jit *jit) {
    *op = (crb_op){
        .handler = crb_handlers[CRB_OP_ENTRY], .kind = CRB_OP_ENTRY, .imm = (int32_t)jit->heat};
}

// Fills ops from n_ops on; returns the slots used.
static uint32_t decode_ops(crb_hart *hart, crb_code_page *code, const uint8_t *host,
                           uint32_t offset, uint64_t *granules) {
    crb_op *const op = &hart->ops[hart->n_ops];
    crb_op_meta *const meta = &hart->meta[hart->n_ops];
    const uint32_t first = hart->jit != NULL && hart->debug == NULL;
    const uint32_t most = hart->debug == NULL ? CRB_BLOCK_INSNS : 1;
    uint32_t count = 0;
    uint32_t slot = first;
    meta[0] = (crb_op_meta){.offset = (uint16_t)offset};
    if (first != 0) put_entry(op, hart->jit);
    for (bool ended = false; !ended && count < most && offset < CRB_PAGE_SIZE; count++) {
        const uint64_t mask = granule_mask(offset, offset == CRB_PAGE_SIZE - 2 ? 2 : 4);
        if ((code->granules & mask) != mask) mark_code(hart, code, mask);
        *granules |= mask;
        const uint32_t half = load_half(host, offset);
        const uint32_t length = (half & 3) == 3 ? 4 : 2;
        if (offset + length > CRB_PAGE_SIZE) {
            if (count > 0) break;
            put_straddle(op + first, meta + first, half);
            return 4 + first;
        }
        const uint32_t word = length == 4 ? half | load_half(host, offset + 2) << 16 : half;
        meta[slot] = (crb_op_meta){
            .offset = (uint16_t)offset, .count = (uint8_t)count, .length = (uint8_t)length};
        ended = decode_half_or_word(&op[slot], half, word, offset, count);
        offset += length;
        // A NOP only counts (traced kernels have two at the start of every function), but the first
        // operation is where a killed block is entered, so it is the first instruction's.
        slot += op[slot].kind != CRB_OP_NOP || slot == 0;
    }
    const uint32_t end = slot + (slot > first && crb_has_data(op[slot - 1].kind));
    put_end(&op[end], &meta[end], offset, count);
    for (uint32_t i = first; i + 1 < slot; i++)
        i += crb_fuse(&op[i]);
    return end + 1;
}

static crb_op *decode_block(crb_hart *hart, uint64_t page, uint32_t offset) {
    if (hart->n_ops + CRB_BLOCK_SLOTS > CRB_MAX_OPS || hart->n_blocks == CRB_MAX_BLOCKS ||
        (hash_full(hart) && !grow_hash(hart)) || hart->n_code_pages == CRB_MAX_CODE_PAGES)
        crb_blocks_flush(hart);
    crb_code_page *code = code_page(hart, page);
    // Code before it is looked up: who moves the page from its base later sees that it is.
    const uint64_t mask = granule_mask(offset, 2);
    if ((code->granules & mask) == 0) mark_code(hart, code, mask);
    uint64_t length = CRB_PAGE_SIZE;
    const uint8_t *host =
        crb_translate(hart->machine->memory, crb_page_gpa(hart->machine, page), &length, false);
    uint64_t granules = 0;
    const uint32_t first = hart->n_ops;
    hart->n_ops += decode_ops(hart, code, host, offset, &granules);
    const uint32_t slot = hash_slot(hart, hash_key(page, offset));
    hart->n_hashed += hart->hash[slot] == 0;
    hart->hash[slot] = hash_key(page, offset) << 24 | first;
    hart->blocks[hart->n_blocks] = (crb_block){.granules = granules,
                                               .first = first,
                                               .next = code->blocks,
                                               .slot = slot,
                                               .code_page = (uint32_t)(code - hart->code_pages)};
    code->blocks = hart->n_blocks++;
    hart->counters.blocks_decoded++;
    return &hart->ops[first];
}

static crb_op *block_at(crb_hart *hart, uint64_t page, uint32_t offset) {
    const uint32_t found = find(hart, page, offset);
    return found != 0 ? &hart->ops[found] : decode_block(hart, page, offset);
}

crb_op *crb_block_at(crb_hart *hart, uint32_t code_page, uint32_t offset) {
    return block_at(hart, hart->code_pages[code_page].page, offset);
}

crb_op *crb_lookup(crb_hart *hart, uint64_t pc) {
    uint64_t page;
    if (!exec_page(hart, pc, &page)) return NULL;
    crb_op *op = block_at(hart, page, (uint32_t)CRB_OFFSET(pc));
    hart->jumps[crb_jump_slot(pc)] =
        (crb_jump){.pc = pc, .op = (uint32_t)(op - hart->ops), .gen = hart->jump_gen};
    return op;
}

uint32_t crb_fetch_word(crb_hart *hart, uint64_t pc) {
    uint32_t word = 0;
    for (uint32_t at = 0; at < 4; at += 2) {
        uint64_t page;
        uint64_t length = 2;
        if (!exec_page(hart, pc + at, &page)) return word;
        const uint8_t *host =
            crb_translate(hart->machine->memory, crb_page_gpa(hart->machine, page), &length, false);
        word |= load_half(host, (uint32_t)CRB_OFFSET(pc + at)) << 8 * at;
        if ((word & 3) != 3) break;
    }
    return word;
}

// ---- Chaining

// Blocks lie in the order of their operations.
static const crb_block *block_of(const crb_hart *hart, uint32_t op) {
    uint32_t low = 1;
    uint32_t high = hart->n_blocks;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (hart->blocks[middle].first <= op)
            low = middle;
        else
            high = middle;
    }
    return &hart->blocks[low];
}

uint32_t crb_code_page_of(const crb_hart *hart, const crb_op *op) {
    return block_of(hart, (uint32_t)(op - hart->ops))->code_page;
}

static uint8_t linked_kind(uint8_t kind) {
    switch (kind) {
    case CRB_OP_J_U:
        return CRB_OP_J_L;
    case CRB_OP_JAL_U:
        return CRB_OP_JAL_L;
    case CRB_OP_END_U:
        return CRB_OP_END_L;
    default:
        return kind + (CRB_OP_BEQ_L - CRB_OP_BEQ_U);
    }
}

crb_op *crb_link(crb_hart *hart, crb_op *op) {
    const crb_block *block = block_of(hart, (uint32_t)(op - hart->ops));
    const uint64_t flushes = hart->counters.block_flushes;
    crb_op *to = block_at(hart, hart->code_pages[block->code_page].page, (uint32_t)op->imm);
    if (flushes != hart->counters.block_flushes) return to;
    op->kind = linked_kind(op->kind);
    op->handler = crb_handlers[op->kind];
    op->imm = (int32_t)(to - hart->ops);
    return to;
}

crb_result crb_straddle(crb_hart *hart, crb_op *op, uint64_t page_va) {
    uint64_t page;
    if (!exec_page(hart, page_va + CRB_PAGE_SIZE, &page)) return CRB_TRAP;
    uint64_t length = 2;
    const uint8_t *host =
        crb_translate(hart->machine->memory, crb_page_gpa(hart->machine, page), &length, false);
    const uint32_t word = ((uint32_t)op->imm & 0xffff) | load_half(host, 0) << 16;
    if (word == (uint32_t)op->imm) return CRB_NEXT;
    put_straddle(op, &hart->meta[op - hart->ops], word);
    if (op[-1].kind != CRB_OP_NATIVE) return CRB_NEXT;
    // Translated from the old bytes.
    crb_jit_kill(hart, (uint32_t)op[-1].imm);
    put_entry(op - 1, hart->jit);
    return CRB_AGAIN;
}
