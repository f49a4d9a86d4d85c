// The F and D instructions that the interpreter does not do itself: rare ones, other rounding modes
// than nearest-even, and the first after FS was not dirty.
#include "rv64/fpu.h"
#include "rv64/hart.h"

typedef uint64_t unary_fn(uint64_t, uint32_t, uint32_t *);
typedef uint64_t binary_fn(uint64_t, uint64_t, uint32_t, uint32_t *);
typedef uint64_t ternary_fn(uint64_t, uint64_t, uint64_t, uint32_t, uint32_t *);
typedef uint64_t compare_fn(uint64_t, uint64_t, uint32_t *);
typedef uint64_t sign_fn(uint64_t, uint64_t);

// By format (S, D), then by what the instruction selects.
static binary_fn *const arithmetic[2][4] = {{crb_fadd_s, crb_fsub_s, crb_fmul_s, crb_fdiv_s},
                                            {crb_fadd_d, crb_fsub_d, crb_fmul_d, crb_fdiv_d}};
static ternary_fn *const fused[2][4] = {{crb_fmadd_s, crb_fmsub_s, crb_fnmsub_s, crb_fnmadd_s},
                                        {crb_fmadd_d, crb_fmsub_d, crb_fnmsub_d, crb_fnmadd_d}};
static unary_fn *const square_root[2] = {crb_fsqrt_s, crb_fsqrt_d};
static unary_fn *const to_integer[2][4] = {
    {crb_fcvt_w_s, crb_fcvt_wu_s, crb_fcvt_l_s, crb_fcvt_lu_s},
    {crb_fcvt_w_d, crb_fcvt_wu_d, crb_fcvt_l_d, crb_fcvt_lu_d}};
static unary_fn *const from_integer[2][4] = {
    {crb_fcvt_s_w, crb_fcvt_s_wu, crb_fcvt_s_l, crb_fcvt_s_lu},
    {crb_fcvt_d_w, crb_fcvt_d_wu, crb_fcvt_d_l, crb_fcvt_d_lu}};
static compare_fn *const compare[2][3] = {{crb_fle_s, crb_flt_s, crb_feq_s},
                                          {crb_fle_d, crb_flt_d, crb_feq_d}};
static compare_fn *const minmax[2][2] = {{crb_fmin_s, crb_fmax_s}, {crb_fmin_d, crb_fmax_d}};
static sign_fn *const sign[2][3] = {{crb_fsgnj_s, crb_fsgnjn_s, crb_fsgnjx_s},
                                    {crb_fsgnj_d, crb_fsgnjn_d, crb_fsgnjx_d}};

typedef struct fields {
    uint32_t format, rs2, funct3, rm;
    uint64_t *f, *x; // destinations
    uint64_t a, b;   // f[rs1], f[rs2]
    uint64_t integer;
    uint32_t *flags;
} fields;

static fields split(crb_hart *hart, uint32_t insn) {
    const uint32_t rd = insn >> 7 & 31;
    const uint32_t rs1 = insn >> 15 & 31;
    const uint32_t rs2 = insn >> 20 & 31;
    const uint32_t funct3 = insn >> 12 & 7;
    return (fields){
        .format = insn >> 25 & 1,
        .rs2 = rs2,
        .funct3 = funct3,
        .rm = hart->rm[funct3],
        .f = &hart->r[CRB_F(rd)],
        .x = &hart->r[rd == 0 ? CRB_SINK : rd],
        .a = hart->r[CRB_F(rs1)],
        .b = hart->r[CRB_F(rs2)],
        .integer = hart->r[rs1],
        .flags = &hart->fflags,
    };
}

// ---- One function a group; false: no such instruction

static bool do_arithmetic(const fields *i, uint32_t which) {
    if (i->rm == CRB_RM_SLOW) return false;
    *i->f = arithmetic[i->format][which](i->a, i->b, i->rm, i->flags);
    return true;
}

static bool do_square_root(const fields *i) {
    if (i->rm == CRB_RM_SLOW || i->rs2 != 0) return false;
    *i->f = square_root[i->format](i->a, i->rm, i->flags);
    return true;
}

