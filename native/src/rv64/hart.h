// The soft CPU's own structures. Theory of operation: README.md beside this file.
#ifndef CRUMBLE_RV64_HART_H
#define CRUMBLE_RV64_HART_H

#include "crumble/doorbell.h"
#include "rv64/ops.h"
#include "rv64/plic.h"

#include <pthread.h>

#define CRB_LIKELY(x)   __builtin_expect(!!(x), 1)
#define CRB_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define CRB_COLD        __attribute__((noinline, cold))

#define CRB_PAGE_MASK (~(uint64_t)(CRB_PAGE_SIZE - 1))
#define CRB_OFFSET(a) ((a) & (CRB_PAGE_SIZE - 1))

// ---- Pre-decoded code

// One pre-decoded instruction. Registers index crb_hart.r; imm is what the operation wants: an
// immediate, a page offset, the index of a chained operation, or the raw instruction.
typedef struct crb_op {
    const void *handler;
    uint8_t rd, rs1, rs2, kind;
    int32_t imm;
} crb_op;

// What only slow paths need to know of an operation, in an array parallel to the operations.
typedef struct crb_op_meta {
    uint16_t offset; // of the instruction in its page
    uint8_t count;   // instructions of the block before it
    uint8_t length;  // bytes; 0 for what is not an instruction
} crb_op_meta;

#define CRB_BLOCK_INSNS 64
// Slots a block may take: ENTRY or STRADDLE, the instructions, a data slot, END.
#define CRB_BLOCK_SLOTS (CRB_BLOCK_INSNS + 5)

typedef struct crb_block {
    uint64_t granules; // 64-byte pieces of the page it was decoded from
    uint32_t first;    // operation
    uint32_t next;     // block of the same page, 0 none
    uint32_t slot;     // in the hash table
    uint32_t code_page;
} crb_block;

typedef struct crb_code_page {
    uint64_t page;     // number, see crb_machine.page_gen
    uint64_t granules; // any of its blocks
    uint32_t blocks;   // first block, 0 none
    uint32_t gen;      // page_gen when it became code
    uint32_t stores;   // to it since its last block went
    bool marked;       // several harts: made young since gen
} crb_code_page;

typedef struct crb_jump {
    uint64_t pc;
    uint32_t op;
    uint32_t gen;
} crb_jump;

typedef struct crb_exec_entry {
    uint64_t va;
    uint32_t gen;
    uint32_t page;
} crb_exec_entry;

#define CRB_MAX_OPS        (1u << 20)
#define CRB_MAX_BLOCKS     (1u << 16)
#define CRB_MAX_CODE_PAGES (1u << 14)
#define CRB_MAX_YOUNG      4096
#define CRB_KEPT_OPS       (1u << 14) // that an idle hart does not give back
#define CRB_HASH_MIN       13         // bits: doubled as it fills
#define CRB_HASH_MAX       17
#define CRB_JUMPS          4096
#define CRB_EXEC_ENTRIES   256
#define CRB_EXEC_FILTER    4096

// ---- TLB

// A hit: (address + size - 1) & CRB_PAGE_MASK == tag; the host address is address + addend.
typedef struct crb_tlb_entry {
    uint64_t tag;
    uint64_t addend;
} crb_tlb_entry;

#define CRB_TLB_SIZE  4096
#define CRB_TLB_EMPTY 0xfffull
// In a write entry's tag: the page holds decoded code, so the fast path must miss.
#define CRB_TLB_CODE 1ull
#define CRB_TLB_LOG  512

typedef struct crb_tlb {
    crb_tlb_entry read[CRB_TLB_SIZE];
    crb_tlb_entry write[CRB_TLB_SIZE];
    uint32_t filled;           // since the last flush
    uint16_t log[CRB_TLB_LOG]; // which entries, while they fit
} crb_tlb;

// The last table of a walk by 2 MiB of virtual addresses.
typedef struct crb_walk_entry {
    uint64_t span;
    uint64_t table;
    uint64_t gen;
} crb_walk_entry;

