// Vector integer and fixed-point arithmetic (chapter "V", sections "Vector Integer Arithmetic
// Instructions" and "Vector Fixed-Point Arithmetic Instructions").
#include "rv64/vector.h"

typedef unsigned __int128 u128;
typedef __int128 s128;

// What vxrm adds when `shift` bits are cut off.
static uint64_t round_bit(u128 value, uint32_t shift, uint32_t vxrm) {
    if (shift == 0) return 0;
    const uint64_t half = (uint64_t)(value >> (shift - 1)) & 1;
    const bool below = shift > 1 && (value & (((u128)1 << (shift - 1)) - 1)) != 0;
    const uint64_t odd = (uint64_t)(value >> shift) & 1;
    switch (vxrm) {
    case 0:
        return half;
    case 1:
        return half & (uint64_t)(below || odd != 0);
    case 2:
        return 0;
    default:
        return odd == 0 && (half != 0 || below);
    }
}

static uint32_t vxrm(const crb_vop *o) {
    return o->hart->vcsr >> 1;
}

static uint64_t saturate(const crb_vop *o, uint64_t value) {
    o->hart->vcsr |= 1;
    return value;
}

static uint64_t clip_signed(const crb_vop *o, s128 value, int sew) {
    const int64_t most = (int64_t)(crb_vones(sew) >> 1);
    if (value > most) return saturate(o, (uint64_t)most);
    if (value < -(s128)most - 1) return saturate(o, ~(uint64_t)most);
    return (uint64_t)value;
}

static uint64_t clip_unsigned(const crb_vop *o, u128 value, int sew) {
    return value > crb_vones(sew) ? saturate(o, crb_vones(sew)) : (uint64_t)value;
}

// vsmul: the one product that does not fit is of two least numbers.
static uint64_t multiply_fraction(const crb_vop *o, int64_t a, int64_t b) {
    const uint32_t shift = (8u << o->sew) - 1;
    const s128 product = (s128)a * b;
    return clip_signed(o, (product >> shift) + (s128)round_bit((u128)product, shift, vxrm(o)),
                       o->sew);
}

static uint64_t scale(const crb_vop *o, s128 value, uint32_t shift) {
    return (uint64_t)(value >> shift) + round_bit((u128)value, shift, vxrm(o));
}

// ---- One element: a is vs2's, b the other. *known is cleared when there is no such instruction.

static uint64_t simple(const crb_vop *o, uint64_t a, uint64_t b, bool *known) {
    const int sew = o->sew;
    const int64_t sa = (int64_t)crb_vsign(a, sew);
    const int64_t sb = (int64_t)crb_vsign(b, sew);
    const uint32_t shift = b & ((8u << sew) - 1);
    switch (o->funct6) {
    case 0x00:
        return a + b;
    case 0x02:
        return a - b;
    case 0x03:
        return b - a;
    case 0x04:
        return a < b ? a : b;
    case 0x05:
        return sa < sb ? a : b;
    case 0x06:
        return a > b ? a : b;
    case 0x07:
        return sa > sb ? a : b;
    case 0x09:
        return a & b;
    case 0x0a:
        return a | b;
    case 0x0b:
        return a ^ b;
    case 0x20:
        return clip_unsigned(o, (u128)a + b, sew);
    case 0x21:
        return clip_signed(o, (s128)sa + sb, sew);
    case 0x22:
        return a < b ? saturate(o, 0) : a - b;
    case 0x23:
        return clip_signed(o, (s128)sa - sb, sew);
    case 0x25:
        return a << shift;
    case 0x27:
        return multiply_fraction(o, sa, sb);
    case 0x28:
        return a >> shift;
    case 0x29:
        return (uint64_t)(sa >> shift);
    case 0x2a:
        return scale(o, (s128)a, shift);
    case 0x2b:
        return scale(o, sa, shift);
    default:
        *known = false;
        return 0;
    }
}

static bool compare(const crb_vop *o, uint64_t a, uint64_t b) {
    const int64_t sa = (int64_t)crb_vsign(a, o->sew);
    const int64_t sb = (int64_t)crb_vsign(b, o->sew);
    switch (o->funct6) {
    case 0x18:
        return a == b;
    case 0x19:
        return a != b;
    case 0x1a:
        return a < b;
    case 0x1b:
        return sa < sb;
    case 0x1c:
        return a <= b;
    case 0x1d:
        return sa <= sb;
    case 0x1e:
        return a > b;
    default:
        return sa > sb;
    }
}

// vadc, vsbc: what they give; vmadc, vmsbc: the carry out.
static uint64_t with_carry(const crb_vop *o, uint64_t a, uint64_t b, uint64_t carry) {
    const u128 minus = (u128)b + carry;
    switch (o->funct6) {
    case 0x10:
        return a + b + carry;
    case 0x11:
        return ((u128)a + b + carry) > crb_vones(o->sew);
    case 0x12:
        return a - b - carry;
    default:
        return a < minus;
    }
}

