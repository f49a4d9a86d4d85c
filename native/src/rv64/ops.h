// The operations instructions are decoded to: names, and the kinds built from them.
//
// Field use, when not the obvious rd, rs1, rs2, imm:
//   loads       rs2 = CRB_SIZE_*        stores      rd = CRB_SIZE_*
//   branches    rd = instructions of the block up to and with it; imm = page offset of the target
//               (_U: not chained yet, _X: outside the page) or index of the chained operation (_L)
//   jumps       like branches, the count in rs2; a data slot behind holds the link's page offset
//   JALR        rs2 = count, imm = immediate; data slot as for jumps
//   CSR         imm = CSR number, rs2 = funct3;  FP, MISC, VECTOR, ILLEGAL: imm = the instruction
//   END         rd = count, imm as for branches
//   ENTRY       before a block that may be translated; imm = how often it may still run without
//   NATIVE      what ENTRY becomes; imm = the code's offset
#ifndef CRUMBLE_RV64_OPS_H
#define CRUMBLE_RV64_OPS_H

// clang-format off
#define CRB_OPS_INTEGER(X) \
    X(NOP) X(LI) X(AUIPC) X(MV) \
    X(ADDI) X(SLTI) X(SLTIU) X(XORI) X(ORI) X(ANDI) X(SLLI) X(SRLI) X(SRAI) \
    X(ADDIW) X(SLLIW) X(SRLIW) X(SRAIW) X(SEXT_W) \
    X(ADD) X(SUB) X(SLL) X(SLT) X(SLTU) X(XOR) X(SRL) X(SRA) X(OR) X(AND) \
    X(ADDW) X(SUBW) X(SLLW) X(SRLW) X(SRAW) \
    X(MUL) X(MULH) X(MULHSU) X(MULHU) X(DIV) X(DIVU) X(REM) X(REMU) \
    X(MULW) X(DIVW) X(DIVUW) X(REMW) X(REMUW) \
    X(ADD_UW) X(SH1ADD) X(SH2ADD) X(SH3ADD) X(SH1ADD_UW) X(SH2ADD_UW) X(SH3ADD_UW) X(SLLI_UW) \
    X(ANDN) X(ORN) X(XNOR) X(CLZ) X(CTZ) X(CPOP) X(CLZW) X(CTZW) X(CPOPW) \
    X(MAX) X(MIN) X(MAXU) X(MINU) X(SEXT_B) X(SEXT_H) X(ZEXT_H) \
    X(ROL) X(ROR) X(RORI) X(ROLW) X(RORW) X(RORIW) X(ORC_B) X(REV8) \
    X(BCLR) X(BEXT) X(BINV) X(BSET) X(BCLRI) X(BEXTI) X(BINVI) X(BSETI) \
    X(CZERO_EQZ) X(CZERO_NEZ)

#define CRB_OPS_MEMORY(X) \
    X(LB) X(LH) X(LW) X(LD) X(LBU) X(LHU) X(LWU) X(SB) X(SH) X(SW) X(SD) \
    X(FLW) X(FLD) X(FSW) X(FSD) X(FLH) X(FSH)

// _W, then _D of each.
#define CRB_OPS_ATOMIC(X) \
    X(LR_W) X(LR_D) X(SC_W) X(SC_D) \
    X(AMOSWAP_W) X(AMOSWAP_D) X(AMOADD_W) X(AMOADD_D) X(AMOXOR_W) X(AMOXOR_D) \
    X(AMOAND_W) X(AMOAND_D) X(AMOOR_W) X(AMOOR_D) X(AMOMIN_W) X(AMOMIN_D) \
    X(AMOMAX_W) X(AMOMAX_D) X(AMOMINU_W) X(AMOMINU_D) X(AMOMAXU_W) X(AMOMAXU_D)

#define CRB_OPS_CONTROL(X) \
    X(BEQ_U) X(BNE_U) X(BLT_U) X(BGE_U) X(BLTU_U) X(BGEU_U) \
    X(BEQ_L) X(BNE_L) X(BLT_L) X(BGE_L) X(BLTU_L) X(BGEU_L) \
    X(BEQ_X) X(BNE_X) X(BLT_X) X(BGE_X) X(BLTU_X) X(BGEU_X) \
    X(J_U) X(J_L) X(J_X) X(JAL_U) X(JAL_L) X(JAL_X) X(JR) X(JALR) \
    X(END_U) X(END_L) X(END_X) X(STRADDLE) X(DEAD) X(DATA) \
    X(ENTRY) X(NATIVE)

#define CRB_OPS_SYSTEM(X) \
    X(FENCE) X(FENCE_FULL) X(FENCE_I) X(ECALL) X(EBREAK) X(SRET) X(WFI) X(SFENCE) X(CSR) X(CBO) \
    X(ILLEGAL) X(MISC) X(VECTOR)

// The hot ones; everything else of F and D is FP.
#define CRB_OPS_FLOAT(X) \
    X(FP) X(FADD_S) X(FSUB_S) X(FMUL_S) X(FDIV_S) X(FADD_D) X(FSUB_D) X(FMUL_D) X(FDIV_D) \
    X(FMADD_S) X(FMSUB_S) X(FNMSUB_S) X(FNMADD_S) X(FMADD_D) X(FMSUB_D) X(FNMSUB_D) X(FNMADD_D)

