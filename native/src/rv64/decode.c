// 32-bit instructions to operations: RV64IMA, Zicsr, Zifencei, Zicond, Zba, Zbb, Zbs, Zicbom,
// Zicboz, Zawrs, Zimop, F, D, Zfh, Zfa, V and the privileged instructions of S-mode, Svinval's with
// them (RISC-V ISA manual, volume I ch. "Instruction Set Listings"; volume II ch. "Supervisor
// Instruction Set Listings").
#include "rv64/hart.h"

// One instruction's fields.
typedef struct fields {
    uint32_t insn, rd, rs1, rs2, funct3, funct7;
    int32_t imm_i;
    uint32_t offset, length, count;
} fields;

static fields split(uint32_t insn, uint32_t length, uint32_t offset, uint32_t count) {
    return (fields){
        .insn = insn,
        .rd = insn >> 7 & 31,
        .rs1 = insn >> 15 & 31,
        .rs2 = insn >> 20 & 31,
        .funct3 = insn >> 12 & 7,
        .funct7 = insn >> 25,
        .imm_i = (int32_t)insn >> 20,
        .offset = offset,
        .length = length,
        .count = count + 1,
    };
}

static uint8_t target(uint32_t rd) {
    return rd == 0 ? CRB_SINK : (uint8_t)rd;
}

static void put(crb_op *op, uint32_t kind, uint32_t rd, uint32_t rs1, uint32_t rs2, int32_t imm) {
    op->handler = crb_handlers[kind];
    op->kind = (uint8_t)kind;
    op->rd = (uint8_t)rd;
    op->rs1 = (uint8_t)rs1;
    op->rs2 = (uint8_t)rs2;
    op->imm = imm;
}

static void put_illegal(crb_op *op, const fields *f) {
    put(op, CRB_OP_ILLEGAL, CRB_SINK, 0, 0, (int32_t)f->insn);
}

// ---- Integer register-immediate

static uint32_t unary_kind(uint32_t code, bool word) {
    switch (code) {
    case 0x600:
        return word ? CRB_OP_CLZW : CRB_OP_CLZ;
    case 0x601:
        return word ? CRB_OP_CTZW : CRB_OP_CTZ;
    case 0x602:
        return word ? CRB_OP_CPOPW : CRB_OP_CPOP;
    case 0x604:
        return word ? CRB_OP_ILLEGAL : CRB_OP_SEXT_B;
    case 0x605:
        return word ? CRB_OP_ILLEGAL : CRB_OP_SEXT_H;
    default:
        return CRB_OP_ILLEGAL;
    }
}

static void shift_left(crb_op *op, const fields *f) {
    const int32_t shamt = f->imm_i & 63;
    uint32_t kind = CRB_OP_ILLEGAL;
    switch ((uint32_t)f->imm_i >> 6 & 63) {
    case 0x00:
        kind = CRB_OP_SLLI;
        break;
    case 0x0a:
        kind = CRB_OP_BSETI;
        break;
    case 0x12:
        kind = CRB_OP_BCLRI;
        break;
    case 0x1a:
        kind = CRB_OP_BINVI;
        break;
    case 0x18:
        kind = unary_kind((uint32_t)f->imm_i & 0xfff, false);
        break;
    default:
        break;
    }
    if (kind == CRB_OP_ILLEGAL)
        put_illegal(op, f);
    else
        put(op, kind, target(f->rd), f->rs1, 0, shamt);
}

static void shift_right(crb_op *op, const fields *f) {
    uint32_t kind = CRB_OP_ILLEGAL;
    switch ((uint32_t)f->imm_i >> 6 & 63) {
    case 0x00:
        kind = CRB_OP_SRLI;
        break;
    case 0x10:
        kind = CRB_OP_SRAI;
        break;
    case 0x12:
        kind = CRB_OP_BEXTI;
        break;
    case 0x18:
        kind = CRB_OP_RORI;
        break;
    default:
        break;
    }
    if ((f->imm_i & 0xfff) == 0x287) kind = CRB_OP_ORC_B;
    if ((f->imm_i & 0xfff) == 0x6b8) kind = CRB_OP_REV8;
    if (kind == CRB_OP_ILLEGAL)
        put_illegal(op, f);
    else
        put(op, kind, target(f->rd), f->rs1, 0, f->imm_i & 63);
}

