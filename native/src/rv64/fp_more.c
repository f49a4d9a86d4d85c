// Half precision (Zfh) and the additional instructions (Zfa), on the integer engine: rare in what
// guests run. Unprivileged ISA, chapters "Zfh and Zfhmin" and "Zfa".
#include "rv64/fpu.h"
#include "rv64/hart.h"

// By the instruction's fmt field: S, D, H.
static const crb_format *const formats[3] = {&crb_binary32, &crb_binary64, &crb_binary16};
static const uint64_t boxes[3] = {CRB_BOX_S, 0, 0xffffffffffff0000ull};

typedef struct fields {
    const crb_format *f;
    uint64_t box;
    uint32_t format, rs1, rs2, funct3, rm;
    uint64_t *to_f, *to_x;
    uint64_t a, b, integer;
    uint32_t *flags;
} fields;

static uint64_t unbox(uint32_t format, uint64_t reg) {
    if ((reg & boxes[format]) != boxes[format]) return formats[format]->nan;
    return reg & ~boxes[format];
}

static fields split(crb_hart *hart, uint32_t insn) {
    const uint32_t format = insn >> 25 & 3;
    const uint32_t rd = insn >> 7 & 31;
    const uint32_t rs1 = insn >> 15 & 31;
    const uint32_t rs2 = insn >> 20 & 31;
    const uint32_t funct3 = insn >> 12 & 7;
    return (fields){
        .f = formats[format],
        .box = boxes[format],
        .format = format,
        .rs1 = rs1,
        .rs2 = rs2,
        .funct3 = funct3,
        .rm = hart->rm[funct3],
        .to_f = &hart->r[CRB_F(rd)],
        .to_x = &hart->r[rd == 0 ? CRB_SINK : rd],
        .a = unbox(format, hart->r[CRB_F(rs1)]),
        .b = unbox(format, hart->r[CRB_F(rs2)]),
        .integer = hart->r[rs1],
        .flags = &hart->fflags,
    };
}

static bool give(const fields *i, uint64_t bits) {
    *i->to_f = bits | i->box;
    return true;
}

// ---- Both: one function a group; false: no such instruction

static bool arithmetic(const fields *i, uint32_t which) {
    if (i->rm == CRB_RM_SLOW) return false;
    switch (which) {
    case 0:
        return give(i, crb_soft_add(i->f, i->a, i->b, i->rm, i->flags));
    case 1:
        return give(i, crb_soft_sub(i->f, i->a, i->b, i->rm, i->flags));
    case 2:
        return give(i, crb_soft_mul(i->f, i->a, i->b, i->rm, i->flags));
    default:
        return give(i, crb_soft_div(i->f, i->a, i->b, i->rm, i->flags));
    }
}

static bool square_root(const fields *i) {
    if (i->rm == CRB_RM_SLOW || i->rs2 != 0) return false;
    return give(i, crb_soft_sqrt(i->f, i->a, i->rm, i->flags));
}

static bool fused(crb_hart *hart, const fields *i, uint32_t insn) {
    if (i->rm == CRB_RM_SLOW) return false;
    const uint32_t which = insn >> 2 & 3; // fmadd, fmsub, fnmsub, fnmadd
    const uint64_t c = unbox(i->format, hart->r[CRB_F(insn >> 27)]);
    const uint64_t product = which >= 2 ? i->f->sign : 0;
    const uint64_t addend = which == 1 || which == 3 ? i->f->sign : 0;
    return give(i, crb_soft_fma(i->f, i->a ^ product, i->b, c ^ addend, i->rm, i->flags));
}

static bool sign(const fields *i) {
    const uint64_t from = i->funct3 == 0 ? i->b : i->funct3 == 1 ? ~i->b : i->a ^ i->b;
    if (i->funct3 > 2) return false;
    return give(i, (i->a & ~i->f->sign) | (from & i->f->sign));
}

// fminm and fmaxm give a NaN when there is one.
static bool minmax(const fields *i) {
    if (i->funct3 > 3) return false;
    const uint64_t result = crb_soft_minmax(i->f, i->a, i->b, (i->funct3 & 1) != 0, i->flags);
    const uint64_t classes = crb_soft_classify(i->f, i->a) | crb_soft_classify(i->f, i->b);
    return give(i, i->funct3 >= 2 && (classes & 0x300) != 0 ? i->f->nan : result);
}

static bool compare(const fields *i) {
    const bool equal = i->funct3 == 2;
    if (i->funct3 == 3 || i->funct3 > 5) return false;
    uint32_t unused = 0;
    const bool quiet = i->funct3 >= 4; // Zfa's: invalid only for a signalling NaN, as feq
    const bool same = crb_soft_equal(i->f, i->a, i->b, equal || quiet ? i->flags : &unused);
    const bool less =
        !equal && crb_soft_less(i->f, i->a, i->b, (i->funct3 & 1) == 0, quiet ? &unused : i->flags);
    *i->to_x = equal ? same : less;
    return true;
}

static bool to_integer(const fields *i) {
    static const uint64_t least[4] = {(uint64_t)INT32_MIN, 0, (uint64_t)INT64_MIN, 0};
    static const uint64_t most[4] = {INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX};
    if (i->rm == CRB_RM_SLOW || i->rs2 > 3) return false;
    const uint64_t value =
        crb_soft_to_int(i->f, i->a, least[i->rs2], most[i->rs2], i->rm, i->flags);
    *i->to_x = i->rs2 < 2 ? crb_sext_w(value) : value;
    return true;
}

