// The translator's integer operations.
#include "rv64/jit_translate.h"

#if defined(__x86_64__)

// ---- Two sources

static void finish(crb_translation *t, const crb_op *op, bool word, int result) {
    if (word) {
        const int to = crb_jit_target(op->rd, result);
        x86_sext32(&t->e, to, result);
        crb_jit_set(t, op->rd, to);
    } else {
        crb_jit_set(t, op->rd, result);
    }
}

// rd = rs1 op rs2.
static void alu(crb_translation *t, const crb_op *op, uint32_t opcode, bool word,
                bool commutative) {
    crb_emit *e = &t->e;
    uint32_t a = op->rs1;
    uint32_t b = op->rs2;
    const int rd = crb_jit_host[op->rd];
    if (commutative && b == op->rd) {
        b = a;
        a = op->rd;
    }
    if (!word && rd < 0 && a == op->rd && crb_jit_host[b] >= 0 && opcode <= ALU_XOR) {
        x86_rm(e, true, opcode - 2, crb_jit_host[b], RBP, GUEST(a));
        return;
    }
    int to = rd < 0 || (b == op->rd && a != op->rd) ? RAX : rd;
    crb_jit_get(t, to, a);
    crb_jit_with(t, !word, opcode, to, b);
    finish(t, op, word, to);
}

static void add(crb_translation *t, const crb_op *op) {
    const int rd = crb_jit_host[op->rd];
    const int a = crb_jit_host[op->rs1];
    const int b = crb_jit_host[op->rs2];
    if (rd >= 0 && a >= 0 && b >= 0 && rd != a && rd != b)
        x86_rx(&t->e, true, 0x8d, rd, a, b, 0);
    else
        alu(t, op, ALU_ADD, false, true);
}

// By a register's low bits: shlx, shrx and sarx, whose prefixes tell them apart.
static void shift(crb_translation *t, const crb_op *op, uint32_t prefix, bool word) {
    const int amount = crb_jit_source(t, op->rs2, RCX);
    const int a = crb_jit_source(t, op->rs1, RAX);
    const int to = crb_jit_target(op->rd, RAX);
    vex_rr(&t->e, VEX_0F38, prefix, !word, 0xf7, to, amount, a);
    finish(t, op, word, to);
}

static void rotate(crb_translation *t, const crb_op *op, int which, bool word) {
    crb_jit_get(t, RCX, op->rs2);
    crb_jit_get(t, RAX, op->rs1);
    x86_shift(&t->e, !word, which, RAX);
    finish(t, op, word, RAX);
}

static void set_less(crb_translation *t, const crb_op *op, int condition) {
    const int a = crb_jit_source(t, op->rs1, RAX);
    crb_jit_with(t, true, ALU_CMP, a, op->rs2);
    x86_setcc(&t->e, condition, RAX);
    crb_jit_set(t, op->rd, RAX);
}

static void choose(crb_translation *t, const crb_op *op, int condition) {
    crb_jit_get(t, RAX, op->rs1);
    const int b = crb_jit_source(t, op->rs2, RCX);
    x86_rr(&t->e, true, ALU_CMP, RAX, b);
    x86_rr(&t->e, true, 0x0f40 | (uint32_t)condition, RAX, b);
    crb_jit_set(t, op->rd, RAX);
}

// rs1 op ~rs2.
static void inverted(crb_translation *t, const crb_op *op, uint32_t opcode) {
    crb_jit_get(t, RAX, op->rs2);
    x86_rr(&t->e, true, 0xf7, 2, RAX);
    crb_jit_with(t, true, opcode, RAX, op->rs1);
    crb_jit_set(t, op->rd, RAX);
}

// (rs1 << shift) + rs2, rs1 of 32 bits without sign with `unsigned_word`.
static void shift_add(crb_translation *t, const crb_op *op, uint32_t amount, bool unsigned_word) {
    if (unsigned_word) {
        crb_jit_with(t, false, 0x8b, RAX, op->rs1);
    } else {
        crb_jit_get(t, RAX, op->rs1);
    }
    if (amount != 0) x86_shift_imm(&t->e, true, SHIFT_SHL, RAX, amount);
    crb_jit_with(t, true, ALU_ADD, RAX, op->rs2);
    crb_jit_set(t, op->rd, RAX);
}

