// Part of crb_interpret(): branches, jumps, ends of blocks, and the system instructions.

// _U: not chained yet. _L: chained, imm is the target operation. _X: outside the page.
#define BRANCH(name, condition)                                                                    \
    OP(name##_U) {                                                                                 \
        if (condition) goto chain;                                                                 \
        NEXT;                                                                                      \
    }                                                                                              \
    OP(name##_L) {                                                                                 \
        if (condition) GOTO(op->imm, op->rd);                                                      \
        NEXT;                                                                                      \
    }                                                                                              \
    OP(name##_X) {                                                                                 \
        if (condition) goto far;                                                                   \
        NEXT;                                                                                      \
    }

BRANCH(BEQ, RS1 == RS2)
BRANCH(BNE, RS1 != RS2)
BRANCH(BLT, S64(RS1) < S64(RS2))
BRANCH(BGE, S64(RS1) >= S64(RS2))
BRANCH(BLTU, RS1 < RS2)
BRANCH(BGEU, RS1 >= RS2)
#undef BRANCH

chain : {
    const uint32_t count = op->rd;
    budget -= count;
    op = crb_link(hart, op);
    if (CRB_UNLIKELY(budget < 0)) goto slice;
    DISPATCH;
}

far : JUMP(page_va + IMM, op->rd);

OP(J_L)
GOTO(op->imm, op->rs2);
OP(JAL_L) {
    RD = page_va + (uint64_t)op[1].imm;
    GOTO(op->imm, op->rs2);
}
OP(JAL_U)
RD = page_va + (uint64_t)op[1].imm;
OP(J_U) {
    const uint32_t count = op->rs2;
    budget -= count;
    op = crb_link(hart, op);
    if (CRB_UNLIKELY(budget < 0)) goto slice;
    DISPATCH;
}
OP(JAL_X)
RD = page_va + (uint64_t)op[1].imm;
OP(J_X)
JUMP(page_va + IMM, op->rs2);
OP(JALR) {
    const uint64_t to = (RS1 + IMM) & ~1ull;
    RD = page_va + (uint64_t)op[1].imm;
    JUMP(to, op->rs2);
}
OP(JR)
JUMP((RS1 + IMM) & ~1ull, op->rs2);

OP(END_U)
goto chain;
OP(END_L)
GOTO(op->imm, op->rd);
OP(END_X)
goto far;

OP(DEAD) {
    target = page_va + hart->meta[op - ops].offset;
    goto lookup;
}
OP(STRADDLE) {
    SYNC();
    result = crb_straddle(hart, op, page_va);
    goto answered;
}
OP(ENTRY) {
    if (CRB_LIKELY(--op->imm > 0)) NEXT;
    goto compile;
}
OP(NATIVE)
goto native;
OP(DATA) // never reached: what is before a data slot always jumps
OP(ILLEGAL)
CALL(crb_illegal(hart, op));

OP(FENCE) {
    __atomic_thread_fence(__ATOMIC_ACQ_REL);
    if (CRB_UNLIKELY(*(const volatile uint64_t *)hart->moved_count != hart->moved_seen))
        crb_moved(hart);
    NEXT;
}
OP(FENCE_FULL) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (CRB_UNLIKELY(*(const volatile uint64_t *)hart->moved_count != hart->moved_seen))
        crb_moved(hart);
    NEXT;
}
OP(FENCE_I) {
    SYNC();
    crb_drop_stale(hart, true);
    hart->pc += 4;
    result = CRB_RESYNC;
    goto answered;
}
OP(ECALL)
CALL(crb_ecall(hart));
OP(EBREAK)
CALL(crb_raise(hart, CRB_CAUSE_BREAKPOINT, page_va + hart->meta[op - ops].offset));
OP(SRET)
CALL(crb_sret(hart, op));
OP(WFI)
CALL(crb_wait(hart, op));
OP(SFENCE)
CALL(crb_sfence(hart, op));
OP(CSR)
CALL(crb_csr(hart, op));
OP(CBO)
CALL(crb_cbo(hart, op));
OP(MISC)
CALL(crb_misc(hart, op));
OP(VECTOR)
CALL(crb_vector(hart, op));