#define CRB_SPAN_SHIFT 21
#define CRB_WALKS      64

// What may be cached at once: user pages as U sees them, supervisor pages as S sees them, and both
// as S sees them with SUM set. So neither a trap nor a change of SUM flushes anything.
enum { CRB_MODE_U, CRB_MODE_S, CRB_MODE_SUM, CRB_MODES };

// ---- Harts and the machine

// WFI looks for this long at most before it sleeps.
#define CRB_WFI_SPIN_NS 50000

typedef enum crb_result {
    CRB_NEXT,   // go on with the operation behind
    CRB_RESYNC, // retired; go on at hart->pc, mode and interrupts may have changed
    CRB_TRAP,   // hart->cause, hart->tval
    CRB_LEAVE,  // hart->exit is for the caller; hart->pc is where to go on
    CRB_AGAIN,  // not retired; go on at hart->pc
    // Of crb_jit_run() only.
    CRB_JIT_OP,    // go on with hart->jit_op in the page at hart->page_va
    CRB_JIT_SLICE, // time is up; go on at hart->pc behind that
} crb_result;

// Why another thread wants a hart's attention.
#define CRB_ATTENTION_CANCEL 1u
#define CRB_ATTENTION_IRQ    2u
#define CRB_ATTENTION_FLUSH  4u // a remote fence: see crb_hart.flush
#define CRB_ATTENTION_PURGE  8u // another hart decoded a page: forget writable mappings
#define CRB_ATTENTION_START  16u

#define CRB_FLUSH_CODE 1u
#define CRB_FLUSH_TLB  2u

enum { CRB_PENDING_NONE, CRB_PENDING_LOAD, CRB_PENDING_CONSOLE };

typedef struct crb_hart {
    uint64_t r[CRB_REGS];
    // What the interpreter touches while it runs.
    crb_op *ops;
    crb_op_meta *meta;
    crb_tlb *tlb; // of the current mode
    int64_t budget;
    uint32_t jump_gen; // of the current mode
    uint8_t rm[8];     // rounding mode of an instruction's rm field, or CRB_RM_SLOW
    uint32_t fflags;
    uint32_t frm;
    const uint64_t *moved_count; // memory's
    uint64_t moved_seen;
    struct crb_jit *jit; // NULL: all is interpreted
    uint64_t jit_code;   // where its code is
    uint64_t jit_stack;  // the host's stack where it was entered: guest calls are below
    uint64_t page_va;    // of the page translated code is from
    uint32_t jit_op;     // CRB_JIT_OP
    uint32_t jit_result; // for leaving translated code
    uint8_t *reserved;   // LR's host address, NULL none, and what it read
    uint64_t reserved_value;

    // Architectural state.
    uint64_t pc;
    uint64_t status; // sstatus without SD
    uint64_t sie, stvec, sscratch, sepc, scause, stval, satp, scounteren, senvcfg, stimecmp;
    uint32_t privilege;
    uint32_t mode; // CRB_MODE_*, follows privilege and SUM
    uint32_t irq;  // atomic: SSIP, SEIP
    uint32_t stip;
    uint32_t hsm; // atomic
    uint32_t waiting;

    // Between the operation and the run loop.
    uint64_t retired_base; // instret = retired_base - budget
    uint64_t cause, tval;
    crb_exit *exit;
    uint32_t pending;   // CRB_PENDING_*: what the caller's answer completes
    uint8_t pending_op; // the load's kind and rd
    uint8_t pending_rd;
    uint8_t pending_length;

    // Across threads.
    uint64_t meet_at;      // atomic: instret at which to leave, UINT64_MAX never
    uint32_t attention;    // atomic
    uint32_t running;      // atomic: executing guest code
    uint32_t sleeping;     // atomic: wake_fd must be written
    uint32_t flush;        // atomic
    uint32_t purge_wanted; // atomic
    uint32_t purge_done;   // atomic
    uint32_t flush_wanted; // atomic
    uint32_t flush_done;   // atomic
    uint64_t start_pc, start_arg;
    uint32_t start; // atomic: another hart has set these two, and then hsm
    int wake_fd;

    // Time.
    uint64_t next_poll_ns;
    crb_spin spin;                  // how WFI looks before it sleeps
    bool idle;                      // what was decoded is given back before it sleeps on
    uint64_t busy_ns, busy_retired; // when it last had much to do; instructions before this sleep

    // Vectors: 32 registers of machine->vlenb bytes.
    uint64_t vtype;
    uint32_t vl, vstart, vcsr;
    uint8_t v[32 * CRB_MAX_VLENB];

    struct crb_debugging *debug; // NULL: nobody debugs

    // Caches.
    uint32_t n_ops, n_blocks, n_code_pages, n_hashed;
    uint32_t hash_bits;
    uint32_t gen;         // last given
    uint32_t mode_gen[2]; // jump_gen by privilege
    uint64_t stale_seen;
    uint64_t super_low[2], super_high[2]; // superpage fills, by half of the address space
    uint64_t walk_gen;                    // walks are valid while theirs is this
    bool s_nonglobal;                     // supervisor entries that an ASID change must drop
    crb_block *blocks;
    crb_code_page *code_pages;
    uint32_t *page_index; // page number to code page, 0 none
    uint64_t *hash;
    uint64_t *stored; // a bit a page: was ever in a write TLB
    uint64_t *loaded; // the same of a read TLB
    uint32_t *young;  // code pages other harts may have written unseen
    uint32_t n_young;

    struct crb_machine *machine;
    uint32_t id;
    crb_hart_counters counters;
    uint64_t jit_called[CRB_N_OPS], jit_left[CRB_N_OPS]; // see crb_hart_fallback()

    crb_tlb tlbs[CRB_MODES];
    crb_walk_entry walks[CRB_WALKS];
    crb_jump jumps[CRB_JUMPS];
    crb_jump jit_jumps[CRB_JUMPS]; // op: offset of the code
    crb_exec_entry exec[CRB_EXEC_ENTRIES];
    uint64_t exec_filter[2][CRB_EXEC_FILTER / 64]; // by privilege: pages that may be in jumps
} crb_hart;