// rs1, or zero when the condition holds for rs2.
static void zero_if(crb_translation *t, const crb_op *op, int condition) {
    crb_emit *e = &t->e;
    crb_jit_get(t, RAX, op->rs1);
    x86_mov_imm(e, RCX, 0);
    if (crb_jit_host[op->rs2] >= 0)
        x86_rr(e, true, 0x85, crb_jit_host[op->rs2], crb_jit_host[op->rs2]);
    else
        x86_alu_mi(e, true, ALU_CMP, RBP, GUEST(op->rs2), 0);
    x86_rr(e, true, 0x0f40 | (uint32_t)condition, RAX, RCX);
    crb_jit_set(t, op->rd, RAX);
}

// bts and its like: 0f ab bts, b3 btr, bb btc; the register's low six bits say which.
static void single_bit(crb_translation *t, const crb_op *op, uint32_t opcode) {
    crb_jit_get(t, RAX, op->rs1);
    const int b = crb_jit_source(t, op->rs2, RCX);
    x86_rr(&t->e, true, opcode, b, RAX);
    crb_jit_set(t, op->rd, RAX);
}

static void extract_bit(crb_translation *t, const crb_op *op) {
    const int a = crb_jit_source(t, op->rs1, RAX);
    const int b = crb_jit_source(t, op->rs2, RCX);
    vex_rr(&t->e, VEX_0F38, VEX_F2, true, 0xf7, RAX, b, a);
    x86_alu_ri(&t->e, false, ALU_AND, RAX, 1);
    crb_jit_set(t, op->rd, RAX);
}

// ---- Multiplication and division

// The high half: mul is field 4, imul 5.
static void multiply_high(crb_translation *t, const crb_op *op, int field) {
    crb_jit_get(t, RAX, op->rs1);
    const int b = crb_jit_source(t, op->rs2, RCX);
    x86_rr(&t->e, true, 0xf7, field, b);
    crb_jit_set(t, op->rd, RDX);
}

// Signed times unsigned: from the unsigned product, rs2 is taken off when rs1 is negative.
static void multiply_mixed(crb_translation *t, const crb_op *op) {
    crb_emit *e = &t->e;
    crb_jit_get(t, RAX, op->rs1);
    crb_jit_get(t, RCX, op->rs2);
    x86_rr(e, true, 0xf7, 4, RCX);
    crb_jit_get(t, RAX, op->rs1);
    x86_shift_imm(e, true, SHIFT_SAR, RAX, 63);
    x86_rr(e, true, ALU_AND, RAX, RCX);
    x86_rr(e, true, ALU_SUB, RDX, RAX);
    crb_jit_set(t, op->rd, RDX);
}

static bool is_remainder(uint32_t kind) {
    return kind == CRB_OP_REM || kind == CRB_OP_REMU || kind == CRB_OP_REMW || kind == CRB_OP_REMUW;
}

// By zero: quotient all ones, remainder the dividend. By -1, which overflows once: its negative
// and 0.
static void divide(crb_translation *t, const crb_op *op, bool is_signed, bool word) {
    crb_emit *e = &t->e;
    const bool remainder = is_remainder(op->kind);
    uint8_t *minus = NULL;
    uint8_t *negated = NULL;
    crb_jit_get(t, RAX, op->rs1);
    crb_jit_get(t, RCX, op->rs2);
    x86_rr(e, !word, 0x85, RCX, RCX);
    uint8_t *zero = x86_jcc_later(e, CC_E);
    if (is_signed) {
        x86_alu_ri(e, !word, ALU_CMP, RCX, -1);
        minus = x86_jcc_later(e, CC_E);
        if (!word) put8(e, 0x48);
        put8(e, 0x99); // cdq, cqo
    } else {
        x86_rr(e, false, ALU_XOR, RDX, RDX);
    }
    x86_rr(e, !word, 0xf7, is_signed ? 7 : 6, RCX);
    if (remainder) x86_mov(e, RAX, RDX);
    uint8_t *done = x86_jmp_later(e);
    if (is_signed) {
        x86_place(minus, e->at);
        if (remainder)
            x86_rr(e, false, ALU_XOR, RAX, RAX);
        else
            x86_rr(e, !word, 0xf7, 3, RAX);
        negated = x86_jmp_later(e);
    }
    x86_place(zero, e->at);
    if (!remainder) x86_mov_imm(e, RAX, UINT64_MAX);
    x86_place(done, e->at);
    if (negated != NULL) x86_place(negated, e->at);
    finish(t, op, word, RAX);
}

// ---- One source

static void alu_imm(crb_translation *t, const crb_op *op, uint32_t opcode, bool word) {
    crb_emit *e = &t->e;
    const int rd = crb_jit_host[op->rd];
    const int a = crb_jit_host[op->rs1];
    if (!word && rd < 0 && op->rd == op->rs1) {
        x86_alu_mi(e, true, opcode, RBP, GUEST(op->rd), op->imm);
        return;
    }
    const int to = rd < 0 ? RAX : rd;
    if (opcode == ALU_ADD && a >= 0 && a != to) {
        x86_rm(e, !word, 0x8d, to, a, op->imm);
    } else {
        crb_jit_get(t, to, op->rs1);
        x86_alu_ri(e, !word, opcode, to, op->imm);
    }
    finish(t, op, word, to);
}

