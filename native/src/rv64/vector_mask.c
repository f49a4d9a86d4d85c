// Vector mask instructions and reductions (chapter "V", sections "Vector Mask Instructions" and
// "Vector Reduction Operations").
#include "rv64/fpu.h"
#include "rv64/vector.h"

// ---- Masks

static bool combine(uint32_t funct6, bool a, bool b) {
    switch (funct6) {
    case 0x18:
        return a && !b;
    case 0x19:
        return a && b;
    case 0x1a:
        return a || b;
    case 0x1b:
        return a != b;
    case 0x1c:
        return a || !b;
    case 0x1d:
        return !(a && b);
    case 0x1e:
        return !(a || b);
    default:
        return a == b;
    }
}

static bool do_logical(crb_vop *o) {
    if (!o->vm) return false;
    for (uint32_t i = o->start; i < o->vl; i++)
        crb_vput_mask(o, o->vd, i,
                      combine(o->funct6, crb_vmask(o, o->vs2, i), crb_vmask(o, o->vs1, i)));
    return true;
}

// vcpop.m, vfirst.m, and vmv.x.s.
static bool do_to_scalar(crb_vop *o) {
    uint64_t *const x = &o->hart->r[o->vd == 0 ? CRB_SINK : o->vd];
    if (o->vs1 == 0) {
        if (!o->vm) return false;
        *x = crb_vsign(crb_vget(o, o->vs2, 0, o->sew), o->sew);
        return true;
    }
    if ((o->vs1 != 16 && o->vs1 != 17) || o->start != 0) return false;
    uint64_t count = 0;
    uint64_t first = UINT64_MAX;
    for (uint32_t i = o->vl; i-- > 0;) {
        if (!crb_vactive(o, i) || !crb_vmask(o, o->vs2, i)) continue;
        count++;
        first = i;
    }
    *x = o->vs1 == 16 ? count : first;
    return true;
}

static bool do_first_bits(crb_vop *o) {
    if (o->start != 0 || o->vd == o->vs2 || (!o->vm && o->vd == 0)) return false;
    bool found = false;
    for (uint32_t i = 0; i < o->vl; i++) {
        if (!crb_vactive(o, i)) continue;
        const bool here = !found && crb_vmask(o, o->vs2, i);
        const bool before = !found && !here;
        found = found || here;
        crb_vput_mask(o, o->vd, i, o->vs1 == 1 ? before : o->vs1 == 2 ? here : before || here);
    }
    return true;
}

static bool do_iota(crb_vop *o) {
    if (o->start != 0 || !crb_vgroup(o->vd, o->lmul) || (!o->vm && o->vd == 0) ||
        !crb_voverlap_ok(o->vd, o->lmul, o->vs2, 0) || o->vd == o->vs2)
        return false;
    uint64_t count = 0;
    for (uint32_t i = 0; i < o->vl; i++) {
        if (!crb_vactive(o, i)) continue;
        const bool here = crb_vmask(o, o->vs2, i);
        crb_vput(o, o->vd, i, o->sew, count);
        count += here;
    }
    return true;
}

static bool do_index(crb_vop *o) {
    if (o->vs2 != 0 || !crb_vgroup(o->vd, o->lmul) || (!o->vm && o->vd == 0)) return false;
    for (uint32_t i = o->start; i < o->vl; i++)
        if (crb_vactive(o, i)) crb_vput(o, o->vd, i, o->sew, i);
    return true;
}

static bool do_mask_unary(crb_vop *o) {
    switch (o->vs1) {
    case 1:
    case 2:
    case 3:
        return do_first_bits(o);
    case 16:
        return do_iota(o);
    case 17:
        return do_index(o);
    default:
        return false;
    }
}

bool crb_vector_mask(crb_vop *o) {
    if (o->funct6 == 0x10 && !o->vector1) { // vmv.s.x
        if (o->vs2 != 0 || !o->vm) return false;
        if (o->start < o->vl) crb_vput(o, o->vd, 0, o->sew, o->scalar);
        return true;
    }
    if (!o->vector1) return false;
    if (o->funct6 == 0x10) return do_to_scalar(o);
    if (o->funct6 == 0x14) return do_mask_unary(o);
    return o->funct6 >= 0x18 && o->funct6 <= 0x1f && do_logical(o);
}

// ---- Reductions

static uint64_t reduce(const crb_vop *o, uint64_t sum, uint64_t a) {
    const int64_t left = (int64_t)crb_vsign(sum, o->sew);
    const int64_t right = (int64_t)crb_vsign(a, o->sew);
    switch (o->funct6) {
    case 0:
        return sum + a;
    case 1:
        return sum & a;
    case 2:
        return sum | a;
    case 3:
        return sum ^ a;
    case 4:
        return sum < a ? sum : a;
    case 5:
        return left < right ? sum : a;
    case 6:
        return sum > a ? sum : a;
    default:
        return left > right ? sum : a;
    }
}

bool crb_vector_reduce(crb_vop *o) {
    const bool wide = o->funct3 == CRB_OPIVV && (o->funct6 == 0x30 || o->funct6 == 0x31);
    const bool single = o->funct3 == CRB_OPMVV && o->funct6 <= 7;
    if ((!wide && !single) || (wide && o->sew == 3) || o->start != 0 ||
        !crb_vgroup(o->vs2, o->lmul))
        return false;
    if (o->vl == 0) return true;
    const int to = o->sew + wide;
    uint64_t sum = crb_vget(o, o->vs1, 0, to);
    for (uint32_t i = 0; i < o->vl; i++) {
        if (!crb_vactive(o, i)) continue;
        const uint64_t a = crb_vget(o, o->vs2, i, o->sew);
        if (wide)
            sum += o->funct6 == 0x31 ? crb_vsign(a, o->sew) : a;
        else
            sum = reduce(o, sum, a) & crb_vones(o->sew);
    }
    crb_vput(o, o->vd, 0, to, sum);
    return true;
}
