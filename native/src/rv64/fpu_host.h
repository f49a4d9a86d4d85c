// The host's floating point unit, where it can stand in for RISC-V's: x86-64's SSE, rounding to
// nearest even. Elsewhere CRB_FAST() is never true and fpu.h uses the integer engine.
//
// Inline assembly, not C operators, because compilers move floating point across reads of MXCSR.
// Everything takes and gives bit patterns; NaNs come out as SSE makes them.
#ifndef CRUMBLE_RV64_FPU_HOST_H
#define CRUMBLE_RV64_FPU_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "rv64/fpu_soft.h"

#if defined(__x86_64__) && !defined(CRB_FP_PORTABLE)

#define CRB_FAST(rm)     __builtin_expect((rm) == CRB_RM_RNE, 1)
#define CRB_HAVE_HOST_FP 1
#define CRB_MXCSR_CLEAN  0x1f80u // all masked, nearest even, no flush to zero

typedef union crb_host_d {
    uint64_t bits;
    double value;
} crb_host_d;

typedef union crb_host_s {
    uint32_t bits;
    float value;
} crb_host_s;

static inline uint32_t crb_read_mxcsr(void) {
    uint32_t mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    return mxcsr;
}

static inline void crb_write_mxcsr(uint32_t mxcsr) {
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
}

// MXCSR: IE 1, DE 2, ZE 4, OE 8, UE 16, PE 32; DE has no counterpart.
static inline uint32_t crb_fflags_of_mxcsr(uint32_t mxcsr) {
    return (mxcsr & 1) << 4 | (mxcsr & 4) << 1 | (mxcsr & 8) >> 1 | (mxcsr & 16) >> 3 |
           (mxcsr & 32) >> 5;
}

static inline uint32_t crb_fp_enter(void) {
    uint32_t host = crb_read_mxcsr();
    crb_write_mxcsr(CRB_MXCSR_CLEAN);
    return host;
}

static inline void crb_fp_sync(uint32_t *fflags) {
    uint32_t mxcsr = crb_read_mxcsr();
    if (mxcsr == CRB_MXCSR_CLEAN) return;
    *fflags |= crb_fflags_of_mxcsr(mxcsr);
    crb_write_mxcsr(CRB_MXCSR_CLEAN);
}

static inline void crb_fp_leave(uint32_t host, uint32_t *fflags) {
    *fflags |= crb_fflags_of_mxcsr(crb_read_mxcsr());
    crb_write_mxcsr(host);
}

static inline bool crb_host_has_fma(void) {
    return __builtin_expect(__builtin_cpu_supports("fma"), 1);
}

#define CRB_HOST_BINARY(op)                                                                        \
    static inline uint64_t crb_host_##op##_d(uint64_t a, uint64_t b) {                             \
        crb_host_d x = {.bits = a}, y = {.bits = b};                                               \
        __asm__ volatile(#op "sd %1, %0" : "+x"(x.value) : "xm"(y.value));                         \
        return x.bits;                                                                             \
    }                                                                                              \
    static inline uint64_t crb_host_##op##_s(uint64_t a, uint64_t b) {                             \
        crb_host_s x = {.bits = (uint32_t)a}, y = {.bits = (uint32_t)b};                           \
        __asm__ volatile(#op "ss %1, %0" : "+x"(x.value) : "xm"(y.value));                         \
        return x.bits;                                                                             \
    }
CRB_HOST_BINARY(add)
CRB_HOST_BINARY(sub)
CRB_HOST_BINARY(mul)
CRB_HOST_BINARY(div)
#undef CRB_HOST_BINARY

static inline uint64_t crb_host_sqrt_d(uint64_t a) {
    crb_host_d x = {.bits = a};
    __asm__ volatile("sqrtsd %0, %0" : "+x"(x.value));
    return x.bits;
}

static inline uint64_t crb_host_sqrt_s(uint64_t a) {
    crb_host_s x = {.bits = (uint32_t)a};
    __asm__ volatile("sqrtss %0, %0" : "+x"(x.value));
    return x.bits;
}

// a * b + c; only where crb_host_has_fma().
static inline uint64_t crb_host_fma_d(uint64_t a, uint64_t b, uint64_t c) {
    crb_host_d x = {.bits = a}, y = {.bits = b}, z = {.bits = c};
    __asm__ volatile("vfmadd213sd %2, %1, %0" : "+x"(x.value) : "x"(y.value), "xm"(z.value));
    return x.bits;
}

static inline uint64_t crb_host_fma_s(uint64_t a, uint64_t b, uint64_t c) {
    crb_host_s x = {.bits = (uint32_t)a}, y = {.bits = (uint32_t)b}, z = {.bits = (uint32_t)c};
    __asm__ volatile("vfmadd213ss %2, %1, %0" : "+x"(x.value) : "x"(y.value), "xm"(z.value));
    return x.bits;
}

// comis* and ucomis* set CF and PF for unordered; with the operands swapped, "above" is b > a.
#define CRB_HOST_COMPARE(name, suffix, insn, condition, type)                                      \
    static inline bool crb_host_##name##_##suffix(uint64_t a, uint64_t b) {                        \
        crb_host_##suffix x = {.bits = (type)a}, y = {.bits = (type)b};                            \
        bool result;                                                                               \
        __asm__ volatile(insn " %1, %2" : "=@cc" condition(result) : "xm"(x.value), "x"(y.value)); \
        return result;                                                                             \
    }
