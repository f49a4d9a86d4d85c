// Vector floating-point arithmetic (chapter "V", section "Vector Floating-Point Instructions"),
// also of half precision (Zvfh).
#include "rv64/fpu.h"
#include "rv64/vector.h"

const crb_format *crb_vformat(int sew) {
    return sew == 1 ? &crb_binary16 : sew == 2 ? &crb_binary32 : &crb_binary64;
}

// f[rs1] as an element: the canonical NaN when it is in no valid box.
uint64_t crb_vfloat_scalar(const crb_vop *o) {
    if (o->sew == 3) return o->scalar;
    const uint64_t ones = crb_vones(o->sew);
    return (o->scalar | ones) == UINT64_MAX ? o->scalar & ones : crb_vformat(o->sew)->nan;
}

static uint64_t operand(const crb_vop *o, uint32_t i) {
    return o->vector1 ? crb_vget(o, o->vs1, i, o->sew) : crb_vfloat_scalar(o);
}

// ---- Formats: S and D may use the host's unit, which wants boxes

typedef struct unit {
    const crb_format *f;
    int sew;
    uint32_t rm, *flags;
} unit;

static unit unit_of(const crb_vop *o, int sew) {
    return (unit){crb_vformat(sew), sew, o->hart->rm[7], &o->hart->fflags};
}

#define BINARY(name)                                                                               \
    static uint64_t name(const unit *u, uint64_t a, uint64_t b) {                                  \
        if (u->sew == 3) return crb_f##name##_d(a, b, u->rm, u->flags);                            \
        if (u->sew == 2)                                                                           \
            return (uint32_t)crb_f##name##_s(crb_box_s(a), crb_box_s(b), u->rm, u->flags);         \
        return crb_soft_##name(u->f, a, b, u->rm, u->flags);                                       \
    }
BINARY(add)
BINARY(sub)
BINARY(mul)
BINARY(div)
#undef BINARY

static uint64_t fused(const unit *u, uint64_t a, uint64_t b, uint64_t c) {
    if (u->sew == 3) return crb_fmadd_d(a, b, c, u->rm, u->flags);
    if (u->sew == 2)
        return (uint32_t)crb_fmadd_s(crb_box_s(a), crb_box_s(b), crb_box_s(c), u->rm, u->flags);
    return crb_soft_fma(u->f, a, b, c, u->rm, u->flags);
}

static uint64_t minmax(const unit *u, uint64_t a, uint64_t b, bool want_max) {
    return crb_soft_minmax(u->f, a, b, want_max, u->flags);
}

// ---- One element. funct6 0x28 to 0x2f: bit 2 says what vd is, bits 0 and 1 the signs.

static uint64_t multiply_add(const unit *u, uint32_t funct6, uint64_t a, uint64_t b, uint64_t d) {
    const bool accumulates = (funct6 & 4) != 0;
    const bool flip_product = (funct6 & 1) != 0; // the negated ones
    const bool flip_addend = (funct6 & 3) == 1 || (funct6 & 3) == 2;
    const uint64_t other = accumulates ? a : d;
    const uint64_t addend = accumulates ? d : a;
    return fused(u, flip_product ? b ^ u->f->sign : b, other,
                 flip_addend ? addend ^ u->f->sign : addend);
}

static uint64_t single(const unit *u, uint32_t funct6, uint64_t a, uint64_t b, uint64_t d,
                       bool *known) {
    const uint64_t sign = u->f->sign;
    switch (funct6) {
    case 0x00:
        return add(u, a, b);
    case 0x02:
        return sub(u, a, b);
    case 0x04:
        return minmax(u, a, b, false);
    case 0x06:
        return minmax(u, a, b, true);
    case 0x08:
        return (a & ~sign) | (b & sign);
    case 0x09:
        return (a & ~sign) | (~b & sign);
    case 0x0a:
        return a ^ (b & sign);
    case 0x20:
        return div(u, a, b);
    case 0x21:
        return div(u, b, a);
    case 0x24:
        return mul(u, a, b);
    case 0x27:
        return sub(u, b, a);
    case 0x28 ... 0x2f:
        return multiply_add(u, funct6, a, b, d);
    default:
        *known = false;
        return 0;
    }
}

