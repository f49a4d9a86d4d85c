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

// RCX = offset of an address's entry in the TLB's arrays.
static void entry_offset(crb_translation *t, int at) {
    x86_rorx32(&t->e, RCX, at, CRB_PAGE_SHIFT - 4);
    x86_alu_ri(&t->e, false, ALU_AND, RCX, (CRB_TLB_SIZE - 1) << 4);
}

static int32_t array_of(bool write) {
    return write ? WRITE_ARRAY : 0;
}

// Jumps unless the page of the last byte is what the entry at RCX is for.
static uint8_t *compare_page(crb_translation *t, int scratch, bool write) {
    x86_alu_ri(&t->e, true, ALU_AND, scratch, -(int32_t)CRB_PAGE_SIZE);
    x86_rx(&t->e, true, ALU_CMP, scratch, TLB, RCX, array_of(write));
    return x86_jcc_later(&t->e, CC_NE);
}

// Bytes from base + low to base + high are in one page whose addend is `to`; or jumps.
static uint8_t *lookup_range(crb_translation *t, int base, int32_t low, int32_t high, bool write,
                             int to) {
    crb_emit *e = &t->e;
    if (low != 0) x86_lea(e, RAX, base, low);
    entry_offset(t, low != 0 ? RAX : base);
    if (high != 1)
        x86_lea(e, RAX, base, high - 1);
    else
        x86_mov(e, RAX, base);
    uint8_t *miss = compare_page(t, RAX, write);
    x86_rx(e, true, 0x8b, to, TLB, RCX, array_of(write) + ADDEND);
    return miss;
}

crb_host_operand crb_jit_lookup(crb_translation *t, const crb_op *op, uint32_t size, bool write) {
    crb_emit *e = &t->e;
    const int base = crb_jit_host[op->rs1];
    const int32_t bytes = (int32_t)size;
    if (t->group_end != 0 && t->group_base == op->rs1 && (t->group_write || !write))
        return (crb_host_operand){.base = RDX, .index = base, .disp = op->imm};
    if (base >= 0) {
        uint8_t *miss = lookup_range(t, base, op->imm, op->imm + bytes, write, RCX);
        return (crb_host_operand){.miss = miss, .base = RCX, .index = base, .disp = op->imm};
    }
    address(t, op->rs1, op->imm);
    entry_offset(t, RAX);
    x86_lea(e, RDX, RAX, bytes - 1);
    uint8_t *miss = compare_page(t, RDX, write);
    x86_rx(e, true, 0x8b, RCX, TLB, RCX, array_of(write) + ADDEND);
    return (crb_host_operand){.miss = miss, .base = RCX, .index = RAX};
}

void crb_jit_missed(crb_translation *t, const crb_host_operand *at, const crb_op *op) {
    if (at->miss != NULL) crb_jit_cold_slow(t, at->miss, op);
}

static void load(crb_translation *t, const crb_op *op, uint32_t size, bool w, uint32_t opcode) {
    const crb_host_operand at = crb_jit_lookup(t, op, size, false);
    const int to = crb_jit_target(op->rd, RAX);
    x86_rx(&t->e, w, opcode, to, at.base, at.index, at.disp);
    crb_jit_set(t, op->rd, to);
    crb_jit_missed(t, &at, op);
}

static void store(crb_translation *t, const crb_op *op) {
    crb_emit *e = &t->e;
    const uint32_t size = 1u << op->rd;
    const crb_host_operand at = crb_jit_lookup(t, op, size, true);
    const int from = crb_jit_source(t, op->rs2, at.index == RAX ? RDX : RAX);
    if (size == 1)
        x86_rx8(e, 0x88, from, at.base, at.index, at.disp);
    else if (size == 2)
        x86_rx(e, false, 0x660000 | 0x89, from, at.base, at.index, at.disp);
    else
        x86_rx(e, size == 8, 0x89, from, at.base, at.index, at.disp);
    crb_jit_missed(t, &at, op);
}

// ---- Groups: accesses by the same base register, which nothing changes in between, look the TLB
// up once for all of them. When they are not in one page, or when anything in between is done out
// of line, it goes on in another version of the same code that looks up each (COLD_GROUP). Where
// something is stored all look for a page to write: it can be read there, too (mmu.c).

#define GROUP_SPAN 1024

static bool is_store(uint32_t kind) {
    return (kind >= CRB_OP_SB && kind <= CRB_OP_SD) || kind == CRB_OP_FSW || kind == CRB_OP_FSD;
}

static bool is_access(uint32_t kind) {
    return kind >= CRB_OP_LB && kind <= CRB_OP_FSD;
}

static int32_t access_size(const crb_op *op) {
    const uint32_t size = is_store(op->kind) ? op->rd : op->rs2;
    return size == CRB_SIZE_FW ? 4 : 1 << (size & 3);
}

