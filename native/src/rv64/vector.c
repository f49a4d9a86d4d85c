// Vector: configuration, CSRs, and which file does an instruction.
#include "rv64/vector.h"
#include "rv64/fpu.h"

#define VILL (1ull << 63)

static int lmul_of(uint64_t vtype) {
    const int lmul = (int)(vtype & 7);
    return lmul >= 4 ? lmul - 8 : lmul;
}

static bool valid_vtype(uint64_t vtype) {
    const int lmul = lmul_of(vtype);
    const int sew = (int)(vtype >> 3 & 7);
    return vtype >> 8 == 0 && sew <= 3 && lmul != -4 && (lmul >= 0 || sew <= 3 + lmul);
}

bool crb_vector_valid_type(uint64_t vtype, uint64_t vl, uint32_t vlenb) {
    if (vtype == VILL) return vl == 0;
    if (!valid_vtype(vtype)) return false;
    const crb_vop o = {.lmul = lmul_of(vtype), .sew = (int)(vtype >> 3 & 7), .vlenb = vlenb};
    return vl <= crb_vlmax(&o);
}

static void set_vl(crb_hart *hart, uint32_t rd, uint64_t avl, uint64_t vtype) {
    if (!valid_vtype(vtype)) {
        hart->vtype = VILL;
        hart->vl = 0;
    } else {
        const crb_vop o = {
            .lmul = lmul_of(vtype), .sew = (int)(vtype >> 3 & 7), .vlenb = hart->machine->vlenb};
        const uint32_t most = crb_vlmax(&o);
        hart->vtype = vtype;
        hart->vl = avl < most ? (uint32_t)avl : most;
    }
    hart->vstart = 0;
    hart->r[rd == 0 ? CRB_SINK : rd] = hart->vl;
}

// vsetvli, vsetivli, vsetvl.
static bool configure(crb_hart *hart, uint32_t insn) {
    const uint32_t rd = insn >> 7 & 31;
    const uint32_t rs1 = insn >> 15 & 31;
    uint64_t avl = rs1 != 0 ? hart->r[rs1] : rd != 0 ? UINT64_MAX : hart->vl;
    uint64_t vtype = insn >> 20 & 0x7ff;
    if (insn >> 30 == 3) {
        avl = rs1;
        vtype = insn >> 20 & 0x3ff;
    } else if (insn >> 31 == 1) {
        if (insn >> 25 != 0x40) return false;
        vtype = hart->r[insn >> 20 & 31];
    }
    set_vl(hart, rd, avl, vtype);
    return true;
}

static crb_vop split(crb_hart *hart, uint32_t insn) {
    const uint32_t funct3 = insn >> 12 & 7;
    const uint32_t rs1 = insn >> 15 & 31;
    crb_vop o = {
        .hart = hart,
        .insn = insn,
        .vd = insn >> 7 & 31,
        .vs1 = rs1,
        .vs2 = insn >> 20 & 31,
        .funct3 = funct3,
        .funct6 = insn >> 26,
        .vm = (insn >> 25 & 1) != 0,
        .vector1 = funct3 <= CRB_OPMVV,
        .sew = (int)(hart->vtype >> 3 & 7),
        .lmul = lmul_of(hart->vtype),
        .vl = hart->vl,
        .start = hart->vstart,
        .vlenb = hart->machine->vlenb,
    };
    const bool amount = o.funct6 == 0x25 || o.funct6 >= 0x28; // shifts are not signed
    if (funct3 == CRB_OPIVI)
        o.scalar = amount ? rs1 : (uint64_t)((int64_t)((uint64_t)rs1 << 59) >> 59);
    if (funct3 == CRB_OPIVX || funct3 == CRB_OPMVX) o.scalar = hart->r[rs1];
    if (funct3 == CRB_OPFVF) o.scalar = hart->r[CRB_F(rs1)];
    return o;
}

// vmv1r.v to vmv8r.v: whatever vtype says.
static bool move_whole(crb_vop *o) {
    const uint32_t count = o->vs1 + 1;
    if ((count & (count - 1)) != 0 || count > 8 || !o->vm) return false;
    if (((o->vd | o->vs2) & (count - 1)) != 0) return false;
    const uint64_t from = (o->hart->vtype & VILL) != 0 ? 0 : (uint64_t)o->start << o->sew;
    const uint64_t size = (uint64_t)count * o->vlenb;
    if (from >= size) return true;
    memmove(crb_velement(o, o->vd, 0, 0) + from, crb_velement(o, o->vs2, 0, 0) + from, size - from);
    return true;
}