typedef struct crb_doorbell {
    uint64_t gpa;
    int64_t match;
    uint32_t size;
    int fd;
} crb_doorbell;

#define CRB_MAX_DOORBELLS 256
#define CRB_MAX_CALL_FDS  256

typedef struct crb_virtio_irq {
    uint32_t source;
    uint32_t status;
    uint64_t status_gpa, ack_gpa;
} crb_virtio_irq;

typedef struct crb_call_fd {
    uint32_t source;
    int fd;
} crb_call_fd;

struct crb_machine {
    crb_memory *memory;
    uint32_t mode;
    uint32_t n_harts;
    uint64_t timebase_hz;
    uint32_t vlenb;
    uint64_t time_offset_ns; // time = (now - offset) in ticks
    bool deterministic;      // then now is crb_machine_ns()
    uint64_t plic_gpa;
    crb_hart *harts[CRB_MAX_HARTS];

    // RAM pages are numbered region after region.
    uint64_t n_pages;
    uint64_t first_page[CRB_MAX_REGIONS];
    uint32_t *page_gen; // atomic: bumped when decoded code of the page is stale
    uint64_t *granules; // atomic: 64-byte pieces of a page any hart has decoded
    bool copy_on_read;  // pages of the base are never mapped
    uint8_t *own_state; // page state made here for a memory that has none
    crb_page_state_header own_header;

    pthread_mutex_t lock; // everything below
    crb_plic plic;
    crb_doorbell doorbells[CRB_MAX_DOORBELLS];
    crb_virtio_irq virtio[CRB_PLIC_SOURCES];
    crb_call_fd call_fds[CRB_MAX_CALL_FDS];
    uint32_t n_doorbells, n_virtio, n_call_fds;
    int epoll_fd; // call_fds
};