static bool is_branch(uint32_t kind) {
    return kind >= CRB_OP_BEQ_U && kind <= CRB_OP_BGEU_X;
}

// Leaves RDX alone, and is translated in place?
static bool is_safe(const crb_translation *t, const crb_op *op) {
    if (is_access(op->kind)) return crb_jit_host[op->rs1] >= 0;
    if (is_branch(op->kind)) return !crb_jit_jumps_inside(t, op);
    if ((op->kind >= CRB_OP_FP && op->kind <= CRB_OP_FNMADD_D) || op->kind == CRB_OP_CSR)
        return crb_jit_float_in_place(op);
    return op->kind < CRB_OP_MULH || op->kind == CRB_OP_MULW ||
           (op->kind > CRB_OP_REMUW && op->kind <= CRB_OP_CZERO_NEZ && op->kind != CRB_OP_ORC_B);
}

static bool writes(const crb_op *op, uint32_t x) {
    if (op->kind == CRB_OP_FP) return ((uint32_t)op->imm >> 7 & 31) == x; // some give integers
    return op->rd == x && (op->kind <= CRB_OP_LWU || op->kind == CRB_OP_CSR);
}

typedef struct range {
    int32_t low, high;
    uint32_t count, end;
    bool write;
} range;

// A store behind a branch that may never get there does not make readers look for a page to write.
static range find_group(const crb_translation *t, uint32_t slot) {
    const crb_op *first = t->entry + slot;
    range found = {first->imm, first->imm + access_size(first), 1, slot + 1, is_store(first->kind)};
    bool certain = true;
    while (!writes(&t->entry[slot], first->rs1)) {
        const crb_op *op = t->entry + ++slot;
        if (slot >= t->n_slots || crb_jit_is_join(t, slot) || !is_safe(t, op)) break;
        if (is_branch(op->kind)) certain = false;
        if (!is_access(op->kind) || op->rs1 != first->rs1) continue;
        const bool write = found.write || is_store(op->kind);
        if (write != found.write && !certain) continue;
        const int32_t end = op->imm + access_size(op);
        const int32_t low = op->imm < found.low ? op->imm : found.low;
        const int32_t high = end > found.high ? end : found.high;
        if (high - low > GROUP_SPAN) break;
        found = (range){low, high, found.count + 1, slot + 1, write};
    }
    return found;
}

void crb_jit_group(crb_translation *t, uint32_t slot) {
    const crb_op *op = t->entry + slot;
    if (t->group_end == slot) t->group_end = 0;
    if (t->group_end != 0 || t->ungrouped) return;
    if (!is_access(op->kind) || crb_jit_host[op->rs1] < 0) return;
    const range group = find_group(t, slot);
    if (group.count < 2) return;
    uint8_t *miss = lookup_range(t, crb_jit_host[op->rs1], group.low, group.high, group.write, RDX);
    crb_cold *cold = crb_jit_cold(t, miss, COLD_GROUP, slot);
    memcpy(cold->cached, t->cached, sizeof cold->cached);
    cold->next_cached = t->next_cached;
    cold->checked = t->checked;
    cold->boxed = t->boxed;
    cold->slot = group.end;
    t->group_end = group.end;
    t->group_base = op->rs1;
    t->group_write = group.write;
}

// ---- Atomics: aligned, or the interpreter's

// RAX = host address.
static void atomic_lookup(crb_translation *t, const crb_op *op, uint32_t size, bool write) {
    crb_emit *e = &t->e;
    const int32_t array = array_of(write);
    address(t, op->rs1, 0);
    entry_offset(t, RAX);
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

// amomin and its like: the operand is taken when the condition holds for it and the old value.
static void extreme(crb_translation *t, const crb_op *op, uint32_t size, int condition) {
    crb_emit *e = &t->e;
    const bool w = size == 8;
    atomic_lookup(t, op, size, true);
    x86_mov(e, RDX, RAX);
    x86_rm(e, w, 0x8b, RAX, RDX, 0);
    const uint8_t *again = e->at;
    crb_jit_get(t, RCX, op->rs2);
    x86_rr(e, w, ALU_CMP, RCX, RAX);
    x86_rr(e, w, 0x0f40 | (uint32_t)(condition ^ 1), RCX, RAX);
    put8(e, 0xf0);
    x86_rm(e, w, 0x0fb1, RCX, RDX, 0);
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
    case CRB_OP_AMOMIN_W:
        extreme(t, op, size, CC_L);
        return true;
    case CRB_OP_AMOMAX_W:
        extreme(t, op, size, CC_G);
        return true;
    case CRB_OP_AMOMINU_W:
        extreme(t, op, size, CC_B);
        return true;
    case CRB_OP_AMOMAXU_W:
        extreme(t, op, size, CC_A);
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