static void addi(crb_op *op, const fields *f) {
    if (f->rd == 0)
        put(op, CRB_OP_NOP, CRB_SINK, 0, 0, 0);
    else if (f->rs1 == 0)
        put(op, CRB_OP_LI, f->rd, 0, 0, f->imm_i);
    else if (f->imm_i == 0)
        put(op, CRB_OP_MV, f->rd, f->rs1, 0, 0);
    else
        put(op, CRB_OP_ADDI, f->rd, f->rs1, 0, f->imm_i);
}

static void op_imm(crb_op *op, const fields *f) {
    static const uint8_t kinds[8] = {0,           0, CRB_OP_SLTI, CRB_OP_SLTIU,
                                     CRB_OP_XORI, 0, CRB_OP_ORI,  CRB_OP_ANDI};
    switch (f->funct3) {
    case 0:
        addi(op, f);
        break;
    case 1:
        shift_left(op, f);
        break;
    case 5:
        shift_right(op, f);
        break;
    default:
        put(op, kinds[f->funct3], target(f->rd), f->rs1, 0, f->imm_i);
    }
}

static void op_imm_32(crb_op *op, const fields *f) {
    const int32_t shamt = (int32_t)f->rs2;
    uint32_t kind = CRB_OP_ILLEGAL;
    int32_t imm = shamt;
    if (f->funct3 == 0) {
        kind = f->imm_i == 0 ? CRB_OP_SEXT_W : CRB_OP_ADDIW;
        imm = f->imm_i;
    } else if (f->funct3 == 1) {
        if (f->funct7 == 0) kind = CRB_OP_SLLIW;
        if (f->funct7 == 0x30) kind = unary_kind((uint32_t)f->imm_i & 0xfff, true);
        if (f->funct7 >> 1 == 2) {
            kind = CRB_OP_SLLI_UW;
            imm = f->imm_i & 63;
        }
    } else if (f->funct3 == 5) {
        if (f->funct7 == 0) kind = CRB_OP_SRLIW;
        if (f->funct7 == 0x20) kind = CRB_OP_SRAIW;
        if (f->funct7 == 0x30) kind = CRB_OP_RORIW;
    }
    if (kind == CRB_OP_ILLEGAL)
        put_illegal(op, f);
    else
        put(op, kind, target(f->rd), f->rs1, 0, imm);
}

// ---- Integer register-register: kinds by funct3, 0 where there is none (NOP is no such kind)

static const uint8_t op_base[8] = {CRB_OP_ADD, CRB_OP_SLL, CRB_OP_SLT, CRB_OP_SLTU,
                                   CRB_OP_XOR, CRB_OP_SRL, CRB_OP_OR,  CRB_OP_AND};
static const uint8_t op_sub[8] = {CRB_OP_SUB,  0,          0,          0,
                                  CRB_OP_XNOR, CRB_OP_SRA, CRB_OP_ORN, CRB_OP_ANDN};
static const uint8_t op_mul[8] = {CRB_OP_MUL, CRB_OP_MULH, CRB_OP_MULHSU, CRB_OP_MULHU,
                                  CRB_OP_DIV, CRB_OP_DIVU, CRB_OP_REM,    CRB_OP_REMU};
static const uint8_t op_minmax[8] = {0, 0, 0, 0, CRB_OP_MIN, CRB_OP_MINU, CRB_OP_MAX, CRB_OP_MAXU};
static const uint8_t op_shadd[8] = {0, 0, CRB_OP_SH1ADD, 0, CRB_OP_SH2ADD, 0, CRB_OP_SH3ADD, 0};
static const uint8_t op_rotate[8] = {0, CRB_OP_ROL, 0, 0, 0, CRB_OP_ROR, 0, 0};
static const uint8_t op_bset[8] = {0, CRB_OP_BSET, 0, 0, 0, 0, 0, 0};
static const uint8_t op_bclr[8] = {0, CRB_OP_BCLR, 0, 0, 0, CRB_OP_BEXT, 0, 0};
static const uint8_t op_czero[8] = {0, 0, 0, 0, 0, CRB_OP_CZERO_EQZ, 0, CRB_OP_CZERO_NEZ};
static const uint8_t op_binv[8] = {0, CRB_OP_BINV, 0, 0, 0, 0, 0, 0};

