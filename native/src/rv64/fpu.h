// The F and D extensions, a pure function an instruction: exact IEEE 754 results and flags (RISC-V
// unprivileged ISA, chapters "F" and "D").
//
// Two engines give the same answers. fpu_soft.c works in integers: any host, any rounding mode,
// tininess detected after rounding as RISC-V wants. fpu_host.h is what a program really spends its
// time in (round to nearest even, and conversions that truncate) on SSE, whose flags and tininess
// rule are RISC-V's too; only NaNs must be made canonical. So the host's rounding mode never
// changes, and RMM, static rounding modes and hosts without FMA3 simply fall to the integers.
//
// Flags are sticky in two places: the integer engine ORs them into *fflags at once, SSE leaves them
// in the thread's MXCSR until they are moved. So:
//
//     uint32_t host = crb_fp_enter();     // when the run loop starts
//     ... crb_fadd_d(a, b, rm, &fflags) ...
//     crb_fp_sync(&fflags);               // before fflags is read or written by anyone
//     crb_fp_leave(host, &fflags);        // when the run loop returns
//
// Between enter and leave the thread must do no floating point of its own. Operands and results are
// whole f registers: the _s functions check and make NaN boxes themselves. `rm` is resolved (0 to
// 4, never DYN); refusing reserved values is the decoder's work. Integer results are 64-bit x
// registers, sign-extended for .w and .wu.
#ifndef CRUMBLE_RV64_FPU_H
#define CRUMBLE_RV64_FPU_H

#include "rv64/fpu_host.h"
#include "rv64/fpu_soft.h"

#define CRB_NAN_D  0x7ff8000000000000ull
#define CRB_NAN_S  0x7fc00000ull
#define CRB_BOX_S  0xffffffff00000000ull
#define CRB_SIGN_D 0x8000000000000000ull
#define CRB_SIGN_S 0x80000000ull
#define CRB_INF_D  0x7ff0000000000000ull
#define CRB_INF_S  0x7f800000ull

static inline uint64_t crb_unbox_s(uint64_t reg) {
    return __builtin_expect(reg >= CRB_BOX_S, 1) ? (uint32_t)reg : CRB_NAN_S;
}

static inline uint64_t crb_box_s(uint64_t bits) {
    return bits | CRB_BOX_S;
}

static inline uint64_t crb_box_h(uint64_t bits) {
    return bits | 0xffffffffffff0000ull;
}

static inline bool crb_isnan_d(uint64_t bits) {
    return (bits & ~CRB_SIGN_D) > CRB_INF_D;
}

static inline bool crb_isnan_s(uint64_t bits) {
    return (bits & ~CRB_SIGN_S) > CRB_INF_S;
}

static inline uint64_t crb_canonical_d(uint64_t bits) {
    return __builtin_expect(crb_isnan_d(bits), 0) ? CRB_NAN_D : bits;
}

// From SSE's 32 bits to an f register.
static inline uint64_t crb_canonical_s(uint64_t bits) {
    return crb_box_s(__builtin_expect(crb_isnan_s(bits), 0) ? CRB_NAN_S : bits);
}

static inline uint64_t crb_sext_w(uint64_t value) {
    return (uint64_t)(int64_t)(int32_t)value;
}

// ---- fadd, fsub, fmul, fdiv, fsqrt