// ---- CSR bits

#define CRB_STATUS_SIE   (1ull << 1)
#define CRB_STATUS_SPIE  (1ull << 5)
#define CRB_STATUS_SPP   (1ull << 8)
#define CRB_STATUS_VS    (3ull << 9)
#define CRB_STATUS_FS    (3ull << 13)
#define CRB_STATUS_SUM   (1ull << 18)
#define CRB_STATUS_MXR   (1ull << 19)
#define CRB_STATUS_UXL   (2ull << 32)
#define CRB_STATUS_SD    (1ull << 63)
#define CRB_ENVCFG_WRITE 0xf1ull
#define CRB_STATUS_WRITE                                                                           \
    (CRB_STATUS_SIE | CRB_STATUS_SPIE | CRB_STATUS_SPP | CRB_STATUS_FS | CRB_STATUS_SUM |          \
     CRB_STATUS_MXR | CRB_STATUS_VS)

#define CRB_CSR_VSTART 0x008
#define CRB_CSR_VXSAT  0x009
#define CRB_CSR_VXRM   0x00a
#define CRB_CSR_VCSR   0x00f
#define CRB_CSR_VL     0xc20
#define CRB_CSR_VTYPE  0xc21
#define CRB_CSR_VLENB  0xc22

#define CRB_SSIP (1u << 1)
#define CRB_STIP (1u << 5)
#define CRB_SEIP (1u << 9)

#define CRB_RM_SLOW 0xff

enum {
    CRB_CAUSE_FETCH_ACCESS = 1,
    CRB_CAUSE_ILLEGAL = 2,
    CRB_CAUSE_BREAKPOINT = 3,
    CRB_CAUSE_LOAD_MISALIGNED = 4,
    CRB_CAUSE_LOAD_ACCESS = 5,
    CRB_CAUSE_STORE_MISALIGNED = 6,
    CRB_CAUSE_STORE_ACCESS = 7,
    CRB_CAUSE_ECALL_U = 8,
    CRB_CAUSE_FETCH_PAGE = 12,
    CRB_CAUSE_LOAD_PAGE = 13,
    CRB_CAUSE_STORE_PAGE = 15,
};

static inline crb_result crb_raise(crb_hart *hart, uint64_t cause, uint64_t tval) {
    hart->cause = cause;
    hart->tval = tval;
    return CRB_TRAP;
}

static inline crb_result crb_illegal(crb_hart *hart, const crb_op *op) {
    return crb_raise(hart, CRB_CAUSE_ILLEGAL, (uint32_t)op->imm);
}

static inline crb_op_meta crb_meta(const crb_hart *hart, const crb_op *op) {
    return hart->meta[op - hart->ops];
}

// ---- interp.c

// Runs until the exit is filled in. The first call with NULL only makes crb_handlers.
crb_result crb_interpret(crb_hart *hart);
extern const void *const *crb_handlers;
extern const void *const *crb_pair_handlers; // by enum crb_pair

// ---- decode.c, rvc.c

// Decodes the instruction at `offset` of its page into op (and a data slot behind it). Returns true
// when the block ends with it.
bool crb_decode(crb_op *op, uint32_t insn, uint32_t length, uint32_t offset, uint32_t count);
// Lets the first of two operations do both when they are a pair.
bool crb_fuse(crb_op *op);
// The 32-bit instruction that a 16-bit one stands for, 0 when illegal.
uint32_t crb_rvc_expand(uint32_t half);

// ---- blocks.c