static const uint8_t opw_base[8] = {CRB_OP_ADDW, CRB_OP_SLLW, 0, 0, 0, CRB_OP_SRLW, 0, 0};
static const uint8_t opw_sub[8] = {CRB_OP_SUBW, 0, 0, 0, 0, CRB_OP_SRAW, 0, 0};
static const uint8_t opw_mul[8] = {CRB_OP_MULW,  0,           0,           0, CRB_OP_DIVW,
                                   CRB_OP_DIVUW, CRB_OP_REMW, CRB_OP_REMUW};
static const uint8_t opw_add_uw[8] = {CRB_OP_ADD_UW, 0, 0, 0, 0, 0, 0, 0};
static const uint8_t opw_shadd[8] = {
    0, 0, CRB_OP_SH1ADD_UW, 0, CRB_OP_SH2ADD_UW, 0, CRB_OP_SH3ADD_UW, 0};
static const uint8_t opw_rotate[8] = {0, CRB_OP_ROLW, 0, 0, 0, CRB_OP_RORW, 0, 0};

static const uint8_t *op_table(uint32_t funct7) {
    switch (funct7) {
    case 0x00:
        return op_base;
    case 0x20:
        return op_sub;
    case 0x01:
        return op_mul;
    case 0x05:
        return op_minmax;
    case 0x07:
        return op_czero;
    case 0x10:
        return op_shadd;
    case 0x30:
        return op_rotate;
    case 0x14:
        return op_bset;
    case 0x24:
        return op_bclr;
    case 0x34:
        return op_binv;
    default:
        return NULL;
    }
}

static const uint8_t *opw_table(uint32_t funct7) {
    switch (funct7) {
    case 0x00:
        return opw_base;
    case 0x20:
        return opw_sub;
    case 0x01:
        return opw_mul;
    case 0x04:
        return opw_add_uw;
    case 0x10:
        return opw_shadd;
    case 0x30:
        return opw_rotate;
    default:
        return NULL;
    }
}

static void op_register(crb_op *op, const fields *f, const uint8_t *table) {
    if (table == NULL || table[f->funct3] == 0)
        put_illegal(op, f);
    else
        put(op, table[f->funct3], target(f->rd), f->rs1, f->rs2, 0);
}

static void op_32(crb_op *op, const fields *f) {
    const bool zext_h = f->funct7 == 4 && f->funct3 == 4 && f->rs2 == 0;
    if (zext_h)
        put(op, CRB_OP_ZEXT_H, target(f->rd), f->rs1, 0, 0);
    else
        op_register(op, f, opw_table(f->funct7));
}

// ---- Memory

static void load(crb_op *op, const fields *f) {
    static const uint8_t kinds[8] = {CRB_OP_LB,  CRB_OP_LH,  CRB_OP_LW,  CRB_OP_LD,
                                     CRB_OP_LBU, CRB_OP_LHU, CRB_OP_LWU, 0};
    if (f->funct3 == 7)
        put_illegal(op, f);
    else
        put(op, kinds[f->funct3], target(f->rd), f->rs1, f->funct3, f->imm_i);
}

static int32_t store_offset(const fields *f) {
    return (int32_t)((uint32_t)(f->imm_i & ~31) | f->rd);
}

static void store(crb_op *op, const fields *f) {
    if (f->funct3 > 3)
        put_illegal(op, f);
    else
        put(op, CRB_OP_SB + f->funct3, f->funct3, f->rs1, f->rs2, store_offset(f));
}

