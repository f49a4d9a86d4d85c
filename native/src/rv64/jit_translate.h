// Inside the translator: one block's translation, and what its files share.
#ifndef CRUMBLE_RV64_JIT_TRANSLATE_H
#define CRUMBLE_RV64_JIT_TRANSLATE_H

#include "rv64/jit.h"
#include "rv64/jit_x86.h"

#include <stddef.h>

// RBP is the hart, biased so that all x registers are within a byte's reach; R13 the budget, R15
// the TLB. RAX, RCX and RDX are anyone's. The others hold guest registers: crb_jit_host().
#define BIAS      128
#define HART(f)   ((int32_t)offsetof(crb_hart, f) - BIAS)
#define GUEST(g)  ((int32_t)(offsetof(crb_hart, r) + 8u * (uint32_t)(g)) - BIAS)
#define BUDGET    R13
#define TLB       R15
#define CACHE_ANY 14 // XMM registers that hold f registers

// Code that is placed behind the block's.
typedef enum {
    COLD_SLOW,
    COLD_INTERPRET,
    COLD_FOLLOW,
    COLD_TAKEN,
    COLD_NAN,
    COLD_GROUP,
    COLD_BACK,
    COLD_FIND
} cold_kind;

typedef struct crb_cold {
    uint8_t *from; // the jump to it
    uint8_t *back; // where it goes on
    uint32_t value;
    cold_kind kind;
    uint32_t slot;            // SLOW: goes on there in its group's other version, 0 at `back`
    int8_t cached[CACHE_ANY]; // f registers to be loaded again before it goes back
    // GROUP: what else was known of f registers.
    uint32_t next_cached, checked;
    uint64_t boxed;
} crb_cold;

#define MAX_COLD 512

typedef struct crb_translation {
    crb_emit e;
    crb_hart *hart;
    struct crb_jit *jit;
    const crb_op *entry;
    uint32_t n_slots; // of the block, ENTRY and END with it
    uint32_t code_page;
    uint32_t n_cold;
    bool full; // out of exits, sites or cold parts: no translation
    uint8_t *places[CRB_BLOCK_SLOTS + 1];
    uint8_t *jumps[CRB_BLOCK_SLOTS + 1]; // forward, to be placed
    uint32_t jumps_to[CRB_BLOCK_SLOTS + 1];
    uint32_t n_jumps;
    uint32_t done;     // slots before this one need nothing more
    uint64_t joins[2]; // slots that are jumped to
    // Floating point: which f register each XMM holds (-1 none), and what has been checked.
    int8_t cached[CACHE_ANY];
    uint32_t next_cached;
    uint32_t pinned;  // XMM registers of this operation
    uint64_t boxed;   // f registers known to hold single precision
    uint32_t checked; // rm fields known to mean nearest even
    // Accesses by one base register to one page: RDX is the page's addend while group_end != 0.
    uint32_t group_end; // slot behind the last
    uint32_t group_base;
    bool group_write;
    bool ungrouped; // translating a group's other version
    uint8_t *other_places[CRB_BLOCK_SLOTS + 1];
    crb_cold cold[MAX_COLD];
} crb_translation;

// The host register of a guest's, -1 when it lives in memory.
extern const int8_t crb_jit_host[CRB_REGS];

static inline uint32_t op_index(const crb_translation *t, const crb_op *op) {
    return (uint32_t)(op - t->hart->ops);
}

// A guest register's value: where it is, or loaded to `scratch`.
static inline int crb_jit_source(crb_translation *t, uint32_t guest, int scratch) {
    const int host = crb_jit_host[guest];
    if (host >= 0) return host;
    x86_load(&t->e, scratch, RBP, GUEST(guest));
    return scratch;
}

// Moves a guest register's value to `to`.
static inline void crb_jit_get(crb_translation *t, int to, uint32_t guest) {
    const int host = crb_jit_host[guest];
    if (host >= 0)
        x86_mov(&t->e, to, host);
    else
        x86_load(&t->e, to, RBP, GUEST(guest));
}

static inline int crb_jit_target(uint32_t guest, int scratch) {
    return crb_jit_host[guest] >= 0 ? crb_jit_host[guest] : scratch;
}

// Makes `from` the value of a guest register.
static inline void crb_jit_set(crb_translation *t, uint32_t guest, int from) {
    const int host = crb_jit_host[guest];
    if (host >= 0)
        x86_mov(&t->e, host, from);
    else if (guest != CRB_SINK)
        x86_store(&t->e, from, RBP, GUEST(guest));
}

// `op reg, guest` with the guest register wherever it is.
static inline void crb_jit_with(crb_translation *t, bool w, uint32_t opcode, int reg,
                                uint32_t guest) {
    const int host = crb_jit_host[guest];
    if (host >= 0)
        x86_rr(&t->e, w, opcode, reg, host);
    else
        x86_rm(&t->e, w, opcode, reg, RBP, GUEST(guest));
}

// The jump at `from` leads to a cold part.
static inline crb_cold *crb_jit_cold(crb_translation *t, uint8_t *from, cold_kind kind,
                                     uint32_t value) {
    if (t->n_cold == MAX_COLD) {
        t->full = true;
        t->n_cold--;
    }
    crb_cold *cold = &t->cold[t->n_cold++];
    cold->from = from;
    cold->kind = kind;
    cold->value = value;
    cold->back = t->e.at;
    return cold;
}

// Does the operation by crb_jit_slow(), here or, from a jump, out of line and back to here.
void crb_jit_call_slow(crb_translation *t, const crb_op *op);
void crb_jit_cold_slow(crb_translation *t, uint8_t *from, const crb_op *op);

// ---- One operation each; false: not done here

bool crb_jit_integer(crb_translation *t, const crb_op *op);
bool crb_jit_memory(crb_translation *t, const crb_op *op);
bool crb_jit_float(crb_translation *t, const crb_op *op);

// jit_memory.c: [base + index + disp], reached when there was no miss (NULL: there cannot be one).
typedef struct crb_host_operand {
    uint8_t *miss;
    int base, index;
    int32_t disp;
} crb_host_operand;

// Uses RAX and RCX (and RDX when rs1 lives in memory); only `base` and `index` are taken behind it.
crb_host_operand crb_jit_lookup(crb_translation *t, const crb_op *op, uint32_t size, bool write);
// Whatever missed is done out of line and comes back to here.
void crb_jit_missed(crb_translation *t, const crb_host_operand *at, const crb_op *op);
// Begins a group at a slot when there is one.
void crb_jit_group(crb_translation *t, uint32_t slot);
// jit_translate.c: is a branch's target in its own block?
bool crb_jit_jumps_inside(const crb_translation *t, const crb_op *op);

static inline bool crb_jit_is_join(const crb_translation *t, uint32_t slot) {
    return (t->joins[slot / 64] >> (slot % 64) & 1) != 0;
}

// jit_float.c: is the operation done in place, with RAX and RCX only?
bool crb_jit_float_in_place(const crb_op *op);
// A COLD_NAN; forgets what XMM registers hold.
void crb_jit_put_nan(crb_translation *t, const crb_cold *cold);
void crb_jit_float_forget(crb_translation *t);

#endif
