// Part of crb_interpret(): loads, stores and atomics that hit the TLB. A miss is served out of
// line; an access across the end of its page always misses.

#define LOAD(name, type, convert)                                                                  \
    OP(name) {                                                                                     \
        const uint64_t va = RS1 + IMM;                                                             \
        const crb_tlb_entry *entry = TLB_ENTRY(tlb->read, va);                                     \
        if (CRB_UNLIKELY(((va + sizeof(type) - 1) & CRB_PAGE_MASK) != entry->tag)) goto load_miss; \
        RD = convert(*HOST(type, va, entry));                                                      \
        NEXT;                                                                                      \
    }

#define STORE(name, type)                                                                          \
    OP(name) {                                                                                     \
        const uint64_t va = RS1 + IMM;                                                             \
        const crb_tlb_entry *entry = TLB_ENTRY(tlb->write, va);                                    \
        if (CRB_UNLIKELY(((va + sizeof(type) - 1) & CRB_PAGE_MASK) != entry->tag))                 \
            goto store_miss;                                                                       \
        *HOST(type, va, entry) = (type)RS2;                                                        \
        NEXT;                                                                                      \
    }

LOAD(LB, any_u8, SEXT8)
LOAD(LH, any_u16, SEXT16)
LOAD(LW, any_u32, SEXT32)
LOAD(LD, any_u64, (uint64_t))
LOAD(LBU, any_u8, (uint64_t))
LOAD(LHU, any_u16, (uint64_t))
LOAD(LWU, any_u32, (uint64_t))
STORE(SB, any_u8)
STORE(SH, any_u16)
STORE(SW, any_u32)
STORE(SD, any_u64)

#undef LOAD
#undef STORE

// ---- Atomics: the host's, sequentially consistent. `host` is where the word is.

#define ATOMIC_HOST(type, array, write)                                                            \
    type *host;                                                                                    \
    do {                                                                                           \
        const uint64_t va = RS1;                                                                   \
        const crb_tlb_entry *entry = TLB_ENTRY(tlb->array, va);                                    \
        host = HOST(type, va, entry);                                                              \
        if (CRB_LIKELY((va & (CRB_PAGE_MASK | (sizeof(type) - 1))) == entry->tag)) break;          \
        SYNC();                                                                                    \
        host = (type *)(void *)crb_atomic_slow(hart, va, sizeof(type), write);                     \
        if (host != NULL) break;                                                                   \
        result = CRB_TRAP;                                                                         \
        goto answered;                                                                             \
    } while (0)

#define LOAD_RESERVED(name, type, convert)                                                         \
    OP(name) {                                                                                     \
        ATOMIC_HOST(type, read, false);                                                            \
        const type value = __atomic_load_n(host, __ATOMIC_SEQ_CST);                                \
        hart->reserved = (uint8_t *)host;                                                          \
        hart->reserved_value = value;                                                              \
        RD = convert(value);                                                                       \
        NEXT;                                                                                      \
    }
LOAD_RESERVED(LR_W, uint32_t, SEXT32)
LOAD_RESERVED(LR_D, uint64_t, (uint64_t))
#undef LOAD_RESERVED

// Succeeds when the word still has the value that LR saw: a store of the same value in between goes
// unnoticed, as in every emulator that uses compare-and-swap.
#define STORE_CONDITIONAL(name, type)                                                              \
    OP(name) {                                                                                     \
        ATOMIC_HOST(type, write, true);                                                            \
        type expected = (type)hart->reserved_value;                                                \
        const bool stored = hart->reserved == (uint8_t *)host &&                                   \
                            __atomic_compare_exchange_n(host, &expected, (type)RS2, false,         \
                                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);       \
        hart->reserved = NULL;                                                                     \
        RD = stored ? 0 : 1;                                                                       \
        NEXT;                                                                                      \
    }
STORE_CONDITIONAL(SC_W, uint32_t)
STORE_CONDITIONAL(SC_D, uint64_t)
#undef STORE_CONDITIONAL

#define AMO(name, type, convert, fetch)                                                            \
    OP(name) {                                                                                     \
        ATOMIC_HOST(type, write, true);                                                            \
        const type value = (type)RS2;                                                              \
        const type old = fetch(host, value, __ATOMIC_SEQ_CST);                                     \
        RD = convert(old);                                                                         \
        NEXT;                                                                                      \
    }
#define AMO_BOTH(name, fetch)                                                                      \
    AMO(name##_W, uint32_t, SEXT32, fetch)                                                         \
    AMO(name##_D, uint64_t, (uint64_t), fetch)
AMO_BOTH(AMOSWAP, __atomic_exchange_n)
AMO_BOTH(AMOADD, __atomic_fetch_add)
AMO_BOTH(AMOXOR, __atomic_fetch_xor)
AMO_BOTH(AMOAND, __atomic_fetch_and)
AMO_BOTH(AMOOR, __atomic_fetch_or)
#undef AMO_BOTH
#undef AMO

#define AMO_CHOOSE(name, type, convert, compared, operator)                                        \
    OP(name) {                                                                                     \
        ATOMIC_HOST(type, write, true);                                                            \
        const type value = (type)RS2;                                                              \
        type old = __atomic_load_n(host, __ATOMIC_RELAXED);                                        \
        while (!__atomic_compare_exchange_n(host, &old,                                            \
                                            (compared)old operator(compared) value ? old : value,  \
                                            false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {          \
        }                                                                                          \
        RD = convert(old);                                                                         \
        NEXT;                                                                                      \
    }
AMO_CHOOSE(AMOMIN_W, uint32_t, SEXT32, int32_t, <)
AMO_CHOOSE(AMOMIN_D, uint64_t, (uint64_t), int64_t, <)
AMO_CHOOSE(AMOMAX_W, uint32_t, SEXT32, int32_t, >)
AMO_CHOOSE(AMOMAX_D, uint64_t, (uint64_t), int64_t, >)
AMO_CHOOSE(AMOMINU_W, uint32_t, SEXT32, uint32_t, <)
AMO_CHOOSE(AMOMINU_D, uint64_t, (uint64_t), uint64_t, <)
AMO_CHOOSE(AMOMAXU_W, uint32_t, SEXT32, uint32_t, >)
AMO_CHOOSE(AMOMAXU_D, uint64_t, (uint64_t), uint64_t, >)
#undef AMO_CHOOSE
#undef ATOMIC_HOST