static void shift_imm(crb_translation *t, const crb_op *op, int which, bool word) {
    const int to = crb_jit_target(op->rd, RAX);
    crb_jit_get(t, to, op->rs1);
    x86_shift_imm(&t->e, !word, which, to, (uint32_t)op->imm & (word ? 31 : 63));
    finish(t, op, word, to);
}

static void set_less_imm(crb_translation *t, const crb_op *op, int condition) {
    const int a = crb_jit_host[op->rs1];
    if (a >= 0)
        x86_alu_ri(&t->e, true, ALU_CMP, a, op->imm);
    else
        x86_alu_mi(&t->e, true, ALU_CMP, RBP, GUEST(op->rs1), op->imm);
    x86_setcc(&t->e, condition, RAX);
    crb_jit_set(t, op->rd, RAX);
}

// popcnt, lzcnt, tzcnt, and extensions: `op reg, r/m`.
static void unary(crb_translation *t, const crb_op *op, bool w, uint32_t opcode) {
    const int to = crb_jit_target(op->rd, RAX);
    crb_jit_with(t, w, opcode, to, op->rs1);
    crb_jit_set(t, op->rd, to);
}

// movsx and movzx from the low byte or half.
static void extend(crb_translation *t, const crb_op *op, bool w, uint32_t opcode) {
    const int a = crb_jit_source(t, op->rs1, RAX);
    const int to = crb_jit_target(op->rd, RAX);
    x86_rr8(&t->e, w, opcode, to, a);
    crb_jit_set(t, op->rd, to);
}

static void single_bit_imm(crb_translation *t, const crb_op *op, int field) {
    crb_jit_get(t, RAX, op->rs1);
    x86_rr(&t->e, true, 0x0fba, field, RAX);
    put8(&t->e, (uint32_t)op->imm & 63);
    crb_jit_set(t, op->rd, RAX);
}

static void extract_bit_imm(crb_translation *t, const crb_op *op) {
    crb_jit_get(t, RAX, op->rs1);
    x86_shift_imm(&t->e, true, SHIFT_SHR, RAX, (uint32_t)op->imm & 63);
    x86_alu_ri(&t->e, false, ALU_AND, RAX, 1);
    crb_jit_set(t, op->rd, RAX);
}

static void load_imm(crb_translation *t, const crb_op *op) {
    const int rd = crb_jit_host[op->rd];
    if (rd >= 0)
        x86_mov_imm(&t->e, rd, (uint64_t)(int64_t)op->imm);
    else
        x86_store_imm(&t->e, RBP, GUEST(op->rd), op->imm);
}

static void auipc(crb_translation *t, const crb_op *op) {
    const int to = crb_jit_target(op->rd, RAX);
    x86_load(&t->e, to, RBP, HART(page_va));
    x86_alu_ri(&t->e, true, ALU_ADD, to, op->imm);
    crb_jit_set(t, op->rd, to);
}

static void slli_uw(crb_translation *t, const crb_op *op) {
    crb_jit_with(t, false, 0x8b, RAX, op->rs1);
    x86_shift_imm(&t->e, true, SHIFT_SHL, RAX, (uint32_t)op->imm & 63);
    crb_jit_set(t, op->rd, RAX);
}

static void rev8(crb_translation *t, const crb_op *op) {
    crb_jit_get(t, RAX, op->rs1);
    put8(&t->e, 0x48); // bswap rax
    put8(&t->e, 0x0f);
    put8(&t->e, 0xc8);
    crb_jit_set(t, op->rd, RAX);
}

// As crb_orc_b().
static void orc_b(crb_translation *t, const crb_op *op) {
    crb_emit *e = &t->e;
    crb_jit_get(t, RAX, op->rs1);
    x86_mov_imm(e, RDX, 0x7f7f7f7f7f7f7f7full);
    x86_mov(e, RCX, RAX);
    x86_rr(e, true, ALU_AND, RCX, RDX);
    x86_rr(e, true, ALU_ADD, RCX, RDX);
    x86_rr(e, true, ALU_OR, RAX, RCX);
    vex_rr(e, VEX_0F38, VEX_NONE, true, 0xf2, RAX, RDX, RAX); // andn: rax &= ~rdx
    x86_shift_imm(e, true, SHIFT_SHR, RAX, 7);
    x86_rr(e, true, 0x69, RAX, RAX);
    put32(e, 0xff);
    crb_jit_set(t, op->rd, RAX);
}

