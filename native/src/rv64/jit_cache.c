// Translated code: where it lives, how it is entered, how its blocks are chained and taken apart.
#include "rv64/jit.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE        (CRB_JIT_CODE + CRB_JIT_SITES)
#define NOEXEC_SEAL 0x0008u // MFD_NOEXEC_SEAL

// ---- Storage: one memfd seen twice, so that nothing is ever writable and executable

// Not to be executed as a program; kernels before 6.3 do not know the flag, and some later ones
// refuse who leaves it out.
static int code_file(void) {
    const int fd = memfd_create("crumble-jit", MFD_CLOEXEC | NOEXEC_SEAL);
    return fd >= 0 ? fd : memfd_create("crumble-jit", MFD_CLOEXEC);
}

static bool map_code(struct crb_jit *jit) {
    const int fd = code_file();
    if (fd < 0) return false;
    if (ftruncate(fd, SIZE) == 0) {
        jit->rw = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        jit->rx = mmap(NULL, SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    }
    close(fd);
    return jit->rw != NULL && jit->rw != MAP_FAILED && jit->rx != MAP_FAILED;
}

static void unmap(const void *at, uint64_t size) {
    if (at != NULL && at != MAP_FAILED) munmap((void *)(uintptr_t)at, size);
}

void crb_jit_free(crb_hart *hart) {
    struct crb_jit *jit = hart->jit;
    if (jit == NULL) return;
    unmap(jit->rw, SIZE);
    unmap(jit->rx, SIZE);
    unmap(jit->exits, CRB_JIT_MAX_EXITS * sizeof *jit->exits);
    free(jit);
    hart->jit = NULL;
}

static void restart(struct crb_jit *jit) {
    jit->used = jit->first;
    jit->n_exits = jit->n_sites = 1;
}

// CRUMBLE_SOFT_JIT: 0 only interprets, "eager" translates before a block first runs (for tests).
static uint32_t wanted_heat(void) {
    const char *wanted = getenv("CRUMBLE_SOFT_JIT");
    if (wanted == NULL) return CRB_JIT_HEAT;
    return strcmp(wanted, "0") == 0 ? 0 : strcmp(wanted, "eager") == 0 ? 1 : CRB_JIT_HEAT;
}

void crb_jit_init(crb_hart *hart) {
    const uint32_t heat = wanted_heat();
    if (heat == 0 || !crb_jit_host_able()) return;
    struct crb_jit *jit = calloc(1, sizeof *jit);
    if (jit == NULL) return;
    hart->jit = jit;
    jit->heat = heat;
    jit->exits = mmap(NULL, CRB_JIT_MAX_EXITS * sizeof *jit->exits, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (jit->exits == MAP_FAILED || !map_code(jit)) {
        crb_jit_free(hart);
        return;
    }
    hart->jit_code = (uintptr_t)jit->rx;
    crb_jit_stubs(jit);
    jit->first = jit->used;
    restart(jit);
}

int crb_translator_state(void) {
    if (wanted_heat() == 0) return CRB_TRANSLATOR_OFF;
    if (!crb_jit_host_able()) return CRB_TRANSLATOR_CPU;
    struct crb_jit jit = {0};
    const bool mapped = map_code(&jit);
    unmap(jit.rw, SIZE);
    unmap(jit.rx, SIZE);
    return mapped ? CRB_TRANSLATOR_ON : CRB_TRANSLATOR_FORBIDDEN;
}

void crb_jit_flush(crb_hart *hart) {
    if (hart->jit != NULL) restart(hart->jit);
}

void crb_jit_trim(crb_hart *hart) {
    const struct crb_jit *jit = hart->jit;
    if (jit == NULL) return;
    const uint64_t kept = (jit->first + CRB_PAGE_SIZE - 1) & CRB_PAGE_MASK;
    madvise(jit->rw + kept, SIZE - kept, MADV_REMOVE);
    madvise(jit->exits, CRB_JIT_MAX_EXITS * sizeof *jit->exits, MADV_DONTNEED);
}

static crb_jit_site *site_at(struct crb_jit *jit, uint32_t index) {
    return (crb_jit_site *)(void *)(jit->rw + CRB_JIT_CODE) + index;
}

void crb_jit_forget_addresses(crb_hart *hart) {
    memset(hart->jit_jumps, 0, sizeof hart->jit_jumps);
    for (uint32_t i = 1; hart->jit != NULL && i < hart->jit->n_sites; i++)
        site_at(hart->jit, i)->gen = 0;
}

// ---- Blocks

void crb_jit_compile(crb_hart *hart, crb_op *entry) {
    struct crb_jit *jit = hart->jit;
    if (jit->used + CRB_JIT_BLOCK_MAX > CRB_JIT_CODE ||
        jit->n_exits + 2 * CRB_BLOCK_SLOTS > CRB_JIT_MAX_EXITS ||
        jit->n_sites + 2 * CRB_BLOCK_SLOTS > CRB_JIT_SITES / sizeof(crb_jit_site)) {
        crb_blocks_flush(hart);
        return;
    }
    const uint32_t code = crb_jit_translate(hart, entry, crb_code_page_of(hart, entry));
    entry->imm = code == 0 ? INT32_MAX : (int32_t)code;
    if (code == 0) return;
    entry->kind = CRB_OP_NATIVE;
    entry->handler = crb_handlers[CRB_OP_NATIVE];
}

static void set_jump(struct crb_jit *jit, uint32_t jump, uint32_t to) {
    const uint32_t distance = to - (jump + 4);
    uint32_t before;
    memcpy(&before, jit->rw + jump, sizeof before);
    // A store into code that runs costs the host more than all else here.
    if (before != distance) memcpy(jit->rw + jump, &distance, sizeof distance);
}

// A dead block's first instruction becomes a jump to its own exit, which finds what is there now.
// The exit's offset is in front of the code.
void crb_jit_kill(crb_hart *hart, uint32_t code) {
    struct crb_jit *jit = hart->jit;
    uint32_t stub;
    memcpy(&stub, jit->rw + code - 4, 4);
    set_jump(jit, code + 1, stub);
    jit->rw[code] = 0xe9;
}

// ---- Called by translated code

static const void *leave(crb_hart *hart, uint32_t result) {
    hart->jit_result = result;
    return NULL;
}

// The code of a block, or out to the interpreter at its first operation.
static const void *go_to(crb_hart *hart, const crb_op *op) {
    if (op->kind == CRB_OP_NATIVE) return hart->jit->rx + op->imm;
    hart->jit_op = (uint32_t)(op - hart->ops);
    return leave(hart, CRB_JIT_OP);
}

// From an exit, which leads there by itself from now on. flushes: as counted before it was looked
// for; after another the exit is no more.
static const void *link_to(crb_hart *hart, const crb_jit_exit *exit, const crb_op *op,
                           uint64_t flushes) {
    if (op->kind == CRB_OP_NATIVE && flushes == hart->counters.block_flushes) {
        set_jump(hart->jit, exit->jump, (uint32_t)op->imm);
        if (exit->site != 0)
            *site_at(hart->jit, exit->site) = (crb_jit_site){.pc = hart->pc, .gen = hart->jump_gen};
    }
    return go_to(hart, op);
}

const void *crb_jit_follow(crb_hart *hart, uint32_t index) {
    const crb_jit_exit exit = hart->jit->exits[index];
    const uint64_t flushes = hart->counters.block_flushes;
    const crb_op *op;
    hart->pc = hart->page_va + (uint64_t)(int64_t)exit.target;
    if (hart->budget < 0) return leave(hart, CRB_JIT_SLICE);
    if (exit.site == 0) {
        op = crb_block_at(hart, exit.code_page, (uint32_t)exit.target);
    } else {
        op = crb_lookup(hart, hart->pc);
        if (op == NULL) return leave(hart, CRB_TRAP);
        hart->page_va = hart->pc & CRB_PAGE_MASK;
    }
    return link_to(hart, &exit, op, flushes);
}

// From the call that the return at hart->pc belongs to, or seems to.
const void *crb_jit_back(crb_hart *hart, uint32_t index) {
    const crb_jit_exit exit = hart->jit->exits[index];
    const uint64_t flushes = hart->counters.block_flushes;
    const crb_op *op = crb_lookup(hart, hart->pc);
    if (op == NULL) return leave(hart, CRB_TRAP);
    hart->page_va = hart->pc & CRB_PAGE_MASK;
    return link_to(hart, &exit, op, flushes);
}

const void *crb_jit_indirect(crb_hart *hart) {
    if (hart->budget < 0) return leave(hart, CRB_JIT_SLICE);
    const crb_op *op = crb_lookup(hart, hart->pc);
    if (op == NULL) return leave(hart, CRB_TRAP);
    hart->page_va = hart->pc & CRB_PAGE_MASK;
    if (op->kind == CRB_OP_NATIVE)
        hart->jit_jumps[crb_jump_slot(hart->pc)] =
            (crb_jump){.pc = hart->pc, .op = (uint32_t)op->imm, .gen = hart->jump_gen};
    return go_to(hart, op);
}

static crb_result fence(crb_hart *hart) {
    if (*(const volatile uint64_t *)hart->moved_count != hart->moved_seen) crb_moved(hart);
    return CRB_NEXT;
}

static crb_result fence_i(crb_hart *hart) {
    crb_drop_stale(hart, true);
    hart->pc += 4;
    return CRB_RESYNC;
}

crb_result crb_jit_slow(crb_hart *hart, uint32_t index) {
    const crb_op *op = &hart->ops[index];
    const crb_op_meta meta = hart->meta[index];
    hart->pc = hart->page_va + meta.offset;
    hart->budget -= meta.count;
    hart->jit_called[op->kind]++;
    switch (op->kind) {
    case CRB_OP_LB ... CRB_OP_LWU:
    case CRB_OP_FLW:
    case CRB_OP_FLD:
    case CRB_OP_FLH:
        return crb_mem_load(hart, op, hart->r[op->rs1] + (uint64_t)(int64_t)op->imm);
    case CRB_OP_SB ... CRB_OP_SD:
    case CRB_OP_FSW:
    case CRB_OP_FSD:
    case CRB_OP_FSH:
        return crb_mem_store(hart, op, hart->r[op->rs1] + (uint64_t)(int64_t)op->imm);
    case CRB_OP_STRADDLE:
        return crb_straddle(hart, &hart->ops[index], hart->page_va);
    case CRB_OP_FENCE:
    case CRB_OP_FENCE_FULL:
        return fence(hart);
    case CRB_OP_FENCE_I:
        return fence_i(hart);
    case CRB_OP_ECALL:
        return crb_ecall(hart);
    case CRB_OP_EBREAK:
        return crb_raise(hart, CRB_CAUSE_BREAKPOINT, hart->pc);
    case CRB_OP_SRET:
        return crb_sret(hart, op);
    case CRB_OP_WFI:
        return crb_wait(hart, op);
    case CRB_OP_SFENCE:
        return crb_sfence(hart, op);
    case CRB_OP_CSR:
        return crb_csr(hart, op);
    case CRB_OP_CBO:
        return crb_cbo(hart, op);
    case CRB_OP_VECTOR:
        return crb_vector(hart, op);
    case CRB_OP_MISC:
        return crb_misc(hart, op);
    case CRB_OP_FP ... CRB_OP_FNMADD_D:
        return crb_fp(hart, op);
    default:
        return crb_illegal(hart, op);
    }
}

// ---- Called by the interpreter

uint32_t crb_jit_run(crb_hart *hart, uint32_t code) {
    typedef uint32_t enter(crb_hart *, const uint8_t *);
    const uint8_t *at = hart->jit->rx + hart->jit->enter;
    enter *function;
    memcpy(&function, &at, sizeof function);
    return function(hart, hart->jit->rx + code);
}