int crb_blocks_init(crb_hart *hart);
void crb_blocks_free(crb_hart *hart);
// The operation at hart->pc, or NULL with cause and tval set.
crb_op *crb_lookup(crb_hart *hart, uint64_t pc);
// Chains an unlinked branch to its target in the same page (op->imm) and returns the target.
crb_op *crb_link(crb_hart *hart, crb_op *op);
// Checks, and decodes again if need be, the instruction across the end of the page.
crb_result crb_straddle(crb_hart *hart, crb_op *op, uint64_t page_va);
void crb_blocks_flush(crb_hart *hart);
void crb_blocks_trim(crb_hart *hart); // flushes, and gives the memory back
// The first operation of the block at an offset of a code page.
crb_op *crb_block_at(crb_hart *hart, uint32_t code_page, uint32_t offset);
uint32_t crb_code_page_of(const crb_hart *hart, const crb_op *op);
// A store of this hart to a page that holds decoded code of any hart.
void crb_code_written(crb_hart *hart, uint64_t page, uint64_t offset, uint64_t size);
// Drops pages that others wrote. `fence` also settles with harts that decoded concurrently.
void crb_drop_stale(crb_hart *hart, bool fence);
// Forgets every virtual address of code, or only what may concern one page.
void crb_exec_flush(crb_hart *hart, uint32_t privilege);
void crb_exec_flush_va(crb_hart *hart, uint64_t va);

static inline uint32_t crb_jump_slot(uint64_t pc) {
    return (uint32_t)(pc >> 1 ^ pc >> 12) & (CRB_JUMPS - 1);
}

static inline bool crb_has_data(uint8_t kind) {
    return kind >= CRB_OP_J_U && kind <= CRB_OP_JALR;
}

// ---- jit_cache.c: translated code, unless this host or its owner will not have it

void crb_jit_init(crb_hart *hart);
void crb_jit_free(crb_hart *hart);
// Translates the block of an ENTRY; may flush all blocks.
void crb_jit_compile(crb_hart *hart, crb_op *entry);
// Runs code until the interpreter must do something; the hart is up to date. Never CRB_NEXT.
uint32_t crb_jit_run(crb_hart *hart, uint32_t code);
// Sends whoever comes to a block's code back to the look-up.
void crb_jit_kill(crb_hart *hart, uint32_t code);
void crb_jit_flush(crb_hart *hart);
void crb_jit_trim(crb_hart *hart); // after a flush: gives the memory back
// Generations start anew: no cached address may match.
void crb_jit_forget_addresses(crb_hart *hart);

// ---- mmu.c

typedef enum { CRB_READ, CRB_WRITE, CRB_EXEC } crb_access;

// Guest-physical address of `va` for an access in the current mode; sets A and D. CRB_NEXT or TRAP.
crb_result crb_walk(crb_hart *hart, uint64_t va, crb_access access, uint64_t *gpa);
crb_result crb_load_slow(crb_hart *hart, uint64_t va, uint32_t size, uint64_t *value);
crb_result crb_store_slow(crb_hart *hart, uint64_t va, uint32_t size, uint64_t value);
// Host address for an atomic on aligned RAM, NULL when hart->cause is set.
uint8_t *crb_atomic_slow(crb_hart *hart, uint64_t va, uint32_t size, bool write);
crb_result crb_zero_block(crb_hart *hart, uint64_t va);
void crb_tlb_flush(crb_hart *hart);
void crb_tlb_flush_asid(crb_hart *hart);
void crb_tlb_flush_va(crb_hart *hart, uint64_t va);
void crb_tlb_flush_writes(crb_hart *hart);
// Forgets all virtual aliases through which a page can be written.
void crb_tlb_purge_page(crb_hart *hart, uint64_t page);
void crb_set_mode(crb_hart *hart);
// The page number of a guest-physical address, false when it is not RAM.
bool crb_page_number(const crb_machine *machine, uint64_t gpa, uint64_t *page);
uint64_t crb_page_gpa(const crb_machine *machine, uint64_t page);
uint32_t crb_page_region(const crb_machine *machine, uint64_t page);
// The page an overlay's byte belongs to.
uint64_t crb_page_of_host(const crb_machine *machine, const uint8_t *host);
// Pages went from the base to the overlay: readable mappings may show the base's.
void crb_moved(crb_hart *hart);

// ---- mem.c: operations on memory when the fast path missed