// Pairs that are dispatched at once, chosen by how often they run while Linux boots.
#define CRB_PAIRS(X) \
    X(LD, LD) X(LD, SD) X(LD, LW) X(LD, LBU) X(LD, ADD) X(LD, ADDI) X(LD, ADDIW) X(LD, AND) \
    X(LD, OR) X(LD, XOR) X(LD, SLLI) X(LD, SRLI) X(LD, LI) X(LD, MV) X(LW, ADD) X(LW, ADDI) \
    X(LW, LD) X(LW, SLLI) X(LW, SUBW) X(LBU, LBU) X(LBU, ADDI) X(LBU, ANDI) X(LBU, OR) \
    X(SD, SD) X(SD, LD) X(SD, ADDI) X(SD, ADD) X(SD, MV) X(SD, LI) X(SD, SRLI) X(SD, XOR) \
    X(SD, AUIPC) X(SW, LD) X(SW, ADDI) X(SB, SB) \
    X(ADD, ADD) X(ADD, ADDI) X(ADD, LBU) X(ADD, LD) X(ADD, LW) X(ADD, LI) X(ADD, SD) X(ADD, SLLI) \
    X(ADD, SUB) X(ADD, AUIPC) X(SUB, AND) X(SUB, ADD) \
    X(ADDI, ADDI) X(ADDI, ADD) X(ADDI, ANDI) X(ADDI, LD) X(ADDI, LI) X(ADDI, MV) X(ADDI, SD) \
    X(ADDI, SW) X(ADDIW, ADD) X(ADDIW, ADDI) X(AUIPC, ADDI) X(AUIPC, LD) X(LI, ADD) X(LI, ADDI) \
    X(LI, LI) X(LI, SD) X(MV, MV) X(MV, LI) X(MV, AUIPC) X(MV, ADDI) \
    X(XOR, XOR) X(XOR, LD) X(XOR, SLLI) X(XOR, SRLI) X(XOR, SD) X(XOR, OR) X(XOR, AND) \
    X(XORI, AND) X(XORI, LD) X(OR, SD) X(OR, SLLI) X(OR, OR) X(OR, XOR) X(OR, LD) X(OR, ADD) \
    X(AND, LD) X(AND, SUB) X(AND, XOR) X(AND, AND) \
    X(SLLI, SRLI) X(SLLI, OR) X(SLLI, ADD) X(SLLI, XOR) X(SLLI, SLLI) X(SLLI, LD) X(SRLI, SLLI) \
    X(SRLI, ADD) X(SRLI, SRLI) X(SRLI, LD) X(SRLI, OR) X(SRLI, XOR) X(SRLI, ANDI) \
    X(ADD, BEQ_U) X(ADD, BNE_U) X(ADD, BLTU_U) X(ADD, BGEU_U) X(ADDI, BEQ_U) X(ADDI, BNE_U) \
    X(ADDI, BLTU_U) X(ADDI, BGEU_U) X(ADDI, BGE_U) X(ADDI, BLT_U) X(ADDIW, BNE_U) \
    X(ADDIW, BGEU_U) X(ANDI, BEQ_U) X(ANDI, BNE_U) X(AND, BEQ_U) X(AND, BNE_U) X(LI, BEQ_U) \
    X(LI, BNE_U) X(LI, BLTU_U) X(LI, BGEU_U) X(LD, BEQ_U) X(LD, BNE_U) X(LD, BLTU_U) X(LW, BEQ_U) \
    X(LW, BNE_U) X(LBU, BEQ_U) X(LBU, BNE_U) X(SD, BNE_U) X(SRLI, BEQ_U) X(SLLI, BGE_U) \
    X(SUBW, BGEU_U) \
    X(ADDI, JR) X(LD, JR) X(AUIPC, JALR) X(LD, JALR)
// clang-format on

#define CRB_OPS(X)                                                                                 \
    CRB_OPS_INTEGER(X)                                                                             \
    CRB_OPS_MEMORY(X)                                                                              \
    CRB_OPS_ATOMIC(X)                                                                              \
    CRB_OPS_CONTROL(X)                                                                             \
    CRB_OPS_SYSTEM(X)                                                                              \
    CRB_OPS_FLOAT(X)

#define CRB_KIND(name) CRB_OP_##name,
enum crb_op_kind { CRB_OPS(CRB_KIND) CRB_N_OPS };
#undef CRB_KIND

#define CRB_PAIR(first, second) CRB_PAIR_##first##_##second,
enum crb_pair { CRB_PAIRS(CRB_PAIR) CRB_N_PAIRS };
#undef CRB_PAIR

// Registers: x0 to x31, a sink for writes to x0, f0 to f31.
#define CRB_SINK 32
#define CRB_F(i) (33 + (i))
#define CRB_REGS 65

// Access size and extension, as the loads' funct3.
enum {
    CRB_SIZE_B,
    CRB_SIZE_H,
    CRB_SIZE_W,
    CRB_SIZE_D,
    CRB_SIZE_BU,
    CRB_SIZE_HU,
    CRB_SIZE_WU,
    CRB_SIZE_FW,
    CRB_SIZE_FH,
};

#endif