static bool compare(const unit *u, uint32_t funct6, uint64_t a, uint64_t b) {
    switch (funct6) {
    case 0x18:
        return crb_soft_equal(u->f, a, b, u->flags);
    case 0x19:
        return crb_soft_less(u->f, a, b, true, u->flags);
    case 0x1b:
        return crb_soft_less(u->f, a, b, false, u->flags);
    case 0x1c:
        return !crb_soft_equal(u->f, a, b, u->flags);
    case 0x1d:
        return crb_soft_less(u->f, b, a, false, u->flags);
    default:
        return crb_soft_less(u->f, b, a, true, u->flags);
    }
}

// ---- Loops

static bool sources_ok(const crb_vop *o) {
    return crb_vgroup(o->vs2, o->lmul) && (!o->vector1 || crb_vgroup(o->vs1, o->lmul));
}

static bool do_single(crb_vop *o) {
    const bool scalar_only = o->funct6 == 0x21 || o->funct6 == 0x27;
    bool known = (o->funct6 <= 0x0a || o->funct6 >= 0x20) && !(scalar_only && o->vector1);
    uint32_t unused = 0;
    const unit dry = {crb_vformat(1), 1, 0, &unused};
    if (known) single(&dry, o->funct6, 0, 0, 0, &known);
    if (!known || !sources_ok(o) || !crb_vgroup(o->vd, o->lmul) || (!o->vm && o->vd == 0))
        return false;
    const unit u = unit_of(o, o->sew);
    for (uint32_t i = o->start; i < o->vl; i++) {
        if (!crb_vactive(o, i)) continue;
        const uint64_t a = crb_vget(o, o->vs2, i, o->sew);
        const uint64_t d = crb_vget(o, o->vd, i, o->sew);
        crb_vput(o, o->vd, i, o->sew, single(&u, o->funct6, a, operand(o, i), d, &known));
    }
    return true;
}

static bool do_compare(crb_vop *o) {
    const bool scalar_only = o->funct6 == 0x1d || o->funct6 == 0x1f;
    if (o->funct6 == 0x1a || o->funct6 == 0x1e || (scalar_only && o->vector1) || !sources_ok(o) ||
        !crb_voverlap_ok(o->vd, 0, o->vs2, o->lmul) ||
        (o->vector1 && !crb_voverlap_ok(o->vd, 0, o->vs1, o->lmul)))
        return false;
    const unit u = unit_of(o, o->sew);
    for (uint32_t i = o->start; i < o->vl; i++)
        if (crb_vactive(o, i))
            crb_vput_mask(o, o->vd, i,
                          compare(&u, o->funct6, crb_vget(o, o->vs2, i, o->sew), operand(o, i)));
    return true;
}

static bool do_merge(crb_vop *o) {
    if (o->vector1 || !crb_vgroup(o->vd, o->lmul)) return false;
    if (o->vm ? o->vs2 != 0 : (!crb_vgroup(o->vs2, o->lmul) || o->vd == 0)) return false;
    for (uint32_t i = o->start; i < o->vl; i++)
        crb_vput(o, o->vd, i, o->sew,
                 crb_vactive(o, i) ? crb_vfloat_scalar(o) : crb_vget(o, o->vs2, i, o->sew));
    return true;
}

static uint64_t widen(const crb_vop *o, uint64_t a) {
    return crb_soft_convert(crb_vformat(o->sew + 1), crb_vformat(o->sew), a, CRB_RM_RNE,
                            &o->hart->fflags);
}