static void fp_load(crb_op *op, const fields *f) {
    if (f->funct3 == 1)
        put(op, CRB_OP_FLH, CRB_F(f->rd), f->rs1, CRB_SIZE_FH, f->imm_i);
    else if (f->funct3 == 0 || f->funct3 > 4)
        put(op, CRB_OP_VECTOR, CRB_SINK, 0, 0, (int32_t)f->insn);
    else if (f->funct3 == 2)
        put(op, CRB_OP_FLW, CRB_F(f->rd), f->rs1, CRB_SIZE_FW, f->imm_i);
    else if (f->funct3 == 3)
        put(op, CRB_OP_FLD, CRB_F(f->rd), f->rs1, CRB_SIZE_D, f->imm_i);
    else
        put_illegal(op, f);
}

static void fp_store(crb_op *op, const fields *f) {
    static const uint8_t kinds[8] = {0, CRB_OP_FSH, CRB_OP_FSW, CRB_OP_FSD};
    if (f->funct3 == 0 || f->funct3 > 4)
        put(op, CRB_OP_VECTOR, CRB_SINK, 0, 0, (int32_t)f->insn);
    else if (kinds[f->funct3] == 0)
        put_illegal(op, f);
    else
        put(op, kinds[f->funct3], f->funct3, f->rs1, CRB_F(f->rs2), store_offset(f));
}

static void atomic(crb_op *op, const fields *f) {
    // By funct5; the even ones of the low eight and every fourth behind.
    static const uint8_t kinds[32] = {
        [0x00] = CRB_OP_AMOADD_W,  [0x01] = CRB_OP_AMOSWAP_W, [0x02] = CRB_OP_LR_W,
        [0x03] = CRB_OP_SC_W,      [0x04] = CRB_OP_AMOXOR_W,  [0x08] = CRB_OP_AMOOR_W,
        [0x0c] = CRB_OP_AMOAND_W,  [0x10] = CRB_OP_AMOMIN_W,  [0x14] = CRB_OP_AMOMAX_W,
        [0x18] = CRB_OP_AMOMINU_W, [0x1c] = CRB_OP_AMOMAXU_W,
    };
    const uint32_t kind = kinds[f->funct7 >> 2];
    const bool bad_lr = kind == CRB_OP_LR_W && f->rs2 != 0;
    if (kind == 0 || bad_lr || (f->funct3 != 2 && f->funct3 != 3))
        put_illegal(op, f);
    else
        put(op, kind + (f->funct3 == 3), target(f->rd), f->rs1, f->rs2, 0);
}

// ---- Control

static bool in_page(int64_t at) {
    return at >= 0 && at < (int64_t)CRB_PAGE_SIZE;
}

static void branch(crb_op *op, const fields *f) {
    static const uint8_t kinds[8] = {CRB_OP_BEQ_U,  CRB_OP_BNE_U, 0, 0, CRB_OP_BLT_U, CRB_OP_BGE_U,
                                     CRB_OP_BLTU_U, CRB_OP_BGEU_U};
    const uint32_t imm = ((uint32_t)(f->imm_i >> 11) & ~0xfffu) | (f->rd & 1) << 11 |
                         (f->funct7 & 63) << 5 | (f->rd & 30);
    const int32_t at = (int32_t)f->offset + (int32_t)imm;
    if (kinds[f->funct3] == 0) {
        put_illegal(op, f);
        return;
    }
    const uint32_t far = in_page(at) ? 0 : CRB_OP_BEQ_X - CRB_OP_BEQ_U;
    put(op, kinds[f->funct3] + far, f->count, f->rs1, f->rs2, at);
}

static void put_link(crb_op *op, const fields *f) {
    put(op + 1, CRB_OP_DATA, 0, 0, 0, (int32_t)(f->offset + f->length));
}

