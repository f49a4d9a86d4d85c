// Part of crb_interpret(): F and D when FS is dirty and rounding is to nearest even. hart->rm holds
// CRB_RM_SLOW in every other case, so one test sends those to crb_fp() or crb_fp_touch().

#define FP_LOAD(name, type, convert)                                                               \
    OP(name) {                                                                                     \
        const uint64_t va = RS1 + IMM;                                                             \
        const crb_tlb_entry *entry = TLB_ENTRY(tlb->read, va);                                     \
        if (CRB_UNLIKELY(hart->rm[0] != 0)) goto fp_touch;                                         \
        if (CRB_UNLIKELY(((va + sizeof(type) - 1) & CRB_PAGE_MASK) != entry->tag)) goto load_miss; \
        RD = convert(*HOST(type, va, entry));                                                      \
        NEXT;                                                                                      \
    }
#define FP_STORE(name, type)                                                                       \
    OP(name) {                                                                                     \
        const uint64_t va = RS1 + IMM;                                                             \
        const crb_tlb_entry *entry = TLB_ENTRY(tlb->write, va);                                    \
        if (CRB_UNLIKELY(hart->rm[0] != 0)) goto fp_touch;                                         \
        if (CRB_UNLIKELY(((va + sizeof(type) - 1) & CRB_PAGE_MASK) != entry->tag))                 \
            goto store_miss;                                                                       \
        *HOST(type, va, entry) = (type)RS2;                                                        \
        NEXT;                                                                                      \
    }
FP_LOAD(FLW, any_u32, crb_box_s)
FP_LOAD(FLD, any_u64, (uint64_t))
FP_STORE(FSW, any_u32)
FP_STORE(FSD, any_u64)
FP_LOAD(FLH, any_u16, crb_box_h)
FP_STORE(FSH, any_u16)
#undef FP_LOAD
#undef FP_STORE

#define RM  (hart->rm[op->imm >> 12 & 7])
#define RS3 (hart->r[CRB_F((uint32_t)op->imm >> 27)])

#define FP_BINARY(name, function)                                                                  \
    OP(name) {                                                                                     \
        if (CRB_UNLIKELY(RM != 0)) goto fp_call;                                                   \
        RD = function(RS1, RS2, 0, &hart->fflags);                                                 \
        NEXT;                                                                                      \
    }
FP_BINARY(FADD_S, crb_fadd_s)
FP_BINARY(FSUB_S, crb_fsub_s)
FP_BINARY(FMUL_S, crb_fmul_s)
FP_BINARY(FDIV_S, crb_fdiv_s)
FP_BINARY(FADD_D, crb_fadd_d)
FP_BINARY(FSUB_D, crb_fsub_d)
FP_BINARY(FMUL_D, crb_fmul_d)
FP_BINARY(FDIV_D, crb_fdiv_d)
#undef FP_BINARY

#define FP_FUSED(name, function)                                                                   \
    OP(name) {                                                                                     \
        if (CRB_UNLIKELY(RM != 0)) goto fp_call;                                                   \
        RD = function(RS1, RS2, RS3, 0, &hart->fflags);                                            \
        NEXT;                                                                                      \
    }
FP_FUSED(FMADD_S, crb_fmadd_s)
FP_FUSED(FMSUB_S, crb_fmsub_s)
FP_FUSED(FNMSUB_S, crb_fnmsub_s)
FP_FUSED(FNMADD_S, crb_fnmadd_s)
FP_FUSED(FMADD_D, crb_fmadd_d)
FP_FUSED(FMSUB_D, crb_fmsub_d)
FP_FUSED(FNMSUB_D, crb_fnmsub_d)
FP_FUSED(FNMADD_D, crb_fnmadd_d)
#undef FP_FUSED
#undef RM
#undef RS3

OP(FP)
goto fp_call;
