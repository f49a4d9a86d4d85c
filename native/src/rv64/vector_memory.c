// Vector loads and stores (chapter "V", section "Vector Loads and Stores"). A fault leaves vstart
// at the element that had it, and the instruction goes on there.
#include "rv64/vector.h"

#define MOP_UNIT    0
#define MOP_STRIDED 2
#define UNIT_WHOLE  8
#define UNIT_MASK   11
#define UNIT_FIRST  16

// eew: log2 of the bytes of an element in memory; emul: log2 of a field's registers.
typedef struct access {
    uint64_t base, stride;
    uint32_t fields, count;
    int eew, emul, index_eew;
    bool store, indexed, first;
} access;

// Devices take no vector accesses.
static crb_result no_device(crb_hart *hart, crb_result result, uint64_t va, bool store) {
    if (result == CRB_LEAVE)
        return crb_raise(hart, store ? CRB_CAUSE_STORE_ACCESS : CRB_CAUSE_LOAD_ACCESS, va);
    return result == CRB_TRAP ? CRB_TRAP : CRB_NEXT;
}

// The host address when the TLB has the whole access.
static uint8_t *hit(const crb_hart *hart, uint64_t va, uint64_t size, bool store) {
    const uint32_t index = va >> CRB_PAGE_SHIFT & (CRB_TLB_SIZE - 1);
    const crb_tlb_entry *entry = store ? &hart->tlb->write[index] : &hart->tlb->read[index];
    if (((va + size - 1) & CRB_PAGE_MASK) != entry->tag || (va & CRB_PAGE_MASK) != entry->tag)
        return NULL;
    return (uint8_t *)(uintptr_t)(va + entry->addend);
}

static crb_result move_element(crb_vop *o, const access *a, uint64_t va, uint8_t *at) {
    const uint32_t size = 1u << a->eew;
    uint8_t *host = hit(o->hart, va, size, a->store);
    uint64_t value = 0;
    if (host != NULL) {
        memcpy(a->store ? host : at, a->store ? at : host, size);
        return CRB_NEXT;
    }
    if (a->store) {
        memcpy(&value, at, size);
        return no_device(o->hart, crb_store_slow(o->hart, va, size, value), va, true);
    }
    const crb_result result =
        no_device(o->hart, crb_load_slow(o->hart, va, size, &value), va, false);
    if (result == CRB_NEXT) memcpy(at, &value, size);
    return result;
}

// Elements from i on that lie in one page the TLB has, moved at once; how many.
static uint32_t move_run(crb_vop *o, const access *a, uint32_t i) {
    const uint64_t va = a->base + ((uint64_t)i << a->eew);
    uint64_t size = (uint64_t)(a->count - i) << a->eew;
    if (size > CRB_PAGE_SIZE - CRB_OFFSET(va)) size = CRB_PAGE_SIZE - CRB_OFFSET(va);
    size &= ~0ull << a->eew;
    uint8_t *host = size == 0 ? NULL : hit(o->hart, va, size, a->store);
    if (host == NULL) return 0;
    uint8_t *at = crb_velement(o, o->vd, i, a->eew);
    memcpy(a->store ? host : at, a->store ? at : host, size);
    return (uint32_t)(size >> a->eew);
}

static crb_result move_segment(crb_vop *o, const access *a, uint32_t i) {
    const uint32_t registers = a->emul > 0 ? 1u << a->emul : 1;
    const uint64_t offset =
        a->indexed ? crb_vget(o, o->vs2, i, a->index_eew) : a->stride * (uint64_t)i;
    for (uint32_t field = 0; field < a->fields; field++) {
        const uint64_t va = a->base + offset + ((uint64_t)field << a->eew);
        uint8_t *at = crb_velement(o, o->vd + field * registers, i, a->eew);
        const crb_result result = move_element(o, a, va, at);
        if (result != CRB_NEXT) return result;
    }
    return CRB_NEXT;
}

static crb_result move_all(crb_vop *o, const access *a) {
    const bool runs = o->vm && !a->indexed && a->fields == 1 && a->stride == 1ull << a->eew;
    for (uint32_t i = o->start; i < a->count; i++) {
        const uint32_t run = runs ? move_run(o, a, i) : 0;
        if (run > 0) {
            i += run - 1;
            continue;
        }
        if (!crb_vactive(o, i)) continue;
        const crb_result result = move_segment(o, a, i);
        if (result == CRB_NEXT) continue;
        if (a->first && i > 0) {
            o->hart->vl = i;
            break;
        }
        o->hart->vstart = i;
        return result;
    }
    return CRB_NEXT;
}

static bool whole(crb_vop *o, access *a) {
    const uint32_t count = a->fields;
    if ((count & (count - 1)) != 0 || (o->vd & (count - 1)) != 0 || !o->vm) return false;
    if (a->store && a->eew != 0) return false;
    a->count = count * o->vlenb >> a->eew;
    a->fields = 1;
    return true;
}

static bool unit(crb_vop *o, access *a) {
    a->stride = (uint64_t)a->fields << a->eew;
    switch (o->vs2) {
    case 0:
        return true;
    case UNIT_FIRST:
        a->first = true;
        return !a->store;
    case UNIT_MASK:
        a->count = (o->vl + 7) / 8;
        a->emul = 0;
        return a->fields == 1 && a->eew == 0 && o->vm;
    default:
        return false;
    }
}

// Fills in what the instruction says; false when there is none such.
static bool decode(crb_vop *o, access *a) {
    static const int8_t widths[8] = {0, -1, -1, -1, -1, 1, 2, 3};
    const uint32_t mop = o->insn >> 26 & 3;
    *a = (access){
        .base = o->hart->r[o->vs1],
        .fields = (o->insn >> 29) + 1,
        .count = o->vl,
        .eew = widths[o->funct3],
        .store = (o->insn & 0x7f) == 0x27,
    };
    if ((o->insn >> 28 & 1) != 0 || a->eew < 0) return false;
    if (mop == MOP_UNIT && o->vs2 == UNIT_WHOLE) {
        a->stride = 1ull << a->eew;
        return whole(o, a);
    }
    a->emul = a->eew + o->lmul - o->sew;
    if (mop == MOP_UNIT && !unit(o, a)) return false;
    if (mop == MOP_STRIDED) a->stride = o->hart->r[o->vs2];
    if ((mop & 1) != 0) {
        a->indexed = true;
        a->index_eew = a->eew;
        if (a->emul < -3 || !crb_vgroup(o->vs2, a->emul)) return false;
        const int index_emul = a->emul;
        a->eew = o->sew;
        a->emul = o->lmul;
        if (!a->store && a->fields == 1 && !crb_voverlap_ok(o->vd, a->emul, o->vs2, index_emul))
            return false;
    }
    const uint32_t registers = a->emul > 0 ? 1u << a->emul : 1;
    if (a->emul < -3 || !crb_vgroup(o->vd, a->emul) || registers * a->fields > 8) return false;
    if (!a->store && !o->vm && o->vd == 0) return false;
    return o->vd + registers * a->fields <= 32;
}

crb_result crb_vector_memory(crb_vop *o, bool *exists) {
    access a;
    *exists = decode(o, &a);
    return *exists ? move_all(o, &a) : CRB_NEXT;
}
