// The translator's floating point: SSE in the rounding mode nearest even, as fpu_host.h does it,
// its sticky flags left in MXCSR. Other rounding modes and FS not dirty are the interpreter's.
//
// XMM registers cache f registers within a block. Every result is stored at once, so nothing has to
// be done where a block is left.
#include "rv64/fpu.h"
#include "rv64/jit_translate.h"

#if defined(__x86_64__)

#define S1 14 // scratch
#define S2 15

// SSE opcodes behind 0f.
enum {
    SSE_LOAD = 0x10,
    SSE_STORE = 0x11,
    SSE_MOVE = 0x28,
    SSE_FROM_INT = 0x2a,
    SSE_TRUNCATE = 0x2c,
    SSE_ROUND = 0x2d,
    SSE_UCOMI = 0x2e,
    SSE_COMI = 0x2f,
    SSE_SQRT = 0x51,
    SSE_AND = 0x54,
    SSE_ANDN = 0x55,
    SSE_OR = 0x56,
    SSE_XOR = 0x57,
    SSE_ADD = 0x58,
    SSE_MUL = 0x59,
    SSE_CONVERT = 0x5a,
    SSE_SUB = 0x5c,
    SSE_MIN = 0x5d,
    SSE_DIV = 0x5e,
    SSE_MAX = 0x5f,
    SSE_FROM_GPR = 0x6e,
    SSE_SHIFT = 0x73,
    SSE_EQUAL = 0x76,
    SSE_TO_GPR = 0x7e,
};

static uint32_t scalar(bool is_double) {
    return is_double ? VEX_F2 : VEX_F3;
}

static uint32_t packed(bool is_double) {
    return is_double ? VEX_66 : VEX_NONE;
}

static void sse(crb_translation *t, uint32_t prefix, uint32_t opcode, int to, int a, int b) {
    vex_rr(&t->e, VEX_0F, prefix, false, opcode, to, a, b);
}

// ---- The cache

void crb_jit_float_forget(crb_translation *t) {
    memset(t->cached, -1, sizeof t->cached);
}

static int find(const crb_translation *t, uint32_t f) {
    for (int i = 0; i < CACHE_ANY; i++)
        if (t->cached[i] == (int)f) return i;
    return -1;
}

// A register for f that no operand of this operation is in.
static int place(crb_translation *t, uint32_t f) {
    int xmm = find(t, f);
    while (xmm < 0) {
        const uint32_t next = t->next_cached++ % CACHE_ANY;
        if ((t->pinned >> next & 1) == 0) xmm = (int)next;
    }
    t->cached[xmm] = (int8_t)f;
    t->pinned |= 1u << xmm;
    return xmm;
}

static int get(crb_translation *t, uint32_t f) {
    const int found = find(t, f);
    const int xmm = place(t, f);
    if (found < 0) vex_rm(&t->e, VEX_0F, VEX_F2, false, SSE_LOAD, xmm, 0, RBP, GUEST(CRB_F(f)));
    return xmm;
}

// The register's new value is in `xmm`, and from now on in memory.
static void keep(crb_translation *t, uint32_t f, int xmm, bool is_double) {
    vex_rm(&t->e, VEX_0F, VEX_F2, false, SSE_STORE, xmm, 0, RBP, GUEST(CRB_F(f)));
    if (is_double)
        t->boxed &= ~(1ull << f);
    else
        t->boxed |= 1ull << f;
}

// ---- Checks

// Goes on only while a rounding mode field means nearest even, and FS is dirty.
static void check(crb_translation *t, const crb_op *op, uint32_t rm) {
    if ((t->checked >> rm & 1) != 0) return;
    x86_rm(&t->e, false, 0x80, alu_number(ALU_CMP), RBP, HART(rm) + (int32_t)rm);
    put8(&t->e, 0);
    crb_jit_cold(t, x86_jcc_later(&t->e, CC_NE), COLD_INTERPRET, op_index(t, op));
    t->checked |= 1u << rm | 1;
}