static bool from_integer(const fields *i) {
    if (i->rm == CRB_RM_SLOW || i->rs2 > 3) return false;
    const uint64_t value = i->rs2 == 0   ? crb_sext_w(i->integer)
                           : i->rs2 == 1 ? (uint32_t)i->integer
                                         : i->integer;
    const bool negative = (i->rs2 & 1) == 0 && value >> 63 != 0;
    return give(i, crb_soft_from_int(i->f, negative, negative ? -value : value, i->rm, i->flags));
}

// From another format, or Zfa's rounding to an integral value in this one.
static bool convert(crb_hart *hart, const fields *i) {
    if (i->rm == CRB_RM_SLOW || i->rs2 == 3 || i->rs2 > 5 || i->rs2 == i->format) return false;
    uint32_t unused = 0;
    uint32_t *flags = i->flags;
    if (i->rs2 >= 4) {
        const bool nan = (crb_soft_classify(i->f, i->a) & 0x300) != 0;
        if (i->rs2 == 4 && !nan) flags = &unused; // fround says nothing of being inexact
        return give(i, crb_soft_round(i->f, i->a, i->rm, flags));
    }
    const uint64_t from = unbox(i->rs2, hart->r[CRB_F(i->rs1)]);
    return give(i, crb_soft_convert(i->f, formats[i->rs2], from, i->rm, flags));
}

static bool move_out(crb_hart *hart, const fields *i) {
    if (i->rs2 != 0 || i->funct3 > 1 || i->format != 2) return false;
    *i->to_x = i->funct3 == 1 ? crb_soft_classify(i->f, i->a)
                              : (uint64_t)(int64_t)(int16_t)hart->r[CRB_F(i->rs1)];
    return true;
}

// ---- Zfa's own

// fli's constants between the special ones, as doubles.
static const uint64_t constants[32] = {0xbff0000000000000, 0,
                                       0x3ef0000000000000, 0x3f00000000000000,
                                       0x3f70000000000000, 0x3f80000000000000,
                                       0x3fb0000000000000, 0x3fc0000000000000,
                                       0x3fd0000000000000, 0x3fd4000000000000,
                                       0x3fd8000000000000, 0x3fdc000000000000,
                                       0x3fe0000000000000, 0x3fe4000000000000,
                                       0x3fe8000000000000, 0x3fec000000000000,
                                       0x3ff0000000000000, 0x3ff4000000000000,
                                       0x3ff8000000000000, 0x3ffc000000000000,
                                       0x4000000000000000, 0x4004000000000000,
                                       0x4008000000000000, 0x4010000000000000,
                                       0x4020000000000000, 0x4030000000000000,
                                       0x4060000000000000, 0x4070000000000000,
                                       0x40e0000000000000, 0x40f0000000000000,
                                       CRB_INF_D,          CRB_NAN_D};

static bool load_constant(const fields *i) {
    const uint64_t least[3] = {0x00800000, 0x0010000000000000, 0x0400};
    if (i->rs1 == 1) return give(i, least[i->format]); // the smallest normal number
    uint32_t unused = 0;
    return give(i, crb_soft_convert(i->f, &crb_binary64, constants[i->rs1], CRB_RM_RNE, &unused));
}

static bool move_in(const fields *i) {
    if (i->funct3 != 0 || i->rs2 > 1) return false;
    if (i->rs2 == 1) return load_constant(i);
    return i->format == 2 && give(i, i->integer & 0xffff);
}

// fcvtmod.w.d: towards zero, modulo 2^32; flags as fcvt.w.d's.
static bool convert_modular(const fields *i) {
    if (i->format != 1 || i->rs2 != 8 || i->funct3 != CRB_RM_RTZ) return false;
    crb_soft_to_int(i->f, i->a, (uint64_t)INT32_MIN, INT32_MAX, CRB_RM_RTZ, i->flags);
    const int exponent = (int)(i->a >> 52 & 2047) - 1075;
    const uint64_t significand = (i->a & ((1ull << 52) - 1)) | 1ull << 52;
    uint64_t value = 0;
    if (exponent >= 0 && exponent < 64) value = significand << exponent;
    if (exponent < 0 && exponent > -53) value = significand >> -exponent;
    *i->to_x = crb_sext_w(i->a >> 63 != 0 ? -value : value);
    return true;
}

static bool execute(crb_hart *hart, const fields *i, uint32_t insn) {
    switch (insn >> 27) {
    case 0x04:
        return sign(i);
    case 0x05:
        return minmax(i);
    case 0x08:
        return convert(hart, i);
    case 0x0b:
        return square_root(i);
    case 0x14:
        return compare(i);
    case 0x18:
        return to_integer(i) || convert_modular(i);
    case 0x1a:
        return from_integer(i);
    case 0x1c:
        return move_out(hart, i);
    case 0x1e:
        return move_in(i);
    default:
        return insn >> 27 <= 3 && arithmetic(i, insn >> 27);
    }
}

bool crb_fp_more(crb_hart *hart, uint32_t insn) {
    if ((insn >> 25 & 3) == 3) return false; // Q
    const fields i = split(hart, insn);
    if ((insn & 0x7f) != 0x53) return fused(hart, &i, insn);
    return execute(hart, &i, insn);
}