crb_result crb_mem_load(crb_hart *hart, const crb_op *op, uint64_t va);
crb_result crb_mem_store(crb_hart *hart, const crb_op *op, uint64_t va);
void crb_finish_load(crb_hart *hart, uint8_t kind, uint8_t rd, uint64_t value);
crb_result crb_cbo(crb_hart *hart, const crb_op *op);
// WRS and the fences around SINVAL.VMA.
crb_result crb_misc(crb_hart *hart, const crb_op *op);

// ---- csr.c, trap.c, sbi.c, fp.c

crb_result crb_csr(crb_hart *hart, const crb_op *op);
void crb_status_changed(crb_hart *hart);
crb_result crb_sfence(crb_hart *hart, const crb_op *op);
crb_result crb_sret(crb_hart *hart, const crb_op *op);
crb_result crb_wait(crb_hart *hart, const crb_op *op);
// Takes the trap in cause and tval at hart->pc. CRB_AGAIN, or CRB_LEAVE.
crb_result crb_take_trap(crb_hart *hart);
// Takes the highest enabled interrupt if there is one.
bool crb_take_interrupt(crb_hart *hart);
static inline uint32_t crb_pending(crb_hart *hart) {
    return (__atomic_load_n(&hart->irq, __ATOMIC_ACQUIRE) | hart->stip) & (uint32_t)hart->sie;
}
crb_result crb_ecall(crb_hart *hart);
crb_result crb_vector(crb_hart *hart, const crb_op *op);
bool crb_vector_valid_type(uint64_t vtype, uint64_t vl, uint32_t vlenb);
// False when vectors are off.
bool crb_vector_read_csr(const crb_hart *hart, uint32_t csr, uint64_t *value);
void crb_vector_write_csr(crb_hart *hart, uint32_t csr, uint64_t value);
crb_result crb_fp(crb_hart *hart, const crb_op *op);
// fp_more.c: Zfh and Zfa; false when there is no such instruction.
bool crb_fp_more(crb_hart *hart, uint32_t insn);
// Makes FS dirty before a load, store or operation of F or D; TRAP when it is off.
crb_result crb_fp_touch(crb_hart *hart);

// ---- debug.c

void crb_debug_free(crb_hart *hart);
// Between two instructions of a debugged hart: true when it stops here.
bool crb_debug_between(crb_hart *hart);
bool crb_debug_holds_interrupts(const crb_hart *hart);
// An access that missed the TLB; a page with something watched always does.
void crb_debug_access(crb_hart *hart, uint64_t va, uint32_t size, uint32_t kind);
bool crb_debug_watches_page(const crb_hart *hart, uint64_t va);
// The instruction at a virtual address, 0 when there is none. blocks.c
uint32_t crb_fetch_word(crb_hart *hart, uint64_t pc);

// ---- hart.c

uint64_t crb_now_ns(void);
uint64_t crb_time(crb_machine *machine);
// The machine's clock: the host's, or what its instructions took.
uint64_t crb_machine_ns(const crb_machine *machine);
crb_result crb_slice(crb_hart *hart);
crb_result crb_wfi(crb_hart *hart);
// Stopped by HSM: sleeps until started or canceled.
crb_result crb_stopped(crb_hart *hart);
void crb_timer_changed(crb_hart *hart);
// Wakes or interrupts a hart. Any thread; async-signal-safe.
void crb_attract(crb_hart *hart, uint32_t attention);
// Waits until `other` has done what was wanted, or runs no guest code. Serves own requests
// meanwhile.
void crb_await(crb_hart *hart, crb_hart *other, uint32_t *wanted, uint32_t *done);
// Serves FLUSH and PURGE requests of other harts.
void crb_serve_requests(crb_hart *hart);

// ---- mmio.c

crb_result crb_mmio_load(crb_hart *hart, uint64_t gpa, uint32_t size, uint64_t *value);
crb_result crb_mmio_store(crb_hart *hart, uint64_t gpa, uint32_t size, uint64_t value);
// Collects call_fds that were written. Machine unlocked.
void crb_poll_calls(crb_machine *machine);

#endif