// ---- By kind

static bool base(crb_translation *t, const crb_op *op) {
    switch (op->kind) {
    case CRB_OP_NOP:
        return true;
    case CRB_OP_LI:
        load_imm(t, op);
        return true;
    case CRB_OP_AUIPC:
        auipc(t, op);
        return true;
    case CRB_OP_MV: {
        const int to = crb_jit_target(op->rd, RAX);
        crb_jit_get(t, to, op->rs1);
        crb_jit_set(t, op->rd, to);
        return true;
    }
    case CRB_OP_ADDI:
        alu_imm(t, op, ALU_ADD, false);
        return true;
    case CRB_OP_SLTI:
        set_less_imm(t, op, CC_L);
        return true;
    case CRB_OP_SLTIU:
        set_less_imm(t, op, CC_B);
        return true;
    case CRB_OP_XORI:
        alu_imm(t, op, ALU_XOR, false);
        return true;
    case CRB_OP_ORI:
        alu_imm(t, op, ALU_OR, false);
        return true;
    case CRB_OP_ANDI:
        alu_imm(t, op, ALU_AND, false);
        return true;
    case CRB_OP_SLLI:
        shift_imm(t, op, SHIFT_SHL, false);
        return true;
    case CRB_OP_SRLI:
        shift_imm(t, op, SHIFT_SHR, false);
        return true;
    case CRB_OP_SRAI:
        shift_imm(t, op, SHIFT_SAR, false);
        return true;
    case CRB_OP_ADDIW:
        alu_imm(t, op, ALU_ADD, true);
        return true;
    case CRB_OP_SLLIW:
        shift_imm(t, op, SHIFT_SHL, true);
        return true;
    case CRB_OP_SRLIW:
        shift_imm(t, op, SHIFT_SHR, true);
        return true;
    case CRB_OP_SRAIW:
        shift_imm(t, op, SHIFT_SAR, true);
        return true;
    case CRB_OP_SEXT_W:
        unary(t, op, true, 0x63);
        return true;
    default:
        return false;
    }
}

static bool two_sources(crb_translation *t, const crb_op *op) {
    switch (op->kind) {
    case CRB_OP_ADD:
        add(t, op);
        return true;
    case CRB_OP_SUB:
        alu(t, op, ALU_SUB, false, false);
        return true;
    case CRB_OP_XOR:
        alu(t, op, ALU_XOR, false, true);
        return true;
    case CRB_OP_OR:
        alu(t, op, ALU_OR, false, true);
        return true;
    case CRB_OP_AND:
        alu(t, op, ALU_AND, false, true);
        return true;
    case CRB_OP_ADDW:
        alu(t, op, ALU_ADD, true, true);
        return true;
    case CRB_OP_SUBW:
        alu(t, op, ALU_SUB, true, false);
        return true;
    case CRB_OP_SLL:
        shift(t, op, VEX_66, false);
        return true;
    case CRB_OP_SRL:
        shift(t, op, VEX_F2, false);
        return true;
    case CRB_OP_SRA:
        shift(t, op, VEX_F3, false);
        return true;
    case CRB_OP_SLLW:
        shift(t, op, VEX_66, true);
        return true;
    case CRB_OP_SRLW:
        shift(t, op, VEX_F2, true);
        return true;
    case CRB_OP_SRAW:
        shift(t, op, VEX_F3, true);
        return true;
    case CRB_OP_SLT:
        set_less(t, op, CC_L);
        return true;
    case CRB_OP_SLTU:
        set_less(t, op, CC_B);
        return true;
    default:
        return false;
    }
}

static bool multiplication(crb_translation *t, const crb_op *op) {
    switch (op->kind) {
    case CRB_OP_MUL:
        alu(t, op, 0x0faf, false, true);
        return true;
    case CRB_OP_MULW:
        alu(t, op, 0x0faf, true, true);
        return true;
    case CRB_OP_MULH:
        multiply_high(t, op, 5);
        return true;
    case CRB_OP_MULHU:
        multiply_high(t, op, 4);
        return true;
    case CRB_OP_MULHSU:
        multiply_mixed(t, op);
        return true;
    case CRB_OP_DIV:
    case CRB_OP_REM:
        divide(t, op, true, false);
        return true;
    case CRB_OP_DIVU:
    case CRB_OP_REMU:
        divide(t, op, false, false);
        return true;
    case CRB_OP_DIVW:
    case CRB_OP_REMW:
        divide(t, op, true, true);
        return true;
    case CRB_OP_DIVUW:
    case CRB_OP_REMUW:
        divide(t, op, false, true);
        return true;
    default:
        return false;
    }
}

