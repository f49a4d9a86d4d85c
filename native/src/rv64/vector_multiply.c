// Vector multiplication, division, averages and widening arithmetic (OPMVV and OPMVX).
#include "rv64/vector.h"

typedef unsigned __int128 u128;
typedef __int128 s128;

static uint64_t average(const crb_vop *o, s128 sum) {
    const uint32_t rm = o->hart->vcsr >> 1;
    const uint64_t cut = (uint64_t)sum & 1;
    const uint64_t odd = (uint64_t)(sum >> 1) & 1;
    const uint64_t up = rm == 0 ? cut : rm == 1 ? cut & odd : rm == 2 ? 0 : cut & (odd ^ 1);
    return (uint64_t)(sum >> 1) + up;
}

static uint64_t divide(int64_t a, int64_t b) {
    if (b == 0) return UINT64_MAX;
    if (b == -1) return -(uint64_t)a;
    return (uint64_t)(a / b);
}

static uint64_t remainder_of(int64_t a, int64_t b) {
    if (b == 0) return (uint64_t)a;
    return b == -1 ? 0 : (uint64_t)(a % b);
}

// a is vs2's element, b the other operand, d what is in vd.
static uint64_t single(const crb_vop *o, uint64_t a, uint64_t b, uint64_t d, bool *known) {
    const int sew = o->sew;
    const int bits = 8 << sew;
    const int64_t sa = (int64_t)crb_vsign(a, sew);
    const int64_t sb = (int64_t)crb_vsign(b, sew);
    switch (o->funct6) {
    case 0x08:
        return average(o, (s128)a + (s128)b);
    case 0x09:
        return average(o, (s128)sa + sb);
    case 0x0a:
        return average(o, (s128)a - (s128)b);
    case 0x0b:
        return average(o, (s128)sa - sb);
    case 0x20:
        return b == 0 ? UINT64_MAX : a / b;
    case 0x21:
        return divide(sa, sb);
    case 0x22:
        return b == 0 ? a : a % b;
    case 0x23:
        return remainder_of(sa, sb);
    case 0x24:
        return (uint64_t)(((u128)a * b) >> bits);
    case 0x25:
        return a * b;
    case 0x26:
        return (uint64_t)(((s128)sa * (s128)b) >> bits);
    case 0x27:
        return (uint64_t)(((s128)sa * sb) >> bits);
    case 0x29:
        return b * d + a;
    case 0x2b:
        return a - b * d;
    case 0x2d:
        return b * a + d;
    case 0x2f:
        return d - b * a;
    default:
        *known = false;
        return 0;
    }
}

static bool do_single(crb_vop *o) {
    bool known = true;
    single(o, 1, 1, 1, &known);
    if (!known || !crb_vgroup(o->vd, o->lmul) || !crb_vgroup(o->vs2, o->lmul) ||
        (o->vector1 && !crb_vgroup(o->vs1, o->lmul)) || (!o->vm && o->vd == 0))
        return false;
    for (uint32_t i = o->start; i < o->vl; i++) {
        if (!crb_vactive(o, i)) continue;
        const uint64_t a = crb_vget(o, o->vs2, i, o->sew);
        const uint64_t d = crb_vget(o, o->vd, i, o->sew);
        crb_vput(o, o->vd, i, o->sew, single(o, a, crb_voperand(o, i), d, &known));
    }
    return true;
}

// Operands zero- or sign-extended to twice their width. `a` is extended already where it is wide.
static uint64_t wide(const crb_vop *o, uint64_t a, uint64_t b, uint64_t d) {
    const uint64_t sa = crb_vsign(a, o->sew);
    const uint64_t sb = crb_vsign(b, o->sew);
    switch (o->funct6) {
    case 0x30:
    case 0x34:
        return a + b;
    case 0x31:
        return sa + sb;
    case 0x32:
    case 0x36:
        return a - b;
    case 0x33:
        return sa - sb;
    case 0x35:
        return a + sb;
    case 0x37:
        return a - sb;
    case 0x38:
        return a * b;
    case 0x3a:
        return sa * b;
    case 0x3b:
        return sa * sb;
    case 0x3c:
        return d + a * b;
    case 0x3d:
        return d + sa * sb;
    case 0x3e:
        return d + a * sb; // the scalar is unsigned: see do_wide
    default:
        return d + a * sb;
    }
}

static bool wide_groups_ok(const crb_vop *o, bool wide_source) {
    const int emul = o->lmul + 1;
    if (o->sew == 3 || emul > 3 || !crb_vgroup(o->vd, emul) || (!o->vm && o->vd == 0)) return false;
    const int source = wide_source ? emul : o->lmul;
    if (!crb_vgroup(o->vs2, source) || !crb_voverlap_ok(o->vd, emul, o->vs2, source)) return false;
    return !o->vector1 ||
           (crb_vgroup(o->vs1, o->lmul) && crb_voverlap_ok(o->vd, emul, o->vs1, o->lmul));
}

static bool do_wide(crb_vop *o) {
    const bool wide_source = o->funct6 >= 0x34 && o->funct6 <= 0x37;
    const bool unsigned_scalar = o->funct6 == 0x3e; // vwmaccus: unsigned scalar, signed vector
    if (o->funct6 == 0x39 || (unsigned_scalar && o->vector1) || !wide_groups_ok(o, wide_source))
        return false;
    for (uint32_t i = o->start; i < o->vl; i++) {
        if (!crb_vactive(o, i)) continue;
        const uint64_t a = crb_vget(o, o->vs2, i, o->sew + wide_source);
        const uint64_t b = crb_voperand(o, i);
        const uint64_t d = crb_vget(o, o->vd, i, o->sew + 1);
        const uint64_t value = unsigned_scalar ? d + crb_vsign(a, o->sew) * b : wide(o, a, b, d);
        crb_vput(o, o->vd, i, o->sew + 1, value);
    }
    return true;
}

// vzext, vsext: from a half, a quarter or an eighth of the width.
static bool do_extend(crb_vop *o) {
    const int down = o->vs1 >= 2 && o->vs1 <= 7 ? 4 - (int)(o->vs1 >> 1) : 0;
    const int from = o->sew - down;
    const int emul = o->lmul - down;
    if (down == 0 || from < 0 || emul < -3 || !crb_vgroup(o->vd, o->lmul) ||
        !crb_vgroup(o->vs2, emul) || (!o->vm && o->vd == 0) ||
        !crb_voverlap_ok(o->vd, o->lmul, o->vs2, emul))
        return false;
    for (uint32_t i = o->start; i < o->vl; i++) {
        if (!crb_vactive(o, i)) continue;
        const uint64_t a = crb_vget(o, o->vs2, i, from);
        crb_vput(o, o->vd, i, o->sew, (o->vs1 & 1) != 0 ? crb_vsign(a, from) : a);
    }
    return true;
}

bool crb_vector_multiply(crb_vop *o) {
    if (o->funct6 == 0x12) return o->vector1 && do_extend(o);
    return o->funct6 >= 0x30 ? do_wide(o) : do_single(o);
}
