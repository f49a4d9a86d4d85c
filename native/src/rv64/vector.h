// The vector extension (RISC-V unprivileged ISA, chapter "V"), one instruction at a time. Elements
// are taken out of the register file as 64-bit values, computed, and put back; tails and masked-off
// elements stay as they were, which both policies allow.
#ifndef CRUMBLE_RV64_VECTOR_H
#define CRUMBLE_RV64_VECTOR_H

#include "rv64/fpu_soft.h"
#include "rv64/hart.h"

#include <string.h>

enum { CRB_OPIVV, CRB_OPFVV, CRB_OPMVV, CRB_OPIVI, CRB_OPIVX, CRB_OPFVF, CRB_OPMVX };

// One instruction and the vtype it runs under. sew: log2 of an element's bytes; lmul: log2, -3
// to 3.
typedef struct crb_vop {
    crb_hart *hart;
    uint32_t insn, vd, vs1, vs2, funct3, funct6;
    bool vm;      // not masked
    bool vector1; // the first operand is vs1, not a scalar
    int sew, lmul;
    uint32_t vl, start, vlenb;
    uint64_t scalar; // x[rs1], the immediate or f[rs1]
} crb_vop;

static inline uint8_t *crb_velement(const crb_vop *o, uint32_t reg, uint32_t i, int sew) {
    return o->hart->v + ((uint64_t)reg * o->vlenb + ((uint64_t)i << sew)) % sizeof o->hart->v;
}

static inline uint64_t crb_vget(const crb_vop *o, uint32_t reg, uint32_t i, int sew) {
    uint64_t value = 0;
    const uint8_t *at = crb_velement(o, reg, i, sew);
    switch (sew) {
    case 0:
        return *at;
    case 1:
        memcpy(&value, at, 2);
        return value;
    case 2:
        memcpy(&value, at, 4);
        return value;
    default:
        memcpy(&value, at, 8);
        return value;
    }
}

static inline void crb_vput(const crb_vop *o, uint32_t reg, uint32_t i, int sew, uint64_t value) {
    uint8_t *at = crb_velement(o, reg, i, sew);
    switch (sew) {
    case 0:
        *at = (uint8_t)value;
        break;
    case 1:
        memcpy(at, &value, 2);
        break;
    case 2:
        memcpy(at, &value, 4);
        break;
    default:
        memcpy(at, &value, 8);
    }
}

static inline bool crb_vmask(const crb_vop *o, uint32_t reg, uint32_t i) {
    return (crb_velement(o, reg, 0, 0)[i / 8] >> (i % 8) & 1) != 0;
}

static inline void crb_vput_mask(const crb_vop *o, uint32_t reg, uint32_t i, bool value) {
    uint8_t *at = crb_velement(o, reg, 0, 0) + i / 8;
    *at = (uint8_t)((*at & ~(1u << (i % 8))) | (uint32_t)value << (i % 8));
}

static inline bool crb_vactive(const crb_vop *o, uint32_t i) {
    return o->vm || crb_vmask(o, 0, i);
}

static inline uint64_t crb_vsign(uint64_t value, int sew) {
    const int unused = 64 - (8 << sew);
    return (uint64_t)((int64_t)(value << unused) >> unused);
}

static inline uint64_t crb_vones(int sew) {
    return UINT64_MAX >> (64 - (8 << sew));
}

// The other operand of element i, zero-extended.
static inline uint64_t crb_voperand(const crb_vop *o, uint32_t i) {
    return o->vector1 ? crb_vget(o, o->vs1, i, o->sew) : o->scalar & crb_vones(o->sew);
}

static inline uint32_t crb_vlmax(const crb_vop *o) {
    const int shift = o->lmul - o->sew;
    return shift >= 0 ? o->vlenb << shift : o->vlenb >> -shift;
}

// A register that a group of 2^emul registers may start at.
static inline bool crb_vgroup(uint32_t reg, int emul) {
    return emul <= 3 && (emul <= 0 || (reg & ((1u << emul) - 1)) == 0);
}

// Whether a destination group may be written while the source group is read: not at all
// overlapping, the same element width, or where the specification lets it (section "Vector
// Operands").
static inline bool crb_voverlap_ok(uint32_t vd, int demul, uint32_t vs, int semul) {
    const uint32_t d = demul > 0 ? 1u << demul : 1;
    const uint32_t s = semul > 0 ? 1u << semul : 1;
    if (vd + d <= vs || vs + s <= vd || demul == semul) return true;
    if (demul < semul) return vd == vs;
    return semul >= 0 && vs == vd + d - s;
}

// vector_float.c
const crb_format *crb_vformat(int sew);
uint64_t crb_vfloat_scalar(const crb_vop *o);

// Each false when there is no such instruction.
bool crb_vector_integer(crb_vop *o);
bool crb_vector_multiply(crb_vop *o);
bool crb_vector_mask(crb_vop *o);
bool crb_vector_permute(crb_vop *o);
bool crb_vector_reduce(crb_vop *o);
bool crb_vector_float(crb_vop *o);
bool crb_vector_convert(crb_vop *o);
crb_result crb_vector_memory(crb_vop *o, bool *exists);

#endif