static uint64_t wide(const unit *u, uint32_t funct6, uint64_t a, uint64_t b, uint64_t d) {
    switch (funct6) {
    case 0x30:
    case 0x34:
        return add(u, a, b);
    case 0x32:
    case 0x36:
        return sub(u, a, b);
    case 0x38:
        return mul(u, a, b);
    default: // 0x3c to 0x3f: as vfmacc's four
        return multiply_add(u, funct6, a, b, d);
    }
}

static bool do_wide(crb_vop *o) {
    static const uint64_t known =
        1ull << 0x30 | 1ull << 0x32 | 1ull << 0x34 | 1ull << 0x36 | 1ull << 0x38 | 0xfull << 0x3c;
    const bool wide_source = o->funct6 == 0x34 || o->funct6 == 0x36;
    const int emul = o->lmul + 1;
    const int source = wide_source ? emul : o->lmul;
    if ((known >> o->funct6 & 1) == 0 || o->sew == 3 || emul > 3 || !crb_vgroup(o->vd, emul) ||
        (!o->vm && o->vd == 0) || !crb_vgroup(o->vs2, source) ||
        !crb_voverlap_ok(o->vd, emul, o->vs2, source))
        return false;
    if (o->vector1 &&
        (!crb_vgroup(o->vs1, o->lmul) || !crb_voverlap_ok(o->vd, emul, o->vs1, o->lmul)))
        return false;
    const unit u = unit_of(o, o->sew + 1);
    for (uint32_t i = o->start; i < o->vl; i++) {
        if (!crb_vactive(o, i)) continue;
        uint64_t a = crb_vget(o, o->vs2, i, o->sew + wide_source);
        if (!wide_source) a = widen(o, a);
        const uint64_t d = crb_vget(o, o->vd, i, o->sew + 1);
        crb_vput(o, o->vd, i, o->sew + 1, wide(&u, o->funct6, a, widen(o, operand(o, i)), d));
    }
    return true;
}

// Sums are taken in order also where they need not be.
static bool do_reduce(crb_vop *o) {
    const bool widens = o->funct6 >= 0x30;
    const int to = o->sew + widens;
    if (o->start != 0 || to > 3 || !crb_vgroup(o->vs2, o->lmul)) return false;
    if (o->vl == 0) return true;
    const unit u = unit_of(o, to);
    uint64_t sum = crb_vget(o, o->vs1, 0, to);
    for (uint32_t i = 0; i < o->vl; i++) {
        if (!crb_vactive(o, i)) continue;
        uint64_t a = crb_vget(o, o->vs2, i, o->sew);
        if (widens) a = widen(o, a);
        sum =
            o->funct6 == 5 || o->funct6 == 7 ? minmax(&u, sum, a, o->funct6 == 7) : add(&u, sum, a);
    }
    crb_vput(o, o->vd, 0, to, sum);
    return true;
}

// vfmv.f.s and vfmv.s.f.
static bool do_move(crb_vop *o) {
    if (!o->vm) return false;
    if (o->vector1) {
        if (o->vs1 != 0) return false;
        o->hart->r[CRB_F(o->vd)] = crb_vget(o, o->vs2, 0, o->sew) | ~crb_vones(o->sew);
        return true;
    }
    if (o->vs2 != 0) return false;
    if (o->start < o->vl) crb_vput(o, o->vd, 0, o->sew, crb_vfloat_scalar(o));
    return true;
}

bool crb_vector_float(crb_vop *o) {
    switch (o->funct6) {
    case 0x01:
    case 0x03:
    case 0x05:
    case 0x07:
    case 0x31:
    case 0x33:
        return o->vector1 && do_reduce(o);
    case 0x10:
        return do_move(o);
    case 0x0e:
    case 0x0f:
    case 0x12:
    case 0x13:
        return false;
    case 0x17:
        return do_merge(o);
    case 0x18 ... 0x1f:
        return do_compare(o);
    default:
        return o->funct6 >= 0x30 ? do_wide(o) : do_single(o);
    }
}