static bool do_sign(const fields *i) {
    if (i->funct3 > 2) return false;
    *i->f = sign[i->format][i->funct3](i->a, i->b);
    return true;
}

static bool do_minmax(const fields *i) {
    if (i->funct3 > 1) return false;
    *i->f = minmax[i->format][i->funct3](i->a, i->b, i->flags);
    return true;
}

static bool do_convert(const fields *i) {
    if (i->rm == CRB_RM_SLOW || i->rs2 != (i->format ^ 1)) return false;
    *i->f =
        i->format == 0 ? crb_fcvt_s_d(i->a, i->rm, i->flags) : crb_fcvt_d_s(i->a, i->rm, i->flags);
    return true;
}

static bool do_compare(const fields *i) {
    if (i->funct3 > 2) return false;
    *i->x = compare[i->format][i->funct3](i->a, i->b, i->flags);
    return true;
}

static bool do_to_integer(const fields *i) {
    if (i->rm == CRB_RM_SLOW || i->rs2 > 3) return false;
    *i->x = to_integer[i->format][i->rs2](i->a, i->rm, i->flags);
    return true;
}

static bool do_from_integer(const fields *i) {
    if (i->rm == CRB_RM_SLOW || i->rs2 > 3) return false;
    *i->f = from_integer[i->format][i->rs2](i->integer, i->rm, i->flags);
    return true;
}

static bool do_move_out(const fields *i) {
    if (i->rs2 != 0 || i->funct3 > 1) return false;
    if (i->funct3 == 1)
        *i->x = i->format == 0 ? crb_fclass_s(i->a) : crb_fclass_d(i->a);
    else
        *i->x = i->format == 0 ? crb_fmv_x_w(i->a) : i->a;
    return true;
}

static bool do_move_in(const fields *i) {
    if (i->rs2 != 0 || i->funct3 != 0) return false;
    *i->f = i->format == 0 ? crb_fmv_w_x(i->integer) : i->integer;
    return true;
}

static bool do_fused(crb_hart *hart, const fields *i, uint32_t insn) {
    if (i->rm == CRB_RM_SLOW) return false;
    const uint64_t c = hart->r[CRB_F(insn >> 27)];
    *i->f = fused[i->format][insn >> 2 & 3](i->a, i->b, c, i->rm, i->flags);
    return true;
}

static bool execute(crb_hart *hart, uint32_t insn) {
    const fields whole = split(hart, insn);
    const fields *i = &whole;
    if ((insn >> 26 & 1) != 0) return false;
    if ((insn & 0x7f) != 0x53) return do_fused(hart, i, insn);
    switch (insn >> 27) {
    case 0x00:
    case 0x01:
    case 0x02:
    case 0x03:
        return do_arithmetic(i, insn >> 27);
    case 0x04:
        return do_sign(i);
    case 0x05:
        return do_minmax(i);
    case 0x08:
        return do_convert(i);
    case 0x0b:
        return do_square_root(i);
    case 0x14:
        return do_compare(i);
    case 0x18:
        return do_to_integer(i);
    case 0x1a:
        return do_from_integer(i);
    case 0x1c:
        return do_move_out(i);
    case 0x1e:
        return do_move_in(i);
    default:
        return false;
    }
}

crb_result crb_fp_touch(crb_hart *hart) {
    if ((hart->status & CRB_STATUS_FS) == 0) return crb_raise(hart, CRB_CAUSE_ILLEGAL, 0);
    hart->status |= CRB_STATUS_FS;
    crb_status_changed(hart);
    return CRB_NEXT;
}

crb_result crb_fp(crb_hart *hart, const crb_op *op) {
    if (hart->rm[0] != 0 && crb_fp_touch(hart) != CRB_NEXT) return crb_illegal(hart, op);
    const uint32_t insn = (uint32_t)op->imm;
    return execute(hart, insn) || crb_fp_more(hart, insn) ? CRB_NEXT : crb_illegal(hart, op);
}