static void check_boxed(crb_translation *t, const crb_op *op, uint32_t f) {
    if ((t->boxed >> f & 1) != 0) return;
    x86_alu_mi(&t->e, false, ALU_CMP, RBP, GUEST(CRB_F(f)) + 4, -1);
    crb_jit_cold(t, x86_jcc_later(&t->e, CC_NE), COLD_INTERPRET, op_index(t, op));
    t->boxed |= 1ull << f;
}

static int operand(crb_translation *t, const crb_op *op, uint32_t f, bool is_double) {
    if (!is_double) check_boxed(t, op, f);
    return get(t, f);
}

// NaNs become the canonical one, out of line.
static void canonical(crb_translation *t, int xmm, bool is_double) {
    sse(t, packed(is_double), SSE_UCOMI, xmm, 0, xmm);
    uint8_t *nan = x86_jcc_later(&t->e, CC_P);
    crb_jit_cold(t, nan, COLD_NAN, (uint32_t)xmm | (uint32_t)is_double << 8);
}

void crb_jit_put_nan(crb_translation *t, const crb_cold *cold) {
    const bool is_double = cold->value >> 8 != 0;
    x86_mov_imm(&t->e, RAX, is_double ? CRB_NAN_D : CRB_BOX_S | CRB_NAN_S);
    vex_rr(&t->e, VEX_0F, VEX_66, true, SSE_FROM_GPR, (int)(cold->value & 15), 0, RAX);
    x86_jmp(&t->e, cold->back);
}

// ---- Instructions' fields

typedef struct fields {
    uint32_t rd, rs1, rs2, rs3, rm;
    bool is_double;
} fields;

static fields split(const crb_op *op) {
    const uint32_t insn = (uint32_t)op->imm;
    return (fields){
        .rd = insn >> 7 & 31,
        .rs1 = insn >> 15 & 31,
        .rs2 = insn >> 20 & 31,
        .rs3 = insn >> 27,
        .rm = insn >> 12 & 7,
        .is_double = (insn >> 25 & 1) != 0,
    };
}

static bool nearest(const fields *i) {
    return i->rm == 0 || i->rm == 7;
}

// ---- Arithmetic

static bool arithmetic(crb_translation *t, const crb_op *op, const fields *i, uint32_t opcode) {
    if (!nearest(i)) return false;
    check(t, op, i->rm);
    const bool one = opcode == SSE_SQRT;
    const int a = operand(t, op, i->rs1, i->is_double);
    const int b = one ? a : operand(t, op, i->rs2, i->is_double);
    const int d = place(t, i->rd);
    // Bits above the result come from the first operand: single precision stays boxed.
    sse(t, scalar(i->is_double), opcode, d, a, b);
    canonical(t, d, i->is_double);
    keep(t, i->rd, d, i->is_double);
    return true;
}

// fmadd, fmsub, fnmsub, fnmadd: vfmadd213, vfmsub213, vfnmadd213, vfnmsub213. NaNs have flags of
// their own (crb_fma_d()), so they are done by a call.
static bool fused(crb_translation *t, const crb_op *op, const fields *i, uint32_t which) {
    static const uint8_t opcodes[] = {0xa9, 0xab, 0xad, 0xaf};
    if (!nearest(i)) return false;
    check(t, op, i->rm);
    const int a = operand(t, op, i->rs1, i->is_double);
    const int b = operand(t, op, i->rs2, i->is_double);
    const int c = operand(t, op, i->rs3, i->is_double);
    const int d = place(t, i->rd);
    sse(t, VEX_66, SSE_MOVE, S1, 0, a);
    vex_rr(&t->e, VEX_0F38, VEX_66, i->is_double, opcodes[which], S1, b, c);
    sse(t, packed(i->is_double), SSE_UCOMI, S1, 0, S1);
    uint8_t *nan = x86_jcc_later(&t->e, CC_P);
    sse(t, VEX_66, SSE_MOVE, d, 0, S1);
    keep(t, i->rd, d, i->is_double);
    crb_jit_cold_slow(t, nan, op);
    return true;
}

