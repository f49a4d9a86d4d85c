// Vector conversions, square roots, estimates and classes (chapter "V", sections "Vector
// Floating-Point Square-Root Instruction" to "Narrowing Floating-Point/Integer Type-Convert
// Instructions").
#include "rv64/fpu.h"
#include "rv64/vector.h"

// ---- Conversions between widths `from` and `to`

// vs1's low bits: 0 xu.f, 1 x.f, 2 f.xu, 3 f.x, 4 f.f, 5 rod.f.f, 6 rtz.xu.f, 7 rtz.x.f.
enum { XU_F, X_F, F_XU, F_X, F_F, ROD_F_F, RTZ_XU_F, RTZ_X_F };

static uint64_t to_integer(const crb_vop *o, uint64_t a, int from, int to, bool is_signed,
                           uint32_t rm) {
    const uint64_t ones = crb_vones(to);
    const uint64_t most = is_signed ? ones >> 1 : ones;
    const uint64_t least = is_signed ? ~most : 0;
    return crb_soft_to_int(crb_vformat(from), a, least, most, rm, &o->hart->fflags);
}

static uint64_t from_integer(const crb_vop *o, uint64_t a, int from, int to, bool is_signed) {
    const uint64_t value = is_signed ? crb_vsign(a, from) : a;
    const bool negative = is_signed && value >> 63 != 0;
    return crb_soft_from_int(crb_vformat(to), negative, negative ? -value : value, o->hart->rm[7],
                             &o->hart->fflags);
}

// To odd: towards zero, and the last bit set when that was inexact. An overflow gives the largest
// number, whose last bit is set.
static uint64_t to_odd(const crb_vop *o, uint64_t a, int from, int to) {
    uint32_t flags = 0;
    const uint64_t cut =
        crb_soft_convert(crb_vformat(to), crb_vformat(from), a, CRB_RM_RTZ, &flags);
    o->hart->fflags |= flags;
    return (flags & CRB_FFLAG_NX) != 0 ? cut | 1 : cut;
}

static uint64_t convert(const crb_vop *o, uint64_t a, uint32_t which, int from, int to) {
    const uint32_t rm = o->hart->rm[7];
    switch (which) {
    case XU_F:
    case X_F:
        return to_integer(o, a, from, to, which == X_F, rm);
    case F_XU:
    case F_X:
        return from_integer(o, a, from, to, which == F_X);
    case F_F:
        return crb_soft_convert(crb_vformat(to), crb_vformat(from), a, rm, &o->hart->fflags);
    case ROD_F_F:
        return to_odd(o, a, from, to);
    default:
        return to_integer(o, a, from, to, which == RTZ_X_F, CRB_RM_RTZ);
    }
}

// Floats have two bytes at least. The narrow integer of a conversion may have one.
static bool widths_ok(uint32_t which, int from, int to) {
    const bool from_float = which != F_XU && which != F_X;
    const bool to_float = which >= F_XU && which <= ROD_F_F;
    return from <= 3 && to <= 3 && (!from_float || from >= 1) && (!to_float || to >= 1);
}

static bool do_convert(crb_vop *o) {
    const uint32_t which = o->vs1 & 7;
    const uint32_t how = o->vs1 >> 3; // 0 the same width, 1 widening, 2 narrowing
    const int from = o->sew + (how == 2);
    const int to = o->sew + (how == 1);
    const int from_emul = o->lmul + (how == 2);
    const int to_emul = o->lmul + (how == 1);
    if (how > 2 || (how == 0 && (which == F_F || which == ROD_F_F)) ||
        (how == 1 && which == ROD_F_F) || !widths_ok(which, from, to))
        return false;
    if (!crb_vgroup(o->vs2, from_emul) || !crb_vgroup(o->vd, to_emul) || (!o->vm && o->vd == 0) ||
        !crb_voverlap_ok(o->vd, to_emul, o->vs2, from_emul))
        return false;
    for (uint32_t i = o->start; i < o->vl; i++)
        if (crb_vactive(o, i))
            crb_vput(o, o->vd, i, to, convert(o, crb_vget(o, o->vs2, i, from), which, from, to));
    return true;
}

// ---- Estimates of 7 bits

// Square root of 32-bit numbers, towards zero.
static uint64_t root(uint64_t value) {
    uint64_t result = 0;
    for (uint64_t bit = 1ull << 31; bit != 0; bit >>= 1)
        if ((result | bit) * (result | bit) <= value) result |= bit;
    return result;
}

// The specification's tables are what the middle of each interval gives, rounded to 7 bits.
static uint64_t reciprocal_entry(uint64_t index) {
    const uint64_t middle = 2 * (128 + index) + 1; // of [1, 2), times 256
    return (2 * 512 * 128 + middle) / (2 * middle) - 128;
}