#define CRB_DEFINE_BINARY(op)                                                                      \
    static inline uint64_t crb_f##op##_d(uint64_t a, uint64_t b, uint32_t rm, uint32_t *fflags) {  \
        if (CRB_FAST(rm)) return crb_canonical_d(crb_host_##op##_d(a, b));                         \
        return crb_soft_##op(&crb_binary64, a, b, rm, fflags);                                     \
    }                                                                                              \
    static inline uint64_t crb_f##op##_s(uint64_t a, uint64_t b, uint32_t rm, uint32_t *fflags) {  \
        a = crb_unbox_s(a);                                                                        \
        b = crb_unbox_s(b);                                                                        \
        if (CRB_FAST(rm)) return crb_canonical_s(crb_host_##op##_s(a, b));                         \
        return crb_box_s(crb_soft_##op(&crb_binary32, a, b, rm, fflags));                          \
    }
CRB_DEFINE_BINARY(add)
CRB_DEFINE_BINARY(sub)
CRB_DEFINE_BINARY(mul)
CRB_DEFINE_BINARY(div)
#undef CRB_DEFINE_BINARY

static inline uint64_t crb_fsqrt_d(uint64_t a, uint32_t rm, uint32_t *fflags) {
    if (CRB_FAST(rm)) return crb_canonical_d(crb_host_sqrt_d(a));
    return crb_soft_sqrt(&crb_binary64, a, rm, fflags);
}

static inline uint64_t crb_fsqrt_s(uint64_t a, uint32_t rm, uint32_t *fflags) {
    a = crb_unbox_s(a);
    if (CRB_FAST(rm)) return crb_canonical_s(crb_host_sqrt_s(a));
    return crb_box_s(crb_soft_sqrt(&crb_binary32, a, rm, fflags));
}

// ---- fmadd, fmsub, fnmsub, fnmadd: the product's and the addend's sign flipped beforehand

// SSE keeps quiet about infinity * 0 + NaN, which RISC-V calls invalid: NaNs go the other way.
static inline uint64_t crb_fma_d(uint64_t a, uint64_t b, uint64_t c, uint32_t rm,
                                 uint32_t *fflags) {
    if (CRB_FAST(rm) && crb_host_has_fma()) {
        uint64_t result = crb_host_fma_d(a, b, c);
        if (__builtin_expect(!crb_isnan_d(result), 1)) return result;
    }
    return crb_soft_fma(&crb_binary64, a, b, c, rm, fflags);
}

// Unboxed operands.
static inline uint64_t crb_fma_s(uint64_t a, uint64_t b, uint64_t c, uint32_t rm,
                                 uint32_t *fflags) {
    if (CRB_FAST(rm) && crb_host_has_fma()) {
        uint64_t result = crb_host_fma_s(a, b, c);
        if (__builtin_expect(!crb_isnan_s(result), 1)) return crb_box_s(result);
    }
    return crb_box_s(crb_soft_fma(&crb_binary32, a, b, c, rm, fflags));
}

#define CRB_DEFINE_FMA(op, flip_product, flip_addend)                                              \
    static inline uint64_t crb_f##op##_d(uint64_t a, uint64_t b, uint64_t c, uint32_t rm,          \
                                         uint32_t *fflags) {                                       \
        return crb_fma_d((flip_product) ? a ^ CRB_SIGN_D : a, b,                                   \
                         (flip_addend) ? c ^ CRB_SIGN_D : c, rm, fflags);                          \
    }                                                                                              \
    static inline uint64_t crb_f##op##_s(uint64_t a, uint64_t b, uint64_t c, uint32_t rm,          \
                                         uint32_t *fflags) {                                       \
        a = crb_unbox_s(a);                                                                        \
        c = crb_unbox_s(c);                                                                        \
        return crb_fma_s((flip_product) ? a ^ CRB_SIGN_S : a, crb_unbox_s(b),                      \
                         (flip_addend) ? c ^ CRB_SIGN_S : c, rm, fflags);                          \
    }
CRB_DEFINE_FMA(madd, false, false)
CRB_DEFINE_FMA(msub, false, true)
CRB_DEFINE_FMA(nmsub, true, false)
CRB_DEFINE_FMA(nmadd, true, true)
#undef CRB_DEFINE_FMA

// ---- fsgnj, fsgnjn, fsgnjx

static inline uint64_t crb_fsgnj_d(uint64_t a, uint64_t b) {
    return (a & ~CRB_SIGN_D) | (b & CRB_SIGN_D);
}

static inline uint64_t crb_fsgnjn_d(uint64_t a, uint64_t b) {
    return crb_fsgnj_d(a, ~b);
}

static inline uint64_t crb_fsgnjx_d(uint64_t a, uint64_t b) {
    return a ^ (b & CRB_SIGN_D);
}

static inline uint64_t crb_fsgnj_s(uint64_t a, uint64_t b) {
    a = crb_unbox_s(a);
    return crb_box_s((a & ~CRB_SIGN_S) | (crb_unbox_s(b) & CRB_SIGN_S));
}

static inline uint64_t crb_fsgnjn_s(uint64_t a, uint64_t b) {
    a = crb_unbox_s(a);
    return crb_box_s((a & ~CRB_SIGN_S) | (~crb_unbox_s(b) & CRB_SIGN_S));
}

static inline uint64_t crb_fsgnjx_s(uint64_t a, uint64_t b) {
    return crb_box_s(crb_unbox_s(a) ^ (crb_unbox_s(b) & CRB_SIGN_S));
}

// ---- fmin, fmax: IEEE 754-2019 minimumNumber and maximumNumber

static inline uint64_t crb_fmin_d(uint64_t a, uint64_t b, uint32_t *fflags) {
    return crb_soft_minmax(&crb_binary64, a, b, false, fflags);
}

static inline uint64_t crb_fmax_d(uint64_t a, uint64_t b, uint32_t *fflags) {
    return crb_soft_minmax(&crb_binary64, a, b, true, fflags);
}

static inline uint64_t crb_fmin_s(uint64_t a, uint64_t b, uint32_t *fflags) {
    a = crb_unbox_s(a);
    return crb_box_s(crb_soft_minmax(&crb_binary32, a, crb_unbox_s(b), false, fflags));
}