CRB_HOST_COMPARE(lt, d, "comisd", "a", uint64_t)
CRB_HOST_COMPARE(lt, s, "comiss", "a", uint32_t)
CRB_HOST_COMPARE(le, d, "comisd", "ae", uint64_t)
CRB_HOST_COMPARE(le, s, "comiss", "ae", uint32_t)
#undef CRB_HOST_COMPARE

// Quiet: only a signalling NaN raises IE.
static inline bool crb_host_eq_d(uint64_t a, uint64_t b) {
    crb_host_d x = {.bits = a}, y = {.bits = b};
    bool equal, ordered;
    __asm__ volatile("ucomisd %3, %2"
                     : "=@ccz"(equal), "=@ccnp"(ordered)
                     : "x"(x.value), "xm"(y.value));
    return equal && ordered;
}

static inline bool crb_host_eq_s(uint64_t a, uint64_t b) {
    crb_host_s x = {.bits = (uint32_t)a}, y = {.bits = (uint32_t)b};
    bool equal, ordered;
    __asm__ volatile("ucomiss %3, %2"
                     : "=@ccz"(equal), "=@ccnp"(ordered)
                     : "x"(x.value), "xm"(y.value));
    return equal && ordered;
}

// The "integer indefinite" value (only the sign bit) when out of range, with IE.
static inline uint32_t crb_host_to_i32_d(uint64_t a) {
    crb_host_d x = {.bits = a};
    uint32_t result;
    __asm__ volatile("cvttsd2si %1, %0" : "=r"(result) : "x"(x.value));
    return result;
}

static inline uint64_t crb_host_to_i64_d(uint64_t a) {
    crb_host_d x = {.bits = a};
    uint64_t result;
    __asm__ volatile("cvttsd2si %1, %0" : "=r"(result) : "x"(x.value));
    return result;
}

static inline uint32_t crb_host_to_i32_s(uint64_t a) {
    crb_host_s x = {.bits = (uint32_t)a};
    uint32_t result;
    __asm__ volatile("cvttss2si %1, %0" : "=r"(result) : "x"(x.value));
    return result;
}

static inline uint64_t crb_host_to_i64_s(uint64_t a) {
    crb_host_s x = {.bits = (uint32_t)a};
    uint64_t result;
    __asm__ volatile("cvttss2si %1, %0" : "=r"(result) : "x"(x.value));
    return result;
}

static inline uint64_t crb_host_from_i64_d(uint64_t a) {
    crb_host_d x = {.bits = 0};
    __asm__ volatile("cvtsi2sdq %1, %0" : "+x"(x.value) : "r"(a));
    return x.bits;
}

static inline uint64_t crb_host_from_i64_s(uint64_t a) {
    crb_host_s x = {.bits = 0};
    __asm__ volatile("cvtsi2ssq %1, %0" : "+x"(x.value) : "r"(a));
    return x.bits;
}

static inline uint64_t crb_host_narrow(uint64_t a) {
    crb_host_d x = {.bits = a};
    crb_host_s y;
    __asm__ volatile("cvtsd2ss %1, %0" : "=x"(y.value) : "x"(x.value));
    return y.bits;
}

static inline uint64_t crb_host_widen(uint64_t a) {
    crb_host_s x = {.bits = (uint32_t)a};
    crb_host_d y;
    __asm__ volatile("cvtss2sd %1, %0" : "=x"(y.value) : "x"(x.value));
    return y.bits;
}

#else

#define CRB_FAST(rm)     false
#define CRB_HAVE_HOST_FP 0

static inline uint32_t crb_fp_enter(void) {
    return 0;
}
static inline void crb_fp_sync(uint32_t *fflags) {}
static inline void crb_fp_leave(uint32_t host, uint32_t *fflags) {}
static inline bool crb_host_has_fma(void) {
    return false;
}

// Never called: they keep fpu.h free of conditional compilation.
#define CRB_ABSENT1(name)                                                                          \
    static inline uint64_t crb_host_##name(uint64_t a) {                                           \
        return a;                                                                                  \
    }
#define CRB_ABSENT2(name)                                                                          \
    static inline uint64_t crb_host_##name(uint64_t a, uint64_t b) {                               \
        return a;                                                                                  \
    }
#define CRB_ABSENT3(name)                                                                          \
    static inline uint64_t crb_host_##name(uint64_t a, uint64_t b, uint64_t c) {                   \
        return a;                                                                                  \
    }
CRB_ABSENT2(add_d)
CRB_ABSENT2(add_s)
CRB_ABSENT2(sub_d)
CRB_ABSENT2(sub_s)
CRB_ABSENT2(mul_d)
CRB_ABSENT2(mul_s)
CRB_ABSENT2(div_d)
CRB_ABSENT2(div_s)
CRB_ABSENT1(sqrt_d)
CRB_ABSENT1(sqrt_s)
CRB_ABSENT3(fma_d)
CRB_ABSENT3(fma_s)
CRB_ABSENT2(eq_d)
CRB_ABSENT2(eq_s)
CRB_ABSENT2(lt_d)
CRB_ABSENT2(lt_s)
CRB_ABSENT2(le_d)
CRB_ABSENT2(le_s)
CRB_ABSENT1(to_i32_d)
CRB_ABSENT1(to_i32_s)
CRB_ABSENT1(to_i64_d)
CRB_ABSENT1(to_i64_s)
CRB_ABSENT1(from_i64_d)
CRB_ABSENT1(from_i64_s)
CRB_ABSENT1(narrow)
CRB_ABSENT1(widen)
#undef CRB_ABSENT1
#undef CRB_ABSENT2
#undef CRB_ABSENT3

#endif
#endif