static bool float_ready(crb_hart *hart) {
    if (hart->rm[0] != 0 && crb_fp_touch(hart) != CRB_NEXT) return false;
    return hart->rm[7] != CRB_RM_SLOW;
}

static bool arithmetic(crb_vop *o) {
    if (o->funct3 == CRB_OPIVI && o->funct6 == 0x27) return move_whole(o);
    if ((o->hart->vtype & VILL) != 0) return false;
    switch (o->funct3) {
    case CRB_OPFVV:
    case CRB_OPFVF:
        if (!float_ready(o->hart) || o->sew == 0) return false;
        return crb_vector_float(o) || crb_vector_convert(o) || crb_vector_permute(o);
    case CRB_OPMVV:
    case CRB_OPMVX:
        return crb_vector_mask(o) || crb_vector_reduce(o) || crb_vector_permute(o) ||
               crb_vector_multiply(o);
    default:
        return crb_vector_integer(o) || crb_vector_permute(o) || crb_vector_reduce(o);
    }
}

static bool whole_register(uint32_t insn) {
    return (insn & 0x5f) == 0x07 && (insn >> 26 & 3) == 0 && (insn >> 20 & 31) == 8;
}

static crb_result execute(crb_hart *hart, const crb_op *op, uint32_t insn) {
    if ((insn & 0x707f) == 0x7057) return configure(hart, insn) ? CRB_NEXT : crb_illegal(hart, op);
    crb_vop o = split(hart, insn);
    if ((insn & 0x7f) == 0x57) {
        if (!arithmetic(&o)) return crb_illegal(hart, op);
        hart->vstart = 0;
        return CRB_NEXT;
    }
    if ((hart->vtype & VILL) != 0 && !whole_register(insn)) return crb_illegal(hart, op);
    bool exists = true;
    const crb_result result = crb_vector_memory(&o, &exists);
    if (!exists) return crb_illegal(hart, op);
    if (result == CRB_NEXT) hart->vstart = 0;
    return result;
}

crb_result crb_vector(crb_hart *hart, const crb_op *op) {
    if ((hart->status & CRB_STATUS_VS) == 0) return crb_illegal(hart, op);
    const crb_result result = execute(hart, op, (uint32_t)op->imm);
    if (result == CRB_NEXT || hart->cause != CRB_CAUSE_ILLEGAL) hart->status |= CRB_STATUS_VS;
    return result;
}

// ---- CSRs

bool crb_vector_read_csr(const crb_hart *hart, uint32_t csr, uint64_t *value) {
    if ((hart->status & CRB_STATUS_VS) == 0) return false;
    switch (csr) {
    case CRB_CSR_VSTART:
        *value = hart->vstart;
        return true;
    case CRB_CSR_VXSAT:
        *value = hart->vcsr & 1;
        return true;
    case CRB_CSR_VXRM:
        *value = hart->vcsr >> 1;
        return true;
    case CRB_CSR_VCSR:
        *value = hart->vcsr;
        return true;
    case CRB_CSR_VL:
        *value = hart->vl;
        return true;
    case CRB_CSR_VTYPE:
        *value = hart->vtype;
        return true;
    default:
        *value = hart->machine->vlenb;
        return true;
    }
}

void crb_vector_write_csr(crb_hart *hart, uint32_t csr, uint64_t value) {
    hart->status |= CRB_STATUS_VS;
    switch (csr) {
    case CRB_CSR_VSTART: // as many bits as the largest vl needs
        hart->vstart = (uint32_t)value & (hart->machine->vlenb * 8 - 1);
        break;
    case CRB_CSR_VXSAT:
        hart->vcsr = (hart->vcsr & 6) | (value & 1);
        break;
    case CRB_CSR_VXRM:
        hart->vcsr = (hart->vcsr & 1) | (uint32_t)(value & 3) << 1;
        break;
    default:
        hart->vcsr = value & 7;
    }
}
