// Control and status registers: the unprivileged counters and fcsr, and S-mode's.
#include "rv64/fpu.h"
#include "rv64/hart.h"

#define CSR_FFLAGS     0x001
#define CSR_FRM        0x002
#define CSR_FCSR       0x003
#define CSR_SSTATUS    0x100
#define CSR_SIE        0x104
#define CSR_STVEC      0x105
#define CSR_SCOUNTEREN 0x106
#define CSR_SENVCFG    0x10a
#define CSR_SSCRATCH   0x140
#define CSR_SEPC       0x141
#define CSR_SCAUSE     0x142
#define CSR_STVAL      0x143
#define CSR_SIP        0x144
#define CSR_STIMECMP   0x14d
#define CSR_SATP       0x180
#define CSR_CYCLE      0xc00
#define CSR_TIME       0xc01
#define CSR_INSTRET    0xc02
#define CSR_HPM_LAST   0xc1f

#define ALL_INTERRUPTS (CRB_SSIP | CRB_STIP | CRB_SEIP)

// The rounding mode an instruction's rm field means now; SLOW also when F is off or clean, so that
// one test covers all.
static void update_rm(crb_hart *hart) {
    const bool dirty = (hart->status & CRB_STATUS_FS) == CRB_STATUS_FS;
    for (uint32_t rm = 0; rm < 8; rm++)
        hart->rm[rm] = dirty && rm < 5 ? (uint8_t)rm : CRB_RM_SLOW;
    if (dirty && hart->frm < 5) hart->rm[7] = (uint8_t)hart->frm;
}

void crb_status_changed(crb_hart *hart) {
    update_rm(hart);
    crb_set_mode(hart);
}

static uint64_t read_status(const crb_hart *hart) {
    const bool dirty = (hart->status & CRB_STATUS_FS) == CRB_STATUS_FS ||
                       (hart->status & CRB_STATUS_VS) == CRB_STATUS_VS;
    return hart->status | (dirty ? CRB_STATUS_SD : 0);
}

static bool counter_allowed(const crb_hart *hart, uint32_t csr) {
    if (hart->privilege != 0 || hart->machine->mode == CRB_MODE_USER) return true;
    return (hart->scounteren >> (csr - CSR_CYCLE) & 1) != 0;
}

// hpmcounters exist and count nothing; U-mode never gets to them.
static bool read_counter(crb_hart *hart, uint32_t csr, uint64_t *value) {
    if (csr < CSR_CYCLE || csr > CSR_HPM_LAST || !counter_allowed(hart, csr)) return false;
    if (csr > CSR_INSTRET) {
        *value = 0;
        return true;
    }
    *value =
        csr == CSR_TIME ? crb_time(hart->machine) : hart->retired_base - (uint64_t)hart->budget;
    return true;
}

static bool read_fp(crb_hart *hart, uint32_t csr, uint64_t *value) {
    if ((hart->status & CRB_STATUS_FS) == 0) return false;
    crb_fp_sync(&hart->fflags);
    *value = csr == CSR_FFLAGS ? hart->fflags
             : csr == CSR_FRM  ? hart->frm
                               : hart->frm << 5 | hart->fflags;
    return true;
}

static bool read_csr(crb_hart *hart, uint32_t csr, uint64_t *value) {
    switch (csr) {
    case CSR_FFLAGS:
    case CSR_FRM:
    case CSR_FCSR:
        return read_fp(hart, csr, value);
    case CRB_CSR_VSTART ... CRB_CSR_VXRM:
    case CRB_CSR_VCSR:
    case CRB_CSR_VL ... CRB_CSR_VLENB:
        return crb_vector_read_csr(hart, csr, value);
    case CSR_SSTATUS:
        *value = read_status(hart);
        return true;
    case CSR_SIE:
        *value = hart->sie;
        return true;
    case CSR_STVEC:
        *value = hart->stvec;
        return true;
    case CSR_SCOUNTEREN:
        *value = hart->scounteren;
        return true;
    case CSR_SENVCFG:
        *value = hart->senvcfg;
        return true;
    case CSR_SSCRATCH:
        *value = hart->sscratch;
        return true;
    case CSR_SEPC:
        *value = hart->sepc;
        return true;
    case CSR_SCAUSE:
        *value = hart->scause;
        return true;
    case CSR_STVAL:
        *value = hart->stval;
        return true;
    case CSR_SIP:
        crb_timer_changed(hart);
        *value = __atomic_load_n(&hart->irq, __ATOMIC_ACQUIRE) | hart->stip;
        return true;
    case CSR_STIMECMP:
        *value = hart->stimecmp;
        return true;
    case CSR_SATP:
        *value = hart->satp;
        return true;
    default:
        return read_counter(hart, csr, value);
    }
}

