// The Supervisor Binary Interface, served here instead of firmware (RISC-V SBI 2.0): base, TIME,
// sPI, RFENCE, HSM, SRST, DBCN.
#include "rv64/hart.h"

#define EXT_BASE   0x10
#define EXT_TIME   0x54494d45
#define EXT_IPI    0x735049
#define EXT_RFENCE 0x52464e43
#define EXT_HSM    0x48534d
#define EXT_SRST   0x53525354
#define EXT_DBCN   0x4442434e

#define SBI_SUCCESS           0
#define SBI_NOT_SUPPORTED     (-2)
#define SBI_INVALID_PARAM     (-3)
#define SBI_INVALID_ADDRESS   (-5)
#define SBI_ALREADY_AVAILABLE (-6)

#define SPEC_VERSION 0x02000000
#define IMPL_ID      0x43524d42 // "CRMB": not registered
#define CONSOLE_MAX  4096

enum { A0 = 10, A1, A2, A3, A4, A5, A6, A7 };

static crb_result answer(crb_hart *hart, int64_t error, uint64_t value) {
    hart->r[A0] = (uint64_t)error;
    hart->r[A1] = value;
    return CRB_RESYNC;
}

static bool available(uint64_t extension) {
    return extension == EXT_BASE || extension == EXT_TIME || extension == EXT_IPI ||
           extension == EXT_RFENCE || extension == EXT_HSM || extension == EXT_SRST ||
           extension == EXT_DBCN;
}

static crb_result base(crb_hart *hart) {
    switch (hart->r[A6]) {
    case 0:
        return answer(hart, SBI_SUCCESS, SPEC_VERSION);
    case 1:
        return answer(hart, SBI_SUCCESS, IMPL_ID);
    case 2:
        return answer(hart, SBI_SUCCESS, 1);
    case 3:
        return answer(hart, SBI_SUCCESS, available(hart->r[A0]));
    case 4:
    case 5:
    case 6:
        return answer(hart, SBI_SUCCESS, 0); // mvendorid, marchid, mimpid
    default:
        return answer(hart, SBI_NOT_SUPPORTED, 0);
    }
}

static crb_result set_timer(crb_hart *hart) {
    if (hart->r[A6] != 0) return answer(hart, SBI_NOT_SUPPORTED, 0);
    hart->stimecmp = hart->r[A0];
    crb_timer_changed(hart);
    return answer(hart, SBI_SUCCESS, 0);
}

// ---- Hart masks: bits from a base; base -1 is every hart

static bool mask_valid(const crb_machine *machine, uint64_t mask, uint64_t first) {
    if (first == UINT64_MAX) return true;
    for (uint32_t bit = 0; bit < 64; bit++)
        if ((mask >> bit & 1) != 0 &&
            (first >= machine->n_harts || first + bit >= machine->n_harts))
            return false;
    return true;
}

static bool chosen(uint64_t mask, uint64_t first, uint32_t hart) {
    if (first == UINT64_MAX) return true;
    return hart >= first && hart - first < 64 && (mask >> (hart - first) & 1) != 0;
}

static crb_result send_ipi(crb_hart *hart) {
    crb_machine *machine = hart->machine;
    if (hart->r[A6] != 0) return answer(hart, SBI_NOT_SUPPORTED, 0);
    if (!mask_valid(machine, hart->r[A0], hart->r[A1])) return answer(hart, SBI_INVALID_PARAM, 0);
    for (uint32_t i = 0; i < machine->n_harts; i++) {
        if (!chosen(hart->r[A0], hart->r[A1], i)) continue;
        __atomic_or_fetch(&machine->harts[i]->irq, CRB_SSIP, __ATOMIC_SEQ_CST);
        if (i != hart->id) crb_attract(machine->harts[i], CRB_ATTENTION_IRQ);
    }
    return answer(hart, SBI_SUCCESS, 0);
}

// A fence on one hart. Ranges are short or everything: what is long is flushed whole.
static void fence_here(crb_hart *hart, uint32_t what) {
    if (what == CRB_FLUSH_CODE)
        crb_drop_stale(hart, true);
    else
        crb_tlb_flush(hart);
}

static crb_result remote_fence(crb_hart *hart) {
    crb_machine *machine = hart->machine;
    const uint64_t function = hart->r[A6];
    if (function > 2) return answer(hart, SBI_NOT_SUPPORTED, 0);
    if (!mask_valid(machine, hart->r[A0], hart->r[A1])) return answer(hart, SBI_INVALID_PARAM, 0);
    const uint32_t what = function == 0 ? CRB_FLUSH_CODE : CRB_FLUSH_TLB;
    for (uint32_t i = 0; i < machine->n_harts; i++) {
        crb_hart *other = machine->harts[i];
        if (other == hart || !chosen(hart->r[A0], hart->r[A1], i)) continue;
        __atomic_or_fetch(&other->flush, what, __ATOMIC_SEQ_CST);
        __atomic_add_fetch(&other->flush_wanted, 1, __ATOMIC_SEQ_CST);
        crb_attract(other, CRB_ATTENTION_FLUSH);
    }
    if (chosen(hart->r[A0], hart->r[A1], hart->id)) fence_here(hart, what);
    for (uint32_t i = 0; i < machine->n_harts; i++) {
        crb_hart *other = machine->harts[i];
        if (other != hart && chosen(hart->r[A0], hart->r[A1], i))
            crb_await(hart, other, &other->flush_wanted, &other->flush_done);
    }
    return answer(hart, SBI_SUCCESS, 0);
}

// ---- Hart state management