// Equal operands (zeros have signs) and NaNs are done by a call.
static bool minmax(crb_translation *t, const crb_op *op, const fields *i) {
    if (i->rm > 1) return false;
    check(t, op, 0);
    const int a = operand(t, op, i->rs1, i->is_double);
    const int b = operand(t, op, i->rs2, i->is_double);
    const int d = place(t, i->rd);
    sse(t, packed(i->is_double), SSE_UCOMI, a, 0, b);
    uint8_t *equal = x86_jcc_later(&t->e, CC_E); // set by NaNs too
    sse(t, scalar(i->is_double), i->rm == 0 ? SSE_MIN : SSE_MAX, d, a, b);
    keep(t, i->rd, d, i->is_double);
    crb_jit_cold_slow(t, equal, op);
    return true;
}

// S1 = the sign bit.
static void sign_bit(crb_translation *t, bool is_double) {
    sse(t, VEX_66, SSE_EQUAL, S1, S1, S1);
    sse(t, VEX_66, SSE_SHIFT, 6, S1, S1);
    put8(&t->e, 63);
    if (is_double) return;
    sse(t, VEX_66, SSE_SHIFT, 2, S1, S1);
    put8(&t->e, 32);
}

static bool sign(crb_translation *t, const crb_op *op, const fields *i) {
    if (i->rm > 2) return false;
    check(t, op, 0);
    const int a = operand(t, op, i->rs1, i->is_double);
    const int b = operand(t, op, i->rs2, i->is_double);
    const int d = place(t, i->rd);
    if (i->rm == 0 && a == b) {
        if (d != a) sse(t, VEX_66, SSE_MOVE, d, 0, a);
        keep(t, i->rd, d, i->is_double);
        return true;
    }
    sign_bit(t, i->is_double);
    if (i->rm == 1 && a == b) {
        sse(t, VEX_66, SSE_XOR, d, a, S1);
    } else if (i->rm == 2) {
        sse(t, VEX_66, SSE_AND, S2, S1, b);
        sse(t, VEX_66, SSE_XOR, d, a, S2);
    } else {
        if (i->rm == 1)
            sse(t, VEX_66, SSE_ANDN, S2, b, S1);
        else
            sse(t, VEX_66, SSE_AND, S2, S1, b);
        sse(t, VEX_66, SSE_ANDN, S1, S1, a);
        sse(t, VEX_66, SSE_OR, d, S1, S2);
    }
    keep(t, i->rd, d, i->is_double);
    return true;
}

// ---- To integer registers

static void give(crb_translation *t, uint32_t rd) {
    if (rd != 0) crb_jit_set(t, rd, RAX);
}

// feq is quiet; flt and fle are comi with the operands swapped, as in fpu_host.h.
static bool compare(crb_translation *t, const crb_op *op, const fields *i) {
    if (i->rm > 2) return false;
    check(t, op, 0);
    const int a = operand(t, op, i->rs1, i->is_double);
    const int b = operand(t, op, i->rs2, i->is_double);
    if (i->rm == 2) {
        sse(t, packed(i->is_double), SSE_UCOMI, a, 0, b);
        x86_setcc(&t->e, CC_NP, RAX);
        x86_setcc(&t->e, CC_E, RCX);
        x86_rr(&t->e, false, ALU_AND, RAX, RCX);
    } else {
        sse(t, packed(i->is_double), SSE_COMI, b, 0, a);
        x86_setcc(&t->e, i->rm == 1 ? CC_A : CC_AE, RAX);
    }
    give(t, i->rd);
    return true;
}

// Only what is certain to be in range: others raise other flags.
static uint8_t *unsigned_range(crb_translation *t, const fields *i) {
    static const uint64_t limits[2][2] = {{0x4f800000, 0x5f000000},
                                          {0x41f0000000000000, 0x43e0000000000000}};
    const int a = get(t, i->rs1);
    vex_rr(&t->e, VEX_0F, VEX_66, i->is_double, SSE_TO_GPR, a, 0, RAX);
    x86_mov_imm(&t->e, RCX, limits[i->is_double][i->rs2 >> 1]);
    x86_rr(&t->e, true, ALU_CMP, RAX, RCX);
    return x86_jcc_later(&t->e, CC_AE);
}

