// The translator's loads, stores and atomics: the TLB is looked up in place, what misses it is done
// out of line.
#include "rv64/jit_translate.h"

#if defined(__x86_64__)

#define WRITE_ARRAY ((int32_t)offsetof(crb_tlb, write))
#define ADDEND      ((int32_t)offsetof(crb_tlb_entry, addend))

// RAX = rs1 + imm.
static void address(crb_translation *t, uint32_t rs1, int32_t imm) {
    const int host = crb_jit_host[rs1];
    if (host >= 0 && imm != 0)
        x86_lea(&t->e, RAX, host, imm);
    else
        crb_jit_get(t, RAX, rs1);
    if (host < 0 && imm != 0) x86_alu_ri(&t->e, true, ALU_ADD, RAX, imm);
}

// RCX = offset of RAX's entry in the TLB's arrays.
static void entry_offset(crb_translation *t) {
    x86_rorx32(&t->e, RCX, RAX, CRB_PAGE_SHIFT - 4);
    x86_alu_ri(&t->e, false, ALU_AND, RCX, (CRB_TLB_SIZE - 1) << 4);
}

uint8_t *crb_jit_lookup(crb_translation *t, const crb_op *op, uint32_t size, bool write) {
    crb_emit *e = &t->e;
    const int32_t array = write ? WRITE_ARRAY : 0;
    address(t, op->rs1, op->imm);
    entry_offset(t);
    if (size > 1)
        x86_lea(e, RDX, RAX, (int32_t)size - 1);
    else
        x86_mov(e, RDX, RAX);
    x86_alu_ri(e, true, ALU_AND, RDX, -(int32_t)CRB_PAGE_SIZE);
    x86_rx(e, true, ALU_CMP, RDX, TLB, RCX, array);
    uint8_t *miss = x86_jcc_later(e, CC_NE);
    x86_rx(e, true, ALU_ADD, RAX, TLB, RCX, array + ADDEND);
    return miss;
}

static void load(crb_translation *t, const crb_op *op, uint32_t size, bool w, uint32_t opcode) {
    uint8_t *miss = crb_jit_lookup(t, op, size, false);
    const int to = crb_jit_target(op->rd, RAX);
    x86_rm(&t->e, w, opcode, to, RAX, 0);
    crb_jit_set(t, op->rd, to);
    crb_jit_cold_slow(t, miss, op);
}

static void store(crb_translation *t, const crb_op *op) {
    crb_emit *e = &t->e;
    const uint32_t size = 1u << op->rd;
    uint8_t *miss = crb_jit_lookup(t, op, size, true);
    const int from = crb_jit_source(t, op->rs2, RDX);
    if (size == 1)
        x86_rm8(e, 0x88, from, RAX, 0);
    else if (size == 2)
        x86_rm(e, false, 0x660000 | 0x89, from, RAX, 0);
    else
        x86_rm(e, size == 8, 0x89, from, RAX, 0);
    crb_jit_cold_slow(t, miss, op);
}

// ---- Atomics: aligned, or the interpreter's

// RAX = host address.
static void atomic_lookup(crb_translation *t, const crb_op *op, uint32_t size, bool write) {
    crb_emit *e = &t->e;
    const int32_t array = write ? WRITE_ARRAY : 0;
    address(t, op->rs1, 0);
    entry_offset(t);
    x86_mov(e, RDX, RAX);
    x86_alu_ri(e, true, ALU_AND, RDX, (int32_t)(0xfffff000u | (size - 1)));
    x86_rx(e, true, ALU_CMP, RDX, TLB, RCX, array);
    crb_jit_cold(t, x86_jcc_later(e, CC_NE), COLD_INTERPRET, op_index(t, op));
    x86_rx(e, true, ALU_ADD, RAX, TLB, RCX, array + ADDEND);
}

static void give(crb_translation *t, const crb_op *op, uint32_t size, int from) {
    if (op->rd == CRB_SINK) return;
    if (size == 4) x86_sext32(&t->e, from, from);
    crb_jit_set(t, op->rd, from);
}

static void load_reserved(crb_translation *t, const crb_op *op, uint32_t size) {
    crb_emit *e = &t->e;
    atomic_lookup(t, op, size, false);
    x86_rm(e, size == 8, 0x8b, RCX, RAX, 0);
    x86_store(e, RAX, RBP, HART(reserved));
    x86_store(e, RCX, RBP, HART(reserved_value));
    give(t, op, size, RCX);
}

