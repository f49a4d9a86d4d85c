// Traps and interrupts into S-mode, and back (RISC-V privileged ISA, ch. "Supervisor-Level ISA").
#include "rv64/hart.h"

#include <sched.h>

#define INTERRUPT (1ull << 63)

static void enter_supervisor(crb_hart *hart, uint64_t cause, uint64_t tval, uint64_t pc) {
    const bool enabled = (hart->status & CRB_STATUS_SIE) != 0;
    hart->scause = cause;
    hart->stval = tval;
    hart->sepc = pc;
    hart->status &= ~(CRB_STATUS_SIE | CRB_STATUS_SPIE | CRB_STATUS_SPP);
    if (enabled) hart->status |= CRB_STATUS_SPIE;
    if (hart->privilege == 1) hart->status |= CRB_STATUS_SPP;
    hart->privilege = 1;
    hart->pc = hart->stvec & ~3ull;
    if ((cause & INTERRUPT) != 0 && (hart->stvec & 3) == 1) hart->pc += (cause & ~INTERRUPT) * 4;
    crb_set_mode(hart);
}

// A trap at the trap vector that finds everything as it would leave it repeats for ever: real
// hardware hangs, we say so.
static bool crashed(const crb_hart *hart) {
    return hart->privilege == 1 && hart->pc == (hart->stvec & ~3ull) && hart->sepc == hart->pc &&
           hart->scause == hart->cause && hart->stval == hart->tval &&
           (hart->status & CRB_STATUS_SPP) != 0;
}

crb_result crb_take_trap(crb_hart *hart) {
    hart->counters.traps++;
    if (hart->machine->mode == CRB_MODE_USER || crashed(hart)) {
        *hart->exit = (crb_exit){
            .reason = hart->machine->mode == CRB_MODE_USER ? CRB_EXIT_TRAP : CRB_EXIT_CRASH,
            .data = hart->cause,
            .extra = hart->tval,
        };
        return CRB_LEAVE;
    }
    enter_supervisor(hart, hart->cause, hart->tval, hart->pc);
    return CRB_AGAIN;
}

bool crb_take_interrupt(crb_hart *hart) {
    const uint32_t pending = crb_pending(hart);
    if (pending == 0 || crb_debug_holds_interrupts(hart)) return false;
    if (hart->privilege == 1 && (hart->status & CRB_STATUS_SIE) == 0) return false;
    // Priority: external, software, timer.
    const uint64_t cause = (pending & CRB_SEIP) != 0 ? 9 : (pending & CRB_SSIP) != 0 ? 1 : 5;
    hart->counters.interrupts++;
    enter_supervisor(hart, INTERRUPT | cause, 0, hart->pc);
    return true;
}

crb_result crb_sret(crb_hart *hart, const crb_op *op) {
    if (hart->privilege == 0) return crb_illegal(hart, op);
    const bool enable = (hart->status & CRB_STATUS_SPIE) != 0;
    hart->privilege = (hart->status & CRB_STATUS_SPP) != 0;
    hart->status &= ~(CRB_STATUS_SIE | CRB_STATUS_SPP);
    hart->status |= CRB_STATUS_SPIE | (enable ? CRB_STATUS_SIE : 0);
    hart->pc = hart->sepc;
    crb_set_mode(hart);
    return CRB_RESYNC;
}

// The instruction has retired when it waits, so a snapshot taken meanwhile goes on behind it.
crb_result crb_wait(crb_hart *hart, const crb_op *op) {
    if (hart->privilege == 0) return crb_illegal(hart, op);
    hart->pc += 4;
    hart->retired_base++;
    return crb_wfi(hart);
}

crb_result crb_sfence(crb_hart *hart, const crb_op *op) {
    if (hart->privilege == 0) return crb_illegal(hart, op);
    hart->pc += 4;
    if (op->rs1 != 0)
        crb_tlb_flush_va(hart, hart->r[op->rs1]);
    else if (op->rs2 != 0)
        crb_tlb_flush_asid(hart);
    else
        crb_tlb_flush(hart);
    return CRB_RESYNC;
}

// SINVAL.VMA did everything already, so its fences order nothing. A hart that waits for another's
// store lets that run: they may share a core.
crb_result crb_misc(crb_hart *hart, const crb_op *op) {
    const bool supervisor = (uint32_t)op->imm >> 25 == 12;
    if (supervisor) return hart->privilege == 0 ? crb_illegal(hart, op) : CRB_NEXT;
    if (hart->machine->n_harts > 1) sched_yield();
    return CRB_NEXT;
}