// w, wu, l, lu by rs2. The least integer stands for NaN and overflow too: then by a call.
static bool to_integer(crb_translation *t, const crb_op *op, const fields *i) {
    const bool truncates = i->rm == CRB_RM_RTZ;
    const bool is_unsigned = (i->rs2 & 1) != 0;
    if (i->rs2 > 3 || !(truncates || (nearest(i) && !is_unsigned))) return false;
    check(t, op, truncates ? 0 : i->rm);
    const int a = operand(t, op, i->rs1, i->is_double);
    const bool w = i->rs2 != 0;
    uint8_t *out = is_unsigned ? unsigned_range(t, i) : NULL;
    vex_rr(&t->e, VEX_0F, scalar(i->is_double), w, truncates ? SSE_TRUNCATE : SSE_ROUND, RAX, 0, a);
    if (!is_unsigned) {
        x86_alu_ri(&t->e, w, ALU_CMP, RAX, 1);
        out = x86_jcc_later(&t->e, CC_O);
    }
    if (i->rs2 < 2) x86_sext32(&t->e, RAX, RAX);
    give(t, i->rd);
    crb_jit_cold_slow(t, out, op);
    return true;
}

static bool move_out(crb_translation *t, const crb_op *op, const fields *i) {
    if (i->rs2 != 0 || i->rm != 0) return false;
    check(t, op, 0);
    if (i->rd == 0) return true;
    const int a = find(t, i->rs1);
    if (a >= 0)
        vex_rr(&t->e, VEX_0F, VEX_66, true, SSE_TO_GPR, a, 0, RAX);
    else
        x86_load(&t->e, RAX, RBP, GUEST(CRB_F(i->rs1)));
    if (!i->is_double) x86_sext32(&t->e, RAX, RAX);
    give(t, i->rd);
    return true;
}

// ---- From integer registers

// S2 = all ones, what single precision is boxed with.
static void ones(crb_translation *t) {
    sse(t, VEX_66, SSE_EQUAL, S2, S2, S2);
}

static bool from_integer(crb_translation *t, const crb_op *op, const fields *i) {
    uint8_t *large = NULL;
    if (i->rs2 > 3 || !nearest(i)) return false;
    check(t, op, i->rm);
    crb_jit_get(t, RAX, i->rs1);
    if (i->rs2 == 0) x86_sext32(&t->e, RAX, RAX);
    if (i->rs2 == 1) x86_mov32(&t->e, RAX, RAX);
    if (i->rs2 == 3) {
        x86_rr(&t->e, true, 0x85, RAX, RAX);
        large = x86_jcc_later(&t->e, CC_S);
    }
    const int d = place(t, i->rd);
    ones(t);
    vex_rr(&t->e, VEX_0F, scalar(i->is_double), true, SSE_FROM_INT, d, S2, RAX);
    keep(t, i->rd, d, i->is_double);
    if (large != NULL) crb_jit_cold_slow(t, large, op);
    return true;
}

static bool move_in(crb_translation *t, const crb_op *op, const fields *i) {
    if (i->rs2 != 0 || i->rm != 0) return false;
    check(t, op, 0);
    const int d = place(t, i->rd);
    const int from = crb_jit_source(t, i->rs1, RAX);
    if (i->is_double) {
        vex_rr(&t->e, VEX_0F, VEX_66, true, SSE_FROM_GPR, d, 0, from);
    } else {
        ones(t);
        vex_rr(&t->e, VEX_0F3A, VEX_66, false, 0x22, d, S2, from); // vpinsrd
        put8(&t->e, 0);
    }
    keep(t, i->rd, d, i->is_double);
    return true;
}

// fcvt.s.d and fcvt.d.s: is_double is the result's.
static bool convert(crb_translation *t, const crb_op *op, const fields *i) {
    if (!nearest(i) || i->rs2 != !i->is_double) return false;
    check(t, op, i->rm);
    const int a = operand(t, op, i->rs1, !i->is_double);
    const int d = place(t, i->rd);
    if (!i->is_double) ones(t);
    sse(t, scalar(!i->is_double), SSE_CONVERT, d, i->is_double ? a : S2, a);
    canonical(t, d, i->is_double);
    keep(t, i->rd, d, i->is_double);
    return true;
}

// ---- Memory