static inline uint64_t crb_fmax_s(uint64_t a, uint64_t b, uint32_t *fflags) {
    a = crb_unbox_s(a);
    return crb_box_s(crb_soft_minmax(&crb_binary32, a, crb_unbox_s(b), true, fflags));
}

// ---- feq, flt, fle, fclass

static inline uint64_t crb_feq_d(uint64_t a, uint64_t b, uint32_t *fflags) {
    if (CRB_HAVE_HOST_FP) return crb_host_eq_d(a, b);
    return crb_soft_equal(&crb_binary64, a, b, fflags);
}

static inline uint64_t crb_feq_s(uint64_t a, uint64_t b, uint32_t *fflags) {
    a = crb_unbox_s(a);
    b = crb_unbox_s(b);
    if (CRB_HAVE_HOST_FP) return crb_host_eq_s(a, b);
    return crb_soft_equal(&crb_binary32, a, b, fflags);
}

static inline uint64_t crb_flt_d(uint64_t a, uint64_t b, uint32_t *fflags) {
    if (CRB_HAVE_HOST_FP) return crb_host_lt_d(a, b);
    return crb_soft_less(&crb_binary64, a, b, false, fflags);
}

static inline uint64_t crb_flt_s(uint64_t a, uint64_t b, uint32_t *fflags) {
    a = crb_unbox_s(a);
    b = crb_unbox_s(b);
    if (CRB_HAVE_HOST_FP) return crb_host_lt_s(a, b);
    return crb_soft_less(&crb_binary32, a, b, false, fflags);
}

static inline uint64_t crb_fle_d(uint64_t a, uint64_t b, uint32_t *fflags) {
    if (CRB_HAVE_HOST_FP) return crb_host_le_d(a, b);
    return crb_soft_less(&crb_binary64, a, b, true, fflags);
}

static inline uint64_t crb_fle_s(uint64_t a, uint64_t b, uint32_t *fflags) {
    a = crb_unbox_s(a);
    b = crb_unbox_s(b);
    if (CRB_HAVE_HOST_FP) return crb_host_le_s(a, b);
    return crb_soft_less(&crb_binary32, a, b, true, fflags);
}

static inline uint64_t crb_fclass_d(uint64_t a) {
    return crb_soft_classify(&crb_binary64, a);
}

static inline uint64_t crb_fclass_s(uint64_t a) {
    return crb_soft_classify(&crb_binary32, crb_unbox_s(a));
}

// ---- float to integer

// What SSE gave, with its answer for NaN and overflow (the least integer) made RISC-V's: saturate,
// NaN as if positive. Its flags are already right: IE alone, or PE alone.
static inline uint64_t crb_saturate_i64(uint64_t result, bool negative) {
    return __builtin_expect(result == (uint64_t)INT64_MIN, 0) && !negative ? INT64_MAX : result;
}

static inline uint64_t crb_saturate_i32(uint32_t result, bool negative) {
    return crb_sext_w(__builtin_expect(result == 0x80000000u, 0) && !negative ? INT32_MAX : result);
}

static inline uint64_t crb_fcvt_w_d(uint64_t a, uint32_t rm, uint32_t *fflags) {
    if (CRB_HAVE_HOST_FP && rm == CRB_RM_RTZ)
        return crb_saturate_i32(crb_host_to_i32_d(a), a > CRB_SIGN_D && !crb_isnan_d(a));
    return crb_soft_to_int(&crb_binary64, a, (uint64_t)INT32_MIN, INT32_MAX, rm, fflags);
}

static inline uint64_t crb_fcvt_l_d(uint64_t a, uint32_t rm, uint32_t *fflags) {
    if (CRB_HAVE_HOST_FP && rm == CRB_RM_RTZ)
        return crb_saturate_i64(crb_host_to_i64_d(a), a > CRB_SIGN_D && !crb_isnan_d(a));
    return crb_soft_to_int(&crb_binary64, a, (uint64_t)INT64_MIN, INT64_MAX, rm, fflags);
}

static inline uint64_t crb_fcvt_w_s(uint64_t a, uint32_t rm, uint32_t *fflags) {
    a = crb_unbox_s(a);
    if (CRB_HAVE_HOST_FP && rm == CRB_RM_RTZ)
        return crb_saturate_i32(crb_host_to_i32_s(a), a > CRB_SIGN_S && !crb_isnan_s(a));
    return crb_soft_to_int(&crb_binary32, a, (uint64_t)INT32_MIN, INT32_MAX, rm, fflags);
}