static crb_result hart_start(crb_hart *hart) {
    crb_machine *machine = hart->machine;
    const uint64_t id = hart->r[A0];
    if (id >= machine->n_harts) return answer(hart, SBI_INVALID_PARAM, 0);
    crb_hart *other = machine->harts[id];
    if (__atomic_load_n(&other->hsm, __ATOMIC_SEQ_CST) != 1)
        return answer(hart, SBI_ALREADY_AVAILABLE, 0);
    if (!crb_memory_has(machine->memory, hart->r[A1], 2))
        return answer(hart, SBI_INVALID_ADDRESS, 0);
    other->start_pc = hart->r[A1] & ~1ull;
    other->start_arg = hart->r[A2];
    __atomic_store_n(&other->start, 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&other->hsm, 0, __ATOMIC_SEQ_CST);
    crb_attract(other, CRB_ATTENTION_START);
    return answer(hart, SBI_SUCCESS, 0);
}

static crb_result hart_stop(crb_hart *hart) {
    hart->satp = 0;
    hart->status = CRB_STATUS_UXL;
    hart->sie = 0;
    crb_tlb_flush(hart);
    crb_status_changed(hart);
    __atomic_store_n(&hart->hsm, 1, __ATOMIC_SEQ_CST);
    *hart->exit = (crb_exit){.reason = CRB_EXIT_STOPPED};
    hart->retired_base++;
    return CRB_LEAVE;
}

// Retentive suspend is WFI; the other kind starts again at an address with the MMU off.
static crb_result hart_suspend(crb_hart *hart) {
    const uint64_t kind = hart->r[A0];
    const uint64_t resume = hart->r[A1];
    const uint64_t argument = hart->r[A2];
    if (kind != 0 && kind != 0x80000000) return answer(hart, SBI_INVALID_PARAM, 0);
    if (kind != 0 && !crb_memory_has(hart->machine->memory, resume, 2))
        return answer(hart, SBI_INVALID_ADDRESS, 0);
    answer(hart, SBI_SUCCESS, 0);
    if (kind != 0) {
        hart->satp = 0;
        hart->status &= ~(CRB_STATUS_SIE);
        hart->pc = resume & ~1ull;
        hart->r[A0] = hart->id;
        hart->r[A1] = argument;
        crb_tlb_flush(hart);
        crb_status_changed(hart);
    }
    const crb_result result = crb_wfi(hart);
    if (result == CRB_LEAVE) hart->retired_base++;
    return result == CRB_LEAVE ? CRB_LEAVE : CRB_RESYNC;
}

static crb_result hsm(crb_hart *hart) {
    const uint64_t id = hart->r[A0];
    switch (hart->r[A6]) {
    case 0:
        return hart_start(hart);
    case 1:
        return hart_stop(hart);
    case 2:
        if (id >= hart->machine->n_harts) return answer(hart, SBI_INVALID_PARAM, 0);
        return answer(hart, SBI_SUCCESS,
                      __atomic_load_n(&hart->machine->harts[id]->hsm, __ATOMIC_SEQ_CST));
    case 3:
        return hart_suspend(hart);
    default:
        return answer(hart, SBI_NOT_SUPPORTED, 0);
    }
}

// ---- Exits: reset and console

static crb_result reset(crb_hart *hart) {
    if (hart->r[A6] != 0) return answer(hart, SBI_NOT_SUPPORTED, 0);
    if (hart->r[A0] > 2) return answer(hart, SBI_INVALID_PARAM, 0);
    *hart->exit =
        (crb_exit){.reason = CRB_EXIT_RESET, .data = hart->r[A0], .extra = (uint32_t)hart->r[A1]};
    hart->retired_base++;
    return CRB_LEAVE;
}

static crb_result console_write(crb_hart *hart, uint64_t gpa, uint64_t size) {
    if (size > CONSOLE_MAX) size = CONSOLE_MAX;
    if (!crb_memory_has(hart->machine->memory, gpa, size))
        return answer(hart, SBI_INVALID_PARAM, 0);
    if (size == 0) return answer(hart, SBI_SUCCESS, 0);
    *hart->exit = (crb_exit){.reason = CRB_EXIT_CONSOLE, .size = (uint32_t)size, .gpa = gpa};
    hart->pending = CRB_PENDING_CONSOLE;
    hart->retired_base++;
    return CRB_LEAVE;
}

// write_byte has no buffer in guest memory: size 0, the byte in `extra`.
static crb_result console_byte(crb_hart *hart) {
    *hart->exit = (crb_exit){.reason = CRB_EXIT_CONSOLE, .extra = hart->r[A0] & 0xff};
    answer(hart, SBI_SUCCESS, 0);
    hart->retired_base++;
    return CRB_LEAVE;
}

static crb_result console(crb_hart *hart) {
    switch (hart->r[A6]) {
    case 0:
        if (hart->r[A2] != 0) return answer(hart, SBI_INVALID_PARAM, 0);
        return console_write(hart, hart->r[A1], hart->r[A0]);
    case 1:
        return answer(hart, SBI_SUCCESS, 0); // nothing to read, ever
    case 2:
        return console_byte(hart);
    default:
        return answer(hart, SBI_NOT_SUPPORTED, 0);
    }
}

crb_result crb_ecall(crb_hart *hart) {
    if (hart->privilege == 0) return crb_raise(hart, CRB_CAUSE_ECALL_U, 0);
    hart->pc += 4;
    switch (hart->r[A7]) {
    case EXT_BASE:
        return base(hart);
    case EXT_TIME:
        return set_timer(hart);
    case EXT_IPI:
        return send_ipi(hart);
    case EXT_RFENCE:
        return remote_fence(hart);
    case EXT_HSM:
        return hsm(hart);
    case EXT_SRST:
        return reset(hart);
    case EXT_DBCN:
        return console(hart);
    default:
        return answer(hart, SBI_NOT_SUPPORTED, 0);
    }
}