// Interrupts may be enabled now that were not.
static crb_result unless_pending(crb_hart *hart) {
    return crb_pending(hart) == 0 ? CRB_NEXT : CRB_RESYNC;
}

static crb_result write_status(crb_hart *hart, uint64_t value) {
    const uint64_t changed = (hart->status ^ value) & CRB_STATUS_WRITE;
    hart->status ^= changed;
    if ((changed & CRB_STATUS_MXR) != 0) crb_tlb_flush(hart);
    if ((changed & ~CRB_STATUS_SIE) != 0) crb_status_changed(hart);
    return unless_pending(hart);
}

// Modes other than Bare, Sv39 and Sv48 leave the register as it is.
static crb_result write_satp(crb_hart *hart, uint64_t value) {
    const uint64_t mode = value >> 60;
    if (mode != 0 && mode != 8 && mode != 9) return CRB_NEXT;
    if (mode == 0) value = 0;
    const uint64_t before = hart->satp;
    hart->satp = value;
    if (mode != before >> 60)
        crb_tlb_flush(hart);
    else if (value != before)
        crb_tlb_flush_asid(hart);
    return CRB_RESYNC;
}

static crb_result write_sip(crb_hart *hart, uint64_t value) {
    if ((value & CRB_SSIP) != 0)
        __atomic_or_fetch(&hart->irq, CRB_SSIP, __ATOMIC_SEQ_CST);
    else
        __atomic_and_fetch(&hart->irq, ~CRB_SSIP, __ATOMIC_SEQ_CST);
    return unless_pending(hart);
}

// F's registers and flags count as one state: any write makes it dirty.
static crb_result write_fp(crb_hart *hart, uint32_t csr, uint64_t value) {
    crb_fp_sync(&hart->fflags);
    if (csr != CSR_FRM) hart->fflags = value & 31;
    if (csr == CSR_FRM) hart->frm = value & 7;
    if (csr == CSR_FCSR) hart->frm = value >> 5 & 7;
    hart->status |= CRB_STATUS_FS;
    update_rm(hart);
    return CRB_NEXT;
}

static crb_result write_csr(crb_hart *hart, uint32_t csr, uint64_t value) {
    switch (csr) {
    case CSR_FFLAGS:
    case CSR_FRM:
    case CSR_FCSR:
        return write_fp(hart, csr, value);
    case CRB_CSR_VSTART ... CRB_CSR_VXRM:
    case CRB_CSR_VCSR:
        crb_vector_write_csr(hart, csr, value);
        break;
    case CSR_SSTATUS:
        return write_status(hart, value);
    case CSR_SIE:
        hart->sie = value & ALL_INTERRUPTS;
        return unless_pending(hart);
    case CSR_STVEC:
        hart->stvec = (value & 2) != 0 ? hart->stvec : value;
        break;
    case CSR_SCOUNTEREN:
        hart->scounteren = value & 7;
        break;
    case CSR_SENVCFG:
        hart->senvcfg = value & CRB_ENVCFG_WRITE;
        break;
    case CSR_SSCRATCH:
        hart->sscratch = value;
        break;
    case CSR_SEPC:
        hart->sepc = value & ~1ull;
        break;
    case CSR_SCAUSE:
        hart->scause = value;
        break;
    case CSR_STVAL:
        hart->stval = value;
        break;
    case CSR_SIP:
        return write_sip(hart, value);
    case CSR_STIMECMP:
        hart->stimecmp = value;
        crb_timer_changed(hart);
        return unless_pending(hart);
    case CSR_SATP:
        return write_satp(hart, value);
    default:
        return CRB_TRAP; // read-only: refused before
    }
    return CRB_NEXT;
}

crb_result crb_csr(crb_hart *hart, const crb_op *op) {
    const uint32_t csr = (uint32_t)op->imm >> 20;
    const uint32_t how = op->rs2 & 3; // 1 write, 2 set, 3 clear
    const uint64_t operand = (op->rs2 & 4) != 0 ? op->rs1 : hart->r[op->rs1];
    const bool writes = how == 1 || op->rs1 != 0;
    const bool fp = csr <= CSR_FCSR;
    if (!fp && (csr >> 8 & 3) > hart->privilege) return crb_illegal(hart, op);
    if (writes && csr >> 10 == 3) return crb_illegal(hart, op);
    uint64_t old;
    if (!read_csr(hart, csr, &old)) return crb_illegal(hart, op);
    crb_result result = CRB_NEXT;
    // Set and clear act on SSIP itself, not on what the PLIC or the timer show in sip.
    if (writes)
        result = write_csr(hart, csr,
                           how == 1   ? operand
                           : how == 2 ? old | operand
                                      : old & ~operand);
    hart->r[op->rd] = old;
    if (result == CRB_RESYNC) hart->pc += 4;
    return result;
}