static void store_conditional(crb_translation *t, const crb_op *op, uint32_t size) {
    crb_emit *e = &t->e;
    atomic_lookup(t, op, size, true);
    x86_mov(e, RDX, RAX);
    x86_load(e, RAX, RBP, HART(reserved_value));
    x86_rm(e, true, ALU_CMP, RDX, RBP, HART(reserved));
    x86_store_imm(e, RBP, HART(reserved), 0);
    uint8_t *failed = x86_jcc_later(e, CC_NE);
    const int from = crb_jit_source(t, op->rs2, RCX);
    put8(e, 0xf0);
    x86_rm(e, size == 8, 0x0fb1, from, RDX, 0);
    x86_place(failed, e->at);
    x86_setcc(e, CC_NE, RAX);
    if (op->rd != CRB_SINK) crb_jit_set(t, op->rd, RAX);
}

// xchg, or lock xadd.
static void exchange(crb_translation *t, const crb_op *op, uint32_t size, uint32_t opcode) {
    crb_emit *e = &t->e;
    atomic_lookup(t, op, size, true);
    crb_jit_get(t, RCX, op->rs2);
    put8(e, 0xf0);
    x86_rm(e, size == 8, opcode, RCX, RAX, 0);
    give(t, op, size, RCX);
}

// Whose old value nobody wants: lock and, or, xor.
static void combine(crb_translation *t, const crb_op *op, uint32_t size, uint32_t alu) {
    atomic_lookup(t, op, size, true);
    const int from = crb_jit_source(t, op->rs2, RCX);
    put8(&t->e, 0xf0);
    x86_rm(&t->e, size == 8, alu - 2, from, RAX, 0);
}

// By compare and exchange: RDX is the address, RAX the old value, RCX the new one.
static void loop(crb_translation *t, const crb_op *op, uint32_t size, uint32_t alu) {
    crb_emit *e = &t->e;
    if (op->rd == CRB_SINK) {
        combine(t, op, size, alu);
        return;
    }
    atomic_lookup(t, op, size, true);
    x86_mov(e, RDX, RAX);
    x86_rm(e, size == 8, 0x8b, RAX, RDX, 0);
    const uint8_t *again = e->at;
    x86_mov(e, RCX, RAX);
    crb_jit_with(t, size == 8, alu, RCX, op->rs2);
    put8(e, 0xf0);
    x86_rm(e, size == 8, 0x0fb1, RCX, RDX, 0);
    x86_place(x86_jcc_later(e, CC_NE), again);
    give(t, op, size, RAX);
}

// ---- By kind

static bool loads(crb_translation *t, const crb_op *op) {
    switch (op->kind) {
    case CRB_OP_LB:
        load(t, op, 1, true, 0x0fbe);
        return true;
    case CRB_OP_LH:
        load(t, op, 2, true, 0x0fbf);
        return true;
    case CRB_OP_LW:
        load(t, op, 4, true, 0x63);
        return true;
    case CRB_OP_LD:
        load(t, op, 8, true, 0x8b);
        return true;
    case CRB_OP_LBU:
        load(t, op, 1, false, 0x0fb6);
        return true;
    case CRB_OP_LHU:
        load(t, op, 2, false, 0x0fb7);
        return true;
    case CRB_OP_LWU:
        load(t, op, 4, false, 0x8b);
        return true;
    default:
        return false;
    }
}

static bool atomics(crb_translation *t, const crb_op *op) {
    const uint32_t size = (op->kind - CRB_OP_LR_W) % 2 == 0 ? 4 : 8;
    switch (op->kind - (size == 8)) {
    case CRB_OP_LR_W:
        load_reserved(t, op, size);
        return true;
    case CRB_OP_SC_W:
        store_conditional(t, op, size);
        return true;
    case CRB_OP_AMOSWAP_W:
        exchange(t, op, size, 0x87);
        return true;
    case CRB_OP_AMOADD_W:
        exchange(t, op, size, 0x0fc1);
        return true;
    case CRB_OP_AMOXOR_W:
        loop(t, op, size, ALU_XOR);
        return true;
    case CRB_OP_AMOAND_W:
        loop(t, op, size, ALU_AND);
        return true;
    case CRB_OP_AMOOR_W:
        loop(t, op, size, ALU_OR);
        return true;
    default:
        return false;
    }
}

bool crb_jit_memory(crb_translation *t, const crb_op *op) {
    if (op->kind >= CRB_OP_SB && op->kind <= CRB_OP_SD) {
        store(t, op);
        return true;
    }
    if (op->kind >= CRB_OP_LR_W && op->kind <= CRB_OP_AMOMAXU_D) return atomics(t, op);
    return loads(t, op);
}

#endif