static bool addresses(crb_translation *t, const crb_op *op) {
    switch (op->kind) {
    case CRB_OP_ADD_UW:
        shift_add(t, op, 0, true);
        return true;
    case CRB_OP_SH1ADD:
    case CRB_OP_SH2ADD:
    case CRB_OP_SH3ADD:
        shift_add(t, op, op->kind - CRB_OP_SH1ADD + 1, false);
        return true;
    case CRB_OP_SH1ADD_UW:
    case CRB_OP_SH2ADD_UW:
    case CRB_OP_SH3ADD_UW:
        shift_add(t, op, op->kind - CRB_OP_SH1ADD_UW + 1, true);
        return true;
    case CRB_OP_SLLI_UW:
        slli_uw(t, op);
        return true;
    default:
        return false;
    }
}

static bool bits(crb_translation *t, const crb_op *op) {
    switch (op->kind) {
    case CRB_OP_ANDN:
        inverted(t, op, ALU_AND);
        return true;
    case CRB_OP_ORN:
        inverted(t, op, ALU_OR);
        return true;
    case CRB_OP_XNOR:
        inverted(t, op, ALU_XOR);
        return true;
    case CRB_OP_CLZ:
    case CRB_OP_CLZW:
        unary(t, op, op->kind == CRB_OP_CLZ, 0xf30fbd);
        return true;
    case CRB_OP_CTZ:
    case CRB_OP_CTZW:
        unary(t, op, op->kind == CRB_OP_CTZ, 0xf30fbc);
        return true;
    case CRB_OP_CPOP:
    case CRB_OP_CPOPW:
        unary(t, op, op->kind == CRB_OP_CPOP, 0xf30fb8);
        return true;
    case CRB_OP_MAX:
        choose(t, op, CC_L);
        return true;
    case CRB_OP_MIN:
        choose(t, op, CC_G);
        return true;
    case CRB_OP_MAXU:
        choose(t, op, CC_B);
        return true;
    case CRB_OP_MINU:
        choose(t, op, CC_A);
        return true;
    case CRB_OP_SEXT_B:
        extend(t, op, true, 0x0fbe);
        return true;
    case CRB_OP_SEXT_H:
        extend(t, op, true, 0x0fbf);
        return true;
    case CRB_OP_ZEXT_H:
        extend(t, op, false, 0x0fb7);
        return true;
    case CRB_OP_ORC_B:
        orc_b(t, op);
        return true;
    case CRB_OP_REV8:
        rev8(t, op);
        return true;
    default:
        return false;
    }
}

static bool rotations(crb_translation *t, const crb_op *op) {
    switch (op->kind) {
    case CRB_OP_ROL:
    case CRB_OP_ROLW:
        rotate(t, op, SHIFT_ROL, op->kind == CRB_OP_ROLW);
        return true;
    case CRB_OP_ROR:
    case CRB_OP_RORW:
        rotate(t, op, SHIFT_ROR, op->kind == CRB_OP_RORW);
        return true;
    case CRB_OP_RORI:
    case CRB_OP_RORIW:
        shift_imm(t, op, SHIFT_ROR, op->kind == CRB_OP_RORIW);
        return true;
    case CRB_OP_BCLR:
        single_bit(t, op, 0x0fb3);
        return true;
    case CRB_OP_BINV:
        single_bit(t, op, 0x0fbb);
        return true;
    case CRB_OP_BSET:
        single_bit(t, op, 0x0fab);
        return true;
    case CRB_OP_BEXT:
        extract_bit(t, op);
        return true;
    case CRB_OP_BCLRI:
        single_bit_imm(t, op, 6);
        return true;
    case CRB_OP_BINVI:
        single_bit_imm(t, op, 7);
        return true;
    case CRB_OP_BSETI:
        single_bit_imm(t, op, 5);
        return true;
    case CRB_OP_BEXTI:
        extract_bit_imm(t, op);
        return true;
    case CRB_OP_CZERO_EQZ:
        zero_if(t, op, CC_E);
        return true;
    case CRB_OP_CZERO_NEZ:
        zero_if(t, op, CC_NE);
        return true;
    default:
        return false;
    }
}

bool crb_jit_integer(crb_translation *t, const crb_op *op) {
    if (op->kind > CRB_OP_CZERO_NEZ) return false;
    if (op->rd == CRB_SINK) return true;
    return base(t, op) || two_sources(t, op) || multiplication(t, op) || addresses(t, op) ||
           bits(t, op) || rotations(t, op);
}

#endif