static uint64_t narrow(const crb_vop *o, uint64_t a, uint64_t b) {
    const uint32_t shift = b & ((16u << o->sew) - 1);
    const int64_t sa = (int64_t)crb_vsign(a, o->sew + 1);
    switch (o->funct6) {
    case 0x2c:
        return a >> shift;
    case 0x2d:
        return (uint64_t)(sa >> shift);
    case 0x2e:
        return clip_unsigned(o, (u128)(a >> shift) + round_bit(a, shift, vxrm(o)), o->sew);
    default:
        return clip_signed(o, (s128)(sa >> shift) + (s128)round_bit((u128)(s128)sa, shift, vxrm(o)),
                           o->sew);
    }
}

// ---- Loops

static bool groups_ok(const crb_vop *o) {
    return crb_vgroup(o->vd, o->lmul) && crb_vgroup(o->vs2, o->lmul) &&
           (!o->vector1 || crb_vgroup(o->vs1, o->lmul));
}

static bool sources_ok(const crb_vop *o) {
    return crb_vgroup(o->vs2, o->lmul) && (!o->vector1 || crb_vgroup(o->vs1, o->lmul));
}

static bool mask_target_ok(const crb_vop *o) {
    return sources_ok(o) && crb_voverlap_ok(o->vd, 0, o->vs2, o->lmul) &&
           (!o->vector1 || crb_voverlap_ok(o->vd, 0, o->vs1, o->lmul));
}

static bool do_simple(crb_vop *o) {
    bool known = true;
    simple(o, 0, 0, &known);
    if (!known || !groups_ok(o) || (!o->vm && o->vd == 0)) return false;
    for (uint32_t i = o->start; i < o->vl; i++)
        if (crb_vactive(o, i))
            crb_vput(o, o->vd, i, o->sew,
                     simple(o, crb_vget(o, o->vs2, i, o->sew), crb_voperand(o, i), &known));
    return true;
}

static bool do_compare(crb_vop *o) {
    if (!mask_target_ok(o)) return false;
    for (uint32_t i = o->start; i < o->vl; i++)
        if (crb_vactive(o, i))
            crb_vput_mask(o, o->vd, i,
                          compare(o, crb_vget(o, o->vs2, i, o->sew), crb_voperand(o, i)));
    return true;
}

static bool do_carry(crb_vop *o) {
    const bool to_mask = (o->funct6 & 1) != 0;
    if (to_mask ? !mask_target_ok(o) : (!groups_ok(o) || o->vm || o->vd == 0)) return false;
    for (uint32_t i = o->start; i < o->vl; i++) {
        const uint64_t carry = !o->vm && crb_vmask(o, 0, i);
        const uint64_t value =
            with_carry(o, crb_vget(o, o->vs2, i, o->sew), crb_voperand(o, i), carry);
        if (to_mask)
            crb_vput_mask(o, o->vd, i, value != 0);
        else
            crb_vput(o, o->vd, i, o->sew, value);
    }
    return true;
}

// vmerge, and vmv.v when nothing is masked.
static bool do_merge(crb_vop *o) {
    if (!crb_vgroup(o->vd, o->lmul) || (o->vector1 && !crb_vgroup(o->vs1, o->lmul))) return false;
    if (o->vm ? o->vs2 != 0 : (!crb_vgroup(o->vs2, o->lmul) || o->vd == 0)) return false;
    for (uint32_t i = o->start; i < o->vl; i++)
        crb_vput(o, o->vd, i, o->sew,
                 crb_vactive(o, i) ? crb_voperand(o, i) : crb_vget(o, o->vs2, i, o->sew));
    return true;
}

static bool do_narrow(crb_vop *o) {
    const int wide = o->lmul + 1;
    if (o->sew == 3 || wide > 3 || !crb_vgroup(o->vd, o->lmul) || !crb_vgroup(o->vs2, wide) ||
        (o->vector1 && !crb_vgroup(o->vs1, o->lmul)) || (!o->vm && o->vd == 0) ||
        !crb_voverlap_ok(o->vd, o->lmul, o->vs2, wide))
        return false;
    for (uint32_t i = o->start; i < o->vl; i++)
        if (crb_vactive(o, i))
            crb_vput(o, o->vd, i, o->sew,
                     narrow(o, crb_vget(o, o->vs2, i, o->sew + 1), crb_voperand(o, i)));
    return true;
}

// Bits by operand (VV, VI, VX): which funct6 there are.
static bool has_form(const crb_vop *o) {
    const bool immediate = o->funct3 == CRB_OPIVI;
    switch (o->funct6) {
    case 0x02:
    case 0x04:
    case 0x05:
    case 0x06:
    case 0x07:
    case 0x12:
    case 0x13:
    case 0x1a:
    case 0x1b:
    case 0x22:
    case 0x23:
        return !immediate;
    case 0x03:
    case 0x1e:
    case 0x1f:
        return !o->vector1;
    default:
        return true;
    }
}

bool crb_vector_integer(crb_vop *o) {
    if (!has_form(o)) return false;
    switch (o->funct6) {
    case 0x10 ... 0x13:
        return do_carry(o);
    case 0x17:
        return do_merge(o);
    case 0x18 ... 0x1f:
        return do_compare(o);
    case 0x2c ... 0x2f:
        return do_narrow(o);
    default:
        return do_simple(o);
    }
}