static bool load(crb_translation *t, const crb_op *op) {
    const bool is_double = op->kind == CRB_OP_FLD;
    const uint32_t f = op->rd - CRB_F(0);
    check(t, op, 0);
    const crb_host_operand at = crb_jit_lookup(t, op, is_double ? 8 : 4, false);
    const int d = place(t, f);
    if (is_double) {
        vex_rx(&t->e, VEX_0F, VEX_F2, false, SSE_LOAD, d, 0, at.base, at.index, at.disp);
    } else {
        ones(t); // vpinsrd
        vex_rx(&t->e, VEX_0F3A, VEX_66, false, 0x22, d, S2, at.base, at.index, at.disp);
        put8(&t->e, 0);
    }
    keep(t, f, d, is_double);
    crb_jit_missed(t, &at, op);
    return true;
}

static bool store(crb_translation *t, const crb_op *op) {
    const bool is_double = op->kind == CRB_OP_FSD;
    check(t, op, 0);
    const crb_host_operand at = crb_jit_lookup(t, op, is_double ? 8 : 4, true);
    const int from = find(t, op->rs2 - CRB_F(0));
    if (from >= 0) {
        vex_rx(&t->e, VEX_0F, scalar(is_double), false, SSE_STORE, from, 0, at.base, at.index,
               at.disp);
    } else {
        const int scratch = at.index == RAX ? RDX : RAX;
        x86_load(&t->e, scratch, RBP, GUEST(op->rs2));
        x86_rx(&t->e, is_double, 0x89, scratch, at.base, at.index, at.disp);
    }
    crb_jit_missed(t, &at, op);
    return true;
}

// Half precision is boxed by all bits above.
static bool load_half(crb_translation *t, const crb_op *op) {
    const uint32_t f = op->rd - CRB_F(0);
    check(t, op, 0);
    const crb_host_operand at = crb_jit_lookup(t, op, 2, false);
    x86_rx(&t->e, false, 0x0fb7, RAX, at.base, at.index, at.disp); // movzx
    x86_alu_ri(&t->e, true, ALU_OR, RAX, -0x10000);
    const int d = place(t, f);
    vex_rr(&t->e, VEX_0F, VEX_66, true, SSE_FROM_GPR, d, 0, RAX);
    keep(t, f, d, false);
    crb_jit_missed(t, &at, op);
    return true;
}

static bool store_half(crb_translation *t, const crb_op *op) {
    check(t, op, 0);
    const crb_host_operand at = crb_jit_lookup(t, op, 2, true);
    const int scratch = at.index == RAX ? RDX : RAX;
    x86_load(&t->e, scratch, RBP, GUEST(op->rs2));
    x86_rx(&t->e, false, 0x660000 | 0x89, scratch, at.base, at.index, at.disp);
    crb_jit_missed(t, &at, op);
    return true;
}

// ---- By kind

static bool misc(crb_translation *t, const crb_op *op, const fields *i) {
    const uint32_t insn = (uint32_t)op->imm;
    if ((insn & 0x7f) != 0x53 || (insn >> 26 & 1) != 0) return false;
    switch (insn >> 27) {
    case 0x04:
        return sign(t, op, i);
    case 0x05:
        return minmax(t, op, i);
    case 0x08:
        return convert(t, op, i);
    case 0x0b:
        return i->rs2 == 0 && arithmetic(t, op, i, SSE_SQRT);
    case 0x14:
        return compare(t, op, i);
    case 0x18:
        return to_integer(t, op, i);
    case 0x1a:
        return from_integer(t, op, i);
    case 0x1c:
        return move_out(t, op, i);
    case 0x1e:
        return move_in(t, op, i);
    default:
        return false;
    }
}

// ---- fflags, which compilers save around comparisons

#define CSR_FFLAGS 1
#define FUNCT3_RW  1
#define FUNCT3_RS  2

static const uint8_t flags_of[64] = {
#define FLAGS(m)                                                                                   \
    (((m) & 1) << 4 | ((m) & 4) << 1 | ((m) & 8) >> 1 | ((m) & 16) >> 3 | ((m) & 32) >> 5)
#define FLAGS4(m)  FLAGS(m), FLAGS((m) + 1), FLAGS((m) + 2), FLAGS((m) + 3)
#define FLAGS16(m) FLAGS4(m), FLAGS4((m) + 4), FLAGS4((m) + 8), FLAGS4((m) + 12)
    FLAGS16(0), FLAGS16(16), FLAGS16(32), FLAGS16(48)};