static void jal(crb_op *op, const fields *f) {
    const uint32_t imm = ((uint32_t)((int32_t)f->insn >> 11) & ~0xfffffu) | (f->insn & 0xff000) |
                         (f->insn >> 20 & 1) << 11 | (f->insn >> 20 & 0x7fe);
    const int32_t at = (int32_t)f->offset + (int32_t)imm;
    if (f->rd == 0)
        put(op, in_page(at) ? CRB_OP_J_U : CRB_OP_J_X, 0, 0, f->count, at);
    else
        put(op, in_page(at) ? CRB_OP_JAL_U : CRB_OP_JAL_X, f->rd, 0, f->count, at);
    put_link(op, f);
}

static bool jalr(crb_op *op, const fields *f) {
    if (f->funct3 != 0) {
        put_illegal(op, f);
        return true;
    }
    put(op, f->rd == 0 ? CRB_OP_JR : CRB_OP_JALR, target(f->rd), f->rs1, f->count, f->imm_i);
    put_link(op, f);
    return true;
}

// ---- System

static bool privileged(crb_op *op, const fields *f) {
    uint32_t kind = CRB_OP_ILLEGAL;
    if ((f->funct7 == 9 || f->funct7 == 11) && f->rd == 0) { // sinval.vma is no less than a fence
        put(op, CRB_OP_SFENCE, CRB_SINK, f->rs1, f->rs2, (int32_t)f->insn);
        return true;
    }
    switch (f->insn) {
    case 0x00000073:
        kind = CRB_OP_ECALL;
        break;
    case 0x00100073:
        kind = CRB_OP_EBREAK;
        break;
    case 0x10200073:
        kind = CRB_OP_SRET;
        break;
    case 0x10500073:
        kind = CRB_OP_WFI;
        break;
    case 0x00d00073: // wrs.nto
    case 0x01d00073: // wrs.sto
    case 0x18000073: // sfence.w.inval
    case 0x18100073: // sfence.inval.ir
        put(op, CRB_OP_MISC, CRB_SINK, 0, 0, (int32_t)f->insn);
        return false;
    default:
        break;
    }
    put(op, kind, CRB_SINK, 0, 0, (int32_t)f->insn);
    return true;
}

// Zimop: what may become an operation writes 0 until it does.
static bool may_be_op(crb_op *op, const fields *f) {
    const bool unary = (f->insn & 0xb3c00000) == 0x81c00000;
    const bool binary = (f->insn & 0xb2000000) == 0x82000000;
    if (unary || binary)
        put(op, CRB_OP_LI, target(f->rd), 0, 0, 0);
    else
        put_illegal(op, f);
    return op->kind == CRB_OP_ILLEGAL;
}

static bool system_op(crb_op *op, const fields *f) {
    if (f->funct3 == 0) return privileged(op, f);
    if (f->funct3 == 4) return may_be_op(op, f);
    put(op, CRB_OP_CSR, target(f->rd), f->rs1, f->funct3, (int32_t)f->insn);
    return false;
}

// Reserved fields are ignored; PAUSE is a hint among the encodings. Only "writes before reads"
// needs more of a host than it orders anyway; FENCE.TSO does not ask for it.
static void fence(crb_op *op, const fields *f) {
    const bool writes_before = (f->insn >> 24 & 5) != 0;
    const bool reads_behind = (f->insn >> 20 & 10) != 0;
    const bool tso = f->insn >> 28 == 8;
    put(op, writes_before && reads_behind && !tso ? CRB_OP_FENCE_FULL : CRB_OP_FENCE, CRB_SINK, 0,
        0, 0);
}

static bool misc_mem(crb_op *op, const fields *f) {
    if (f->funct3 == 0) {
        fence(op, f);
        return false;
    }
    if (f->funct3 == 1) {
        put(op, CRB_OP_FENCE_I, CRB_SINK, 0, 0, 0);
        return true;
    }
    const uint32_t which = (uint32_t)f->imm_i & 0xfff;
    const bool cbo = f->funct3 == 2 && f->rd == 0 && (which <= 2 || which == 4);
    if (!cbo)
        put_illegal(op, f);
    else
        put(op, CRB_OP_CBO, (uint32_t)which, f->rs1, 0, (int32_t)f->insn);
    return !cbo;
}

// ---- F and D

