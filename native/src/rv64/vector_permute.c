// Vector permutations (chapter "V", section "Vector Permutation Instructions").
#include "rv64/fpu.h"
#include "rv64/vector.h"

static bool groups_ok(const crb_vop *o) {
    return crb_vgroup(o->vd, o->lmul) && crb_vgroup(o->vs2, o->lmul) && (o->vm || o->vd != 0);
}

static bool apart(const crb_vop *o, uint32_t source, int emul) {
    const uint32_t d = o->lmul > 0 ? 1u << o->lmul : 1;
    const uint32_t s = emul > 0 ? 1u << emul : 1;
    return o->vd + d <= source || source + s <= o->vd;
}

// An immediate is unsigned here; a register is not cut to an element.
static uint64_t offset_of(const crb_vop *o) {
    return o->funct3 == CRB_OPIVI ? o->vs1 : o->scalar;
}

static bool slide_up(crb_vop *o) {
    const uint64_t offset = offset_of(o);
    if (!groups_ok(o) || !apart(o, o->vs2, o->lmul)) return false;
    for (uint32_t i = o->start > offset ? o->start
                      : offset < o->vl  ? (uint32_t)offset
                                        : o->vl;
         i < o->vl; i++)
        if (crb_vactive(o, i))
            crb_vput(o, o->vd, i, o->sew, crb_vget(o, o->vs2, i - (uint32_t)offset, o->sew));
    return true;
}

static bool slide_down(crb_vop *o) {
    const uint64_t offset = offset_of(o);
    const uint32_t most = crb_vlmax(o);
    if (!groups_ok(o)) return false;
    for (uint32_t i = o->start; i < o->vl; i++) {
        if (!crb_vactive(o, i)) continue;
        const bool there = offset < most && i + offset < most;
        crb_vput(o, o->vd, i, o->sew,
                 there ? crb_vget(o, o->vs2, i + (uint32_t)offset, o->sew) : 0);
    }
    return true;
}

// The scalar goes in at one end.
static uint64_t end_scalar(const crb_vop *o) {
    if (o->funct3 != CRB_OPFVF || o->sew == 3) return o->scalar;
    if (o->sew == 2) return crb_unbox_s(o->scalar);
    return (o->scalar & ~0xffffull) == ~0xffffull ? o->scalar & 0xffff : 0x7e00;
}

static bool slide_one_up(crb_vop *o) {
    if (!groups_ok(o) || !apart(o, o->vs2, o->lmul)) return false;
    for (uint32_t i = o->start; i < o->vl; i++)
        if (crb_vactive(o, i))
            crb_vput(o, o->vd, i, o->sew,
                     i == 0 ? end_scalar(o) : crb_vget(o, o->vs2, i - 1, o->sew));
    return true;
}

static bool slide_one_down(crb_vop *o) {
    if (!groups_ok(o)) return false;
    for (uint32_t i = o->start; i < o->vl; i++)
        if (crb_vactive(o, i))
            crb_vput(o, o->vd, i, o->sew,
                     i + 1 == o->vl ? end_scalar(o) : crb_vget(o, o->vs2, i + 1, o->sew));
    return true;
}

// vrgather: by elements of vs1 of 2^index bytes, or by one number.
static bool gather(crb_vop *o, int index) {
    const int emul = o->lmul + index - o->sew;
    const uint32_t most = crb_vlmax(o);
    if (!groups_ok(o) || !apart(o, o->vs2, o->lmul)) return false;
    if (o->vector1 && (emul < -3 || !crb_vgroup(o->vs1, emul) || !apart(o, o->vs1, emul)))
        return false;
    for (uint32_t i = o->start; i < o->vl; i++) {
        if (!crb_vactive(o, i)) continue;
        const uint64_t from = o->vector1 ? crb_vget(o, o->vs1, i, index) : offset_of(o);
        crb_vput(o, o->vd, i, o->sew,
                 from < most ? crb_vget(o, o->vs2, (uint32_t)from, o->sew) : 0);
    }
    return true;
}

static bool compress(crb_vop *o) {
    if (!o->vm || o->start != 0 || !crb_vgroup(o->vd, o->lmul) || !crb_vgroup(o->vs2, o->lmul) ||
        !apart(o, o->vs2, o->lmul) || !apart(o, o->vs1, 0))
        return false;
    uint32_t to = 0;
    for (uint32_t i = 0; i < o->vl; i++)
        if (crb_vmask(o, o->vs1, i))
            crb_vput(o, o->vd, to++, o->sew, crb_vget(o, o->vs2, i, o->sew));
    return true;
}

bool crb_vector_permute(crb_vop *o) {
    const bool integer = o->funct3 == CRB_OPIVV || o->funct3 == CRB_OPIVI || o->funct3 == CRB_OPIVX;
    if (o->funct6 == 0x0c) return integer && gather(o, o->sew);
    if (o->funct6 == 0x0e) {
        if (o->funct3 == CRB_OPIVV) return gather(o, 1);
        if (integer) return slide_up(o);
        return !o->vector1 && slide_one_up(o);
    }
    if (o->funct6 == 0x0f && !o->vector1) return integer ? slide_down(o) : slide_one_down(o);
    return o->funct6 == 0x17 && o->funct3 == CRB_OPMVV && compress(o);
}