static inline uint64_t crb_fcvt_l_s(uint64_t a, uint32_t rm, uint32_t *fflags) {
    a = crb_unbox_s(a);
    if (CRB_HAVE_HOST_FP && rm == CRB_RM_RTZ)
        return crb_saturate_i64(crb_host_to_i64_s(a), a > CRB_SIGN_S && !crb_isnan_s(a));
    return crb_soft_to_int(&crb_binary32, a, (uint64_t)INT64_MIN, INT64_MAX, rm, fflags);
}

// Unsigned: what a signed 64-bit conversion covers is SSE's, negative and large values are not.
#define CRB_DEFINE_TO_UNSIGNED(name, suffix, format, limit, max, unbox, extend)                    \
    static inline uint64_t crb_fcvt_##name##_##suffix(uint64_t a, uint32_t rm, uint32_t *fflags) { \
        a = unbox(a);                                                                              \
        if (CRB_HAVE_HOST_FP && rm == CRB_RM_RTZ && a < (limit))                                   \
            return extend(crb_host_to_i64_##suffix(a));                                            \
        return extend(crb_soft_to_int(&(format), a, 0, max, rm, fflags));                          \
    }
CRB_DEFINE_TO_UNSIGNED(wu, d, crb_binary64, 0x41f0000000000000, UINT32_MAX, , crb_sext_w)
CRB_DEFINE_TO_UNSIGNED(lu, d, crb_binary64, 0x43e0000000000000, UINT64_MAX, , )
CRB_DEFINE_TO_UNSIGNED(wu, s, crb_binary32, 0x4f800000, UINT32_MAX, crb_unbox_s, crb_sext_w)
CRB_DEFINE_TO_UNSIGNED(lu, s, crb_binary32, 0x5f000000, UINT64_MAX, crb_unbox_s, )
#undef CRB_DEFINE_TO_UNSIGNED

// ---- integer to float

static inline uint64_t crb_fcvt_d_l(uint64_t x, uint32_t rm, uint32_t *fflags) {
    if (CRB_FAST(rm)) return crb_host_from_i64_d(x);
    return crb_soft_from_int(&crb_binary64, x >> 63, x >> 63 ? -x : x, rm, fflags);
}

static inline uint64_t crb_fcvt_s_l(uint64_t x, uint32_t rm, uint32_t *fflags) {
    if (CRB_FAST(rm)) return crb_box_s(crb_host_from_i64_s(x));
    return crb_box_s(crb_soft_from_int(&crb_binary32, x >> 63, x >> 63 ? -x : x, rm, fflags));
}

static inline uint64_t crb_fcvt_d_lu(uint64_t x, uint32_t rm, uint32_t *fflags) {
    if (CRB_FAST(rm) && !(x >> 63)) return crb_host_from_i64_d(x);
    return crb_soft_from_int(&crb_binary64, false, x, rm, fflags);
}

static inline uint64_t crb_fcvt_s_lu(uint64_t x, uint32_t rm, uint32_t *fflags) {
    if (CRB_FAST(rm) && !(x >> 63)) return crb_box_s(crb_host_from_i64_s(x));
    return crb_box_s(crb_soft_from_int(&crb_binary32, false, x, rm, fflags));
}

static inline uint64_t crb_fcvt_d_w(uint64_t x, uint32_t rm, uint32_t *fflags) {
    return crb_fcvt_d_l(crb_sext_w(x), rm, fflags);
}

static inline uint64_t crb_fcvt_d_wu(uint64_t x, uint32_t rm, uint32_t *fflags) {
    return crb_fcvt_d_l((uint32_t)x, rm, fflags);
}

static inline uint64_t crb_fcvt_s_w(uint64_t x, uint32_t rm, uint32_t *fflags) {
    return crb_fcvt_s_l(crb_sext_w(x), rm, fflags);
}

static inline uint64_t crb_fcvt_s_wu(uint64_t x, uint32_t rm, uint32_t *fflags) {
    return crb_fcvt_s_l((uint32_t)x, rm, fflags);
}

// ---- float to float, and moves

static inline uint64_t crb_fcvt_s_d(uint64_t a, uint32_t rm, uint32_t *fflags) {
    if (CRB_FAST(rm)) return crb_canonical_s(crb_host_narrow(a));
    return crb_box_s(crb_soft_convert(&crb_binary32, &crb_binary64, a, rm, fflags));
}

// Exact, so that rm says nothing.
static inline uint64_t crb_fcvt_d_s(uint64_t a, uint32_t rm, uint32_t *fflags) {
    a = crb_unbox_s(a);
    if (CRB_HAVE_HOST_FP) return crb_canonical_d(crb_host_widen(a));
    return crb_soft_convert(&crb_binary64, &crb_binary32, a, rm, fflags);
}

static inline uint64_t crb_fmv_x_w(uint64_t a) {
    return crb_sext_w(a);
}

static inline uint64_t crb_fmv_w_x(uint64_t x) {
    return crb_box_s((uint32_t)x);
}

#endif