static void fp(crb_op *op, const fields *f) {
    const uint32_t format = f->funct7 & 3;
    const uint32_t which = f->funct7 >> 2;
    if (which <= 3 && format <= 1)
        put(op, (format == 1 ? CRB_OP_FADD_D : CRB_OP_FADD_S) + which, CRB_F(f->rd), CRB_F(f->rs1),
            CRB_F(f->rs2), (int32_t)f->insn);
    else
        put(op, CRB_OP_FP, CRB_SINK, 0, 0, (int32_t)f->insn);
}

static void fp_fma(crb_op *op, const fields *f) {
    const uint32_t format = f->funct7 & 3;
    const uint32_t which = f->insn >> 2 & 3;
    if (format > 2)
        put_illegal(op, f);
    else if (format == 2)
        put(op, CRB_OP_FP, CRB_SINK, 0, 0, (int32_t)f->insn);
    else
        put(op, (format == 1 ? CRB_OP_FMADD_D : CRB_OP_FMADD_S) + which, CRB_F(f->rd),
            CRB_F(f->rs1), CRB_F(f->rs2), (int32_t)f->insn);
}

bool crb_decode(crb_op *op, uint32_t insn, uint32_t length, uint32_t offset, uint32_t count) {
    const fields whole = split(insn, length, offset, count);
    const fields *f = &whole;
    switch ((insn & 3) == 3 ? insn >> 2 & 31 : 31) {
    case 0x00:
        load(op, f);
        return op->kind == CRB_OP_ILLEGAL;
    case 0x01:
        fp_load(op, f);
        return op->kind == CRB_OP_ILLEGAL;
    case 0x03:
        return misc_mem(op, f);
    case 0x04:
        op_imm(op, f);
        return op->kind == CRB_OP_ILLEGAL;
    case 0x05:
        put(op, CRB_OP_AUIPC, target(f->rd), 0, 0, (int32_t)((insn & ~0xfffu) + offset));
        return false;
    case 0x06:
        op_imm_32(op, f);
        return op->kind == CRB_OP_ILLEGAL;
    case 0x08:
        store(op, f);
        return op->kind == CRB_OP_ILLEGAL;
    case 0x09:
        fp_store(op, f);
        return op->kind == CRB_OP_ILLEGAL;
    case 0x0b:
        atomic(op, f);
        return op->kind == CRB_OP_ILLEGAL;
    case 0x0c:
        op_register(op, f, op_table(f->funct7));
        return op->kind == CRB_OP_ILLEGAL;
    case 0x0d:
        put(op, CRB_OP_LI, target(f->rd), 0, 0, (int32_t)(insn & ~0xfffu));
        return false;
    case 0x0e:
        op_32(op, f);
        return op->kind == CRB_OP_ILLEGAL;
    case 0x10:
    case 0x11:
    case 0x12:
    case 0x13:
        fp_fma(op, f);
        return op->kind == CRB_OP_ILLEGAL;
    case 0x14:
        fp(op, f);
        return false;
    case 0x15:
        put(op, CRB_OP_VECTOR, CRB_SINK, 0, 0, (int32_t)insn);
        return false;
    case 0x18:
        branch(op, f);
        return op->kind == CRB_OP_ILLEGAL;
    case 0x19:
        return jalr(op, f);
    case 0x1b:
        jal(op, f);
        return true;
    case 0x1c:
        return system_op(op, f);
    default:
        put_illegal(op, f);
        return true;
    }
}

// ---- Pairs

bool crb_fuse(crb_op *op) {
#define PAIR(first, second) [CRB_OP_##first][CRB_OP_##second] = CRB_PAIR_##first##_##second + 1,
    static const uint8_t pairs[CRB_N_OPS][CRB_N_OPS] = {CRB_PAIRS(PAIR)};
#undef PAIR
    const uint32_t pair = pairs[op[0].kind][op[1].kind];
    if (pair != 0) op->handler = crb_pair_handlers[pair - 1];
    return pair != 0;
}

_Static_assert(CRB_N_PAIRS < UINT8_MAX && CRB_N_OPS < UINT8_MAX, "numbers fit their bytes");