// EAX = what MXCSR adds to fflags.
static void put_host_flags(crb_translation *t) {
    crb_emit *e = &t->e;
    x86_rm(e, false, 0x0fae, 3, RBP, HART(jit_result)); // stmxcsr
    x86_rm(e, false, 0x8b, RAX, RBP, HART(jit_result));
    x86_alu_ri(e, false, ALU_AND, RAX, 63);
    x86_mov_imm(e, RCX, (uintptr_t)flags_of);
    x86_rx(e, false, 0x0fb6, RAX, RCX, RAX, 0);
}

// Reading: both places together.
static void read_flags(crb_translation *t, const crb_op *op) {
    put_host_flags(t);
    x86_rm(&t->e, false, ALU_OR, RAX, RBP, HART(fflags));
    crb_jit_set(t, op->rd, RAX);
}

// Writing: what MXCSR holds may stay when it is among the new flags.
static void write_flags(crb_translation *t, const crb_op *op) {
    crb_emit *e = &t->e;
    put_host_flags(t);
    crb_jit_get(t, RCX, op->rs1);
    x86_alu_ri(e, false, ALU_AND, RCX, 31);
    vex_rr(e, VEX_0F38, VEX_NONE, false, 0xf2, RAX, RCX, RAX); // andn
    x86_rr(e, false, 0x85, RAX, RAX);
    uint8_t *others = x86_jcc_later(e, CC_NE);
    x86_rm(e, false, 0x89, RCX, RBP, HART(fflags));
    crb_jit_cold_slow(t, others, op);
}

static bool is_read(const crb_op *op) {
    return op->rs2 == FUNCT3_RS && op->rs1 == 0;
}

static bool is_flags(const crb_op *op) {
    return op->kind == CRB_OP_CSR && (uint32_t)op->imm >> 20 == CSR_FFLAGS &&
           (is_read(op) || (op->rs2 == FUNCT3_RW && op->rd == CRB_SINK));
}

static bool flags(crb_translation *t, const crb_op *op) {
    check(t, op, 0);
    if (is_read(op))
        read_flags(t, op);
    else
        write_flags(t, op);
    return true;
}

bool crb_jit_float_in_place(const crb_op *op) {
    if (op->kind == CRB_OP_CSR) return is_flags(op);
    const fields i = split(op);
    if (op->kind != CRB_OP_FP) return nearest(&i);
    if (((uint32_t)op->imm >> 26 & 1) != 0) return false;
    switch ((uint32_t)op->imm >> 27) {
    case 0x04:
    case 0x14:
        return i.rm <= 2;
    case 0x05:
        return i.rm <= 1;
    case 0x0b:
        return nearest(&i) && i.rs2 == 0;
    case 0x1c:
    case 0x1e:
        return i.rm == 0 && i.rs2 == 0;
    default:
        return false;
    }
}

bool crb_jit_float(crb_translation *t, const crb_op *op) {
    static const uint8_t opcodes[] = {SSE_ADD, SSE_SUB, SSE_MUL, SSE_DIV};
    t->pinned = 0;
    if (op->kind == CRB_OP_FLW || op->kind == CRB_OP_FLD) return load(t, op);
    if (op->kind == CRB_OP_FSW || op->kind == CRB_OP_FSD) return store(t, op);
    if (op->kind == CRB_OP_FLH) return load_half(t, op);
    if (op->kind == CRB_OP_FSH) return store_half(t, op);
    if (is_flags(op)) return flags(t, op);
    if (op->kind < CRB_OP_FP || op->kind > CRB_OP_FNMADD_D) return false;
    const fields i = split(op);
    if (op->kind == CRB_OP_FP) return misc(t, op, &i);
    if (op->kind <= CRB_OP_FDIV_D)
        return arithmetic(t, op, &i, opcodes[(op->kind - CRB_OP_FADD_S) % 4]);
    return fused(t, op, &i, (op->kind - CRB_OP_FMADD_S) % 4);
}

#endif
