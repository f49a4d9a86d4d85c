// Part of crb_interpret(): two instructions in one dispatch. The handler of the first is replaced
// (crb_fuse() in decode.c); the second keeps its own operation, where a fault of it is taken, a
// branch to it goes, and a branch in it is chained.

#define DO_LI    RD = IMM
#define DO_AUIPC RD = page_va + IMM
#define DO_MV    RD = RS1
#define DO_ADDI  RD = RS1 + IMM
#define DO_ANDI  RD = RS1 & IMM
#define DO_XORI  RD = RS1 ^ IMM
#define DO_SLLI  RD = RS1 << (op->imm & 63)
#define DO_SRLI  RD = RS1 >> (op->imm & 63)
#define DO_ADDIW RD = SEXT32(U32(RS1) + U32(op->imm))
#define DO_ADD   RD = RS1 + RS2
#define DO_SUB   RD = RS1 - RS2
#define DO_XOR   RD = RS1 ^ RS2
#define DO_OR    RD = RS1 | RS2
#define DO_AND   RD = RS1 & RS2
#define DO_SUBW  RD = SEXT32(U32(RS1) - U32(RS2))

#define DO_LOAD(type, convert)                                                                     \
    do {                                                                                           \
        const uint64_t va = RS1 + IMM;                                                             \
        const crb_tlb_entry *entry = TLB_ENTRY(tlb->read, va);                                     \
        if (CRB_UNLIKELY(((va + sizeof(type) - 1) & CRB_PAGE_MASK) != entry->tag)) goto load_miss; \
        RD = convert(*HOST(type, va, entry));                                                      \
    } while (0)
#define DO_STORE(type)                                                                             \
    do {                                                                                           \
        const uint64_t va = RS1 + IMM;                                                             \
        const crb_tlb_entry *entry = TLB_ENTRY(tlb->write, va);                                    \
        if (CRB_UNLIKELY(((va + sizeof(type) - 1) & CRB_PAGE_MASK) != entry->tag))                 \
            goto store_miss;                                                                       \
        *HOST(type, va, entry) = (type)RS2;                                                        \
    } while (0)
#define DO_LD  DO_LOAD(any_u64, (uint64_t))
#define DO_LW  DO_LOAD(any_u32, SEXT32)
#define DO_LBU DO_LOAD(any_u8, (uint64_t))
#define DO_SD  DO_STORE(any_u64)
#define DO_SW  DO_STORE(any_u32)
#define DO_SB  DO_STORE(any_u8)

// A branch that is not chained yet, or leaves the page, is taken by its own handler.
#define DO_BRANCH(condition, chained)                                                              \
    if (condition) {                                                                               \
        if (CRB_LIKELY(op->kind == (chained))) GOTO(op->imm, op->rd);                              \
        DISPATCH;                                                                                  \
    }
#define DO_BEQ_U  DO_BRANCH(RS1 == RS2, CRB_OP_BEQ_L)
#define DO_BNE_U  DO_BRANCH(RS1 != RS2, CRB_OP_BNE_L)
#define DO_BLT_U  DO_BRANCH(S64(RS1) < S64(RS2), CRB_OP_BLT_L)
#define DO_BGE_U  DO_BRANCH(S64(RS1) >= S64(RS2), CRB_OP_BGE_L)
#define DO_BLTU_U DO_BRANCH(RS1 < RS2, CRB_OP_BLTU_L)
#define DO_BGEU_U DO_BRANCH(RS1 >= RS2, CRB_OP_BGEU_L)

#define DO_JR JUMP((RS1 + IMM) & ~1ull, op->rs2)
#define DO_JALR                                                                                    \
    do {                                                                                           \
        const uint64_t to = (RS1 + IMM) & ~1ull;                                                   \
        RD = page_va + (uint64_t)op[1].imm;                                                        \
        JUMP(to, op->rs2);                                                                         \
    } while (0)

#define PAIR(first, second)                                                                        \
    OP(first##_##second) {                                                                         \
        DO_##first;                                                                                \
        op++;                                                                                      \
        DO_##second;                                                                               \
        NEXT;                                                                                      \
    }
CRB_PAIRS(PAIR)
