// Loads, stores and cache-block operations whose fast path missed.
#include "rv64/hart.h"

#define CBO_INVAL 0
#define CBO_CLEAN 1
#define CBO_FLUSH 2
#define CBO_ZERO  4

#define ENVCFG_CBIE  (3ull << 4)
#define ENVCFG_CBCFE (1ull << 6)
#define ENVCFG_CBZE  (1ull << 7)

void crb_finish_load(crb_hart *hart, uint8_t kind, uint8_t rd, uint64_t value) {
    switch (kind) {
    case CRB_SIZE_B:
        value = (uint64_t)(int64_t)(int8_t)value;
        break;
    case CRB_SIZE_H:
        value = (uint64_t)(int64_t)(int16_t)value;
        break;
    case CRB_SIZE_W:
        value = (uint64_t)(int64_t)(int32_t)value;
        break;
    case CRB_SIZE_BU:
        value = (uint8_t)value;
        break;
    case CRB_SIZE_HU:
        value = (uint16_t)value;
        break;
    case CRB_SIZE_WU:
        value = (uint32_t)value;
        break;
    case CRB_SIZE_FW:
        value |= 0xffffffff00000000ull;
        break;
    case CRB_SIZE_FH:
        value |= 0xffffffffffff0000ull;
        break;
    default:
        break;
    }
    hart->r[rd] = value;
}

static uint32_t load_size(uint8_t kind) {
    return kind == CRB_SIZE_FW ? 4 : kind == CRB_SIZE_FH ? 2 : 1u << (kind & 3);
}

crb_result crb_mem_load(crb_hart *hart, const crb_op *op, uint64_t va) {
    uint64_t value = 0;
    const crb_result result = crb_load_slow(hart, va, load_size(op->rs2), &value);
    if (result == CRB_NEXT) crb_finish_load(hart, op->rs2, op->rd, value);
    if (result == CRB_LEAVE) {
        hart->pending = CRB_PENDING_LOAD;
        hart->pending_op = op->rs2;
        hart->pending_rd = op->rd;
        hart->pending_length = crb_meta(hart, op).length;
    }
    return result;
}

crb_result crb_mem_store(crb_hart *hart, const crb_op *op, uint64_t va) {
    const crb_result result = crb_store_slow(hart, va, 1u << op->rd, hart->r[op->rs2]);
    if (result == CRB_RESYNC || result == CRB_LEAVE) hart->pc += crb_meta(hart, op).length;
    if (result == CRB_LEAVE) hart->retired_base++;
    return result;
}

// U-mode needs senvcfg's leave; INVAL is always done as FLUSH, which is one of its legal forms.
static bool cbo_allowed(const crb_hart *hart, uint32_t which) {
    if (hart->privilege != 0 || hart->machine->mode == CRB_MODE_USER) return true;
    if (which == CBO_ZERO) return (hart->senvcfg & ENVCFG_CBZE) != 0;
    if (which == CBO_INVAL) return (hart->senvcfg & ENVCFG_CBIE) != 0;
    return (hart->senvcfg & ENVCFG_CBCFE) != 0;
}

// Caches are coherent here, so management is only the access check: readable or writable will do.
crb_result crb_cbo(crb_hart *hart, const crb_op *op) {
    const uint64_t va = hart->r[op->rs1];
    if (!cbo_allowed(hart, op->rd)) return crb_illegal(hart, op);
    if (op->rd == CBO_ZERO) return crb_zero_block(hart, va);
    uint64_t gpa;
    if (crb_walk(hart, va, CRB_READ, &gpa) == CRB_NEXT) return CRB_NEXT;
    hart->cause =
        hart->cause == CRB_CAUSE_LOAD_PAGE ? CRB_CAUSE_STORE_PAGE : CRB_CAUSE_STORE_ACCESS;
    return CRB_TRAP;
}