static uint64_t root_entry(uint64_t index) {
    const uint64_t fraction = 2 * (64 + (index & 63)) + 1; // of [1, 2), times 128
    const uint64_t middle = index < 64 ? 2 * fraction : fraction;
    return (root(4 * 4 * 128 * 16384 / middle) + 1) / 2 - 128;
}

typedef struct parts {
    bool negative, subnormal;
    int exponent; // biased
    uint64_t fraction;
} parts;

static parts take_apart(const crb_format *f, uint64_t a) {
    const int bits = f->precision - 1;
    parts p = {.negative = (a & f->sign) != 0,
               .exponent = (int)((a & f->infinity) >> bits),
               .fraction = a & ((1ull << bits) - 1)};
    p.subnormal = p.exponent == 0 && p.fraction != 0;
    if (!p.subnormal) return p;
    p.exponent = 1;
    while ((p.fraction >> bits & 1) == 0) {
        p.fraction <<= 1;
        p.exponent--;
    }
    p.fraction &= (1ull << bits) - 1;
    return p;
}

static uint64_t with_sign(const crb_format *f, bool negative, uint64_t bits) {
    return negative ? bits | f->sign : bits;
}

static uint64_t estimate_root(const crb_format *f, uint64_t a, uint32_t *flags) {
    const uint64_t kind = crb_soft_classify(f, a);
    const int bits = f->precision - 1;
    const parts p = take_apart(f, a);
    if ((kind & 0x300) != 0 || (p.negative && (a & ~f->sign) != 0)) {
        if ((kind & 0x200) == 0) *flags |= CRB_FFLAG_NV;
        return f->nan;
    }
    if ((a & ~f->sign) == 0) {
        *flags |= CRB_FFLAG_DZ;
        return with_sign(f, p.negative, f->infinity);
    }
    if (a == f->infinity) return 0;
    const uint64_t index = (uint64_t)(p.exponent & 1) << 6 | p.fraction >> (bits - 6);
    const uint64_t exponent = (uint64_t)((3 * f->emax - 1 - p.exponent) / 2);
    return exponent << bits | root_entry(index) << (bits - 7);
}

static uint64_t too_large(const crb_format *f, bool negative, uint32_t rm, uint32_t *flags) {
    const bool finite = rm == CRB_RM_RTZ || rm == (negative ? CRB_RM_RUP : CRB_RM_RDN);
    *flags |= CRB_FFLAG_OF | CRB_FFLAG_NX;
    return with_sign(f, negative, finite ? f->infinity - 1 : f->infinity);
}

static uint64_t estimate_reciprocal(const crb_format *f, uint64_t a, uint32_t rm, uint32_t *flags) {
    const uint64_t kind = crb_soft_classify(f, a);
    const int bits = f->precision - 1;
    const parts p = take_apart(f, a);
    if ((kind & 0x300) != 0) {
        if ((kind & 0x100) != 0) *flags |= CRB_FFLAG_NV;
        return f->nan;
    }
    if ((a & ~f->sign) == f->infinity) return with_sign(f, p.negative, 0);
    if ((a & ~f->sign) == 0) {
        *flags |= CRB_FFLAG_DZ;
        return with_sign(f, p.negative, f->infinity);
    }
    if (p.exponent < -1) return too_large(f, p.negative, rm, flags);
    int exponent = 2 * f->emax - 1 - p.exponent;
    uint64_t fraction = reciprocal_entry(p.fraction >> (bits - 7)) << (bits - 7);
    if (exponent <= 0) { // subnormal: 0 or -1
        fraction = (fraction | 1ull << bits) >> (1 - exponent);
        exponent = 0;
    }
    return with_sign(f, p.negative, (uint64_t)exponent << bits | fraction);
}

static uint64_t unary(const crb_vop *o, uint64_t a) {
    const crb_format *f = crb_vformat(o->sew);
    uint32_t *const flags = &o->hart->fflags;
    switch (o->vs1) {
    case 0x00:
        return crb_soft_sqrt(f, a, o->hart->rm[7], flags);
    case 0x04:
        return estimate_root(f, a, flags);
    case 0x05:
        return estimate_reciprocal(f, a, o->hart->rm[7], flags);
    default:
        return crb_soft_classify(f, a);
    }
}

static bool do_unary(crb_vop *o) {
    if (o->vs1 != 0 && o->vs1 != 4 && o->vs1 != 5 && o->vs1 != 0x10) return false;
    if (!crb_vgroup(o->vd, o->lmul) || !crb_vgroup(o->vs2, o->lmul) || (!o->vm && o->vd == 0))
        return false;
    for (uint32_t i = o->start; i < o->vl; i++)
        if (crb_vactive(o, i))
            crb_vput(o, o->vd, i, o->sew, unary(o, crb_vget(o, o->vs2, i, o->sew)));
    return true;
}

bool crb_vector_convert(crb_vop *o) {
    if (!o->vector1) return false;
    if (o->funct6 == 0x12) return do_convert(o);
    return o->funct6 == 0x13 && do_unary(o);
}
