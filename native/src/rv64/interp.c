// The interpreter: threaded code over pre-decoded operations. An operation's handler is the address
// of a label here; each ends by jumping to the next one's. What can be done without leaving this
// function is in the interp_*.h files it includes; the rest are calls that answer with a
// crb_result.
//
// Live across operations: op, page_va (virtual address of the page op is from), budget
// (instructions left in the time slice), tlb. hart->pc and hart->budget are brought up to date only
// for calls.
#include "rv64/bitmanip.h"
#include "rv64/fpu.h"
#include "rv64/hart.h"

const void *const *crb_handlers;
const void *const *crb_pair_handlers;

// Guest memory may be read and written at any alignment, and by others at any time.
typedef uint16_t __attribute__((aligned(1), may_alias)) any_u16;
typedef uint32_t __attribute__((aligned(1), may_alias)) any_u32;
typedef uint64_t __attribute__((aligned(1), may_alias)) any_u64;
typedef uint8_t __attribute__((may_alias)) any_u8;

#define SEXT8(v)  ((uint64_t)(int64_t)(int8_t)(v))
#define SEXT16(v) ((uint64_t)(int64_t)(int16_t)(v))
#define SEXT32(v) ((uint64_t)(int64_t)(int32_t)(v))
#define S64(v)    ((int64_t)(v))
#define S32(v)    ((int32_t)(v))
#define U32(v)    ((uint32_t)(v))

#define RD  (hart->r[op->rd])
#define RS1 (hart->r[op->rs1])
#define RS2 (hart->r[op->rs2])
#define IMM ((uint64_t)(int64_t)op->imm)

#define OP(name) op_##name:
#define DISPATCH goto * op->handler
#define NEXT                                                                                       \
    do {                                                                                           \
        op++;                                                                                      \
        DISPATCH;                                                                                  \
    } while (0)

// Goes to an operation of this page after `count` instructions.
#define GOTO(index, count)                                                                         \
    do {                                                                                           \
        budget -= (count);                                                                         \
        op = ops + (uint32_t)(index);                                                              \
        if (CRB_UNLIKELY(budget < 0)) goto slice;                                                  \
        DISPATCH;                                                                                  \
    } while (0)

// Goes to a virtual address after `count` instructions.
#define JUMP(to, count)                                                                            \
    do {                                                                                           \
        target = (to);                                                                             \
        budget -= (count);                                                                         \
        const crb_jump *jump = &hart->jumps[crb_jump_slot(target)];                                \
        if (CRB_UNLIKELY(jump->pc != target || jump->gen != hart->jump_gen)) goto lookup;          \
        op = ops + jump->op;                                                                       \
        page_va = target & CRB_PAGE_MASK;                                                          \
        if (CRB_UNLIKELY(budget < 0)) goto slice;                                                  \
        DISPATCH;                                                                                  \
    } while (0)

// Brings the hart up to date for a call that may look at it.
#define SYNC()                                                                                     \
    do {                                                                                           \
        const crb_op_meta meta = hart->meta[op - ops];                                             \
        hart->pc = page_va + meta.offset;                                                          \
        hart->budget = budget - meta.count;                                                        \
    } while (0)

#define CALL(call)                                                                                 \
    do {                                                                                           \
        SYNC();                                                                                    \
        result = (call);                                                                           \
        goto answered;                                                                             \
    } while (0)

#define TLB_ENTRY(array, va)                                                                       \
    ((const crb_tlb_entry *)((const uint8_t *)(array) +                                            \
                             ((va) >> (CRB_PAGE_SHIFT - 4) & ((CRB_TLB_SIZE - 1) << 4))))
#define HOST(type, va, entry) ((type *)(uintptr_t)((va) + (entry)->addend))

crb_result crb_interpret(crb_hart *hart) {
#define LABEL(name) &&op_##name,
    static const void *const handlers[] = {CRB_OPS(LABEL)};
#undef LABEL
#define LABEL(first, second) &&op_##first##_##second,
    static const void *const pairs[] = {CRB_PAIRS(LABEL)};
#undef LABEL
    if (hart == NULL) {
        crb_handlers = handlers;
        crb_pair_handlers = pairs;
        return CRB_NEXT;
    }
    crb_op *op;
    crb_op *const ops = hart->ops;
    crb_tlb *tlb;
    uint64_t page_va = 0;
    uint64_t target;
    int64_t budget = hart->budget;
    crb_result result;

enter:
    if (CRB_UNLIKELY(crb_pending(hart) != 0)) crb_take_interrupt(hart);
    tlb = hart->tlb;
    JUMP(hart->pc, 0);

lookup:
    hart->pc = target;
    hart->budget = budget;
    op = crb_lookup(hart, target);
    if (CRB_UNLIKELY(op == NULL)) goto trap;
    page_va = target & CRB_PAGE_MASK;
    if (CRB_UNLIKELY(budget < 0)) goto slice;
    DISPATCH;

slice:
    hart->pc = page_va + hart->meta[op - ops].offset;
    hart->budget = budget;
time_up:
    result = crb_slice(hart);
    budget = hart->budget;
    if (result == CRB_LEAVE) return CRB_LEAVE;
    goto enter;

answered:
    if (CRB_LIKELY(result == CRB_NEXT)) {
        tlb = hart->tlb; // a CSR may have changed the mode
        NEXT;
    }
    budget = hart->budget;
    if (result == CRB_RESYNC) {
        budget--;
        goto enter;
    }
    if (result == CRB_AGAIN) goto enter;
    if (result == CRB_LEAVE) return CRB_LEAVE;
trap:
    // A trap costs budget, or one that repeats without an instruction retired would never be
    // interrupted.
    hart->retired_base--;
    budget = hart->budget - 1;
    hart->budget = budget;
    if (crb_take_trap(hart) == CRB_LEAVE) return CRB_LEAVE;
    goto enter;

compile:
    target = page_va + hart->meta[op - ops].offset;
    crb_jit_compile(hart, op);
    goto lookup;

native:
    hart->budget = budget;
    hart->page_va = page_va;
    result = (crb_result)crb_jit_run(hart, (uint32_t)op->imm);
    if (result == CRB_JIT_SLICE) goto time_up;
    if (result != CRB_JIT_OP) goto answered;
    budget = hart->budget;
    page_va = hart->page_va;
    op = ops + hart->jit_op;
    hart->jit_left[op->kind]++;
    DISPATCH;

load_miss:
    CALL(crb_mem_load(hart, op, RS1 + IMM));
store_miss:
    CALL(crb_mem_store(hart, op, RS1 + IMM));
fp_touch:
    SYNC();
    result = crb_fp_touch(hart);
    if (result != CRB_NEXT) goto answered;
    DISPATCH;
fp_call:
    CALL(crb_fp(hart, op));

#include "rv64/interp_alu.h"
#include "rv64/interp_control.h"
#include "rv64/interp_float.h"
#include "rv64/interp_memory.h"
#include "rv64/interp_pairs.h"
}
