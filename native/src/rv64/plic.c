// The platform-level interrupt controller (RISC-V PLIC specification 1.0), S-mode contexts only:
// context number = hart. Every source is level-sensitive. All with the machine locked.
#include "rv64/hart.h"

#define PENDING_BASE   0x1000
#define ENABLE_BASE    0x2000
#define ENABLE_STRIDE  0x80
#define CONTEXT_BASE   0x200000
#define CONTEXT_STRIDE 0x1000
#define PRIORITY_MASK  7u

static bool get_bit(const uint32_t *bits, uint32_t source) {
    return (bits[source / 32] >> (source % 32) & 1) != 0;
}

static void put_bit(uint32_t *bits, uint32_t source, bool value) {
    const uint32_t bit = 1u << (source % 32);
    bits[source / 32] = value ? bits[source / 32] | bit : bits[source / 32] & ~bit;
}

// The best pending source for a context, 0 none. Ties go to the lowest number.
static uint32_t best(const crb_plic *plic, uint32_t context) {
    uint32_t found = 0;
    uint32_t priority = plic->threshold[context];
    for (uint32_t word = 0; word < CRB_PLIC_WORDS; word++) {
        uint32_t bits = plic->pending[word] & plic->enable[context][word];
        while (bits != 0) {
            const uint32_t source = word * 32 + (uint32_t)__builtin_ctz(bits);
            bits &= bits - 1;
            if (plic->priority[source] <= priority) continue;
            priority = plic->priority[source];
            found = source;
        }
    }
    return found;
}

static void update_context(crb_machine *machine, uint32_t context) {
    crb_hart *hart = machine->harts[context];
    if (best(&machine->plic, context) == 0) {
        __atomic_and_fetch(&hart->irq, ~CRB_SEIP, __ATOMIC_SEQ_CST);
        return;
    }
    const uint32_t before = __atomic_fetch_or(&hart->irq, CRB_SEIP, __ATOMIC_SEQ_CST);
    if ((before & CRB_SEIP) == 0) crb_attract(hart, CRB_ATTENTION_IRQ);
}

void crb_plic_update(crb_machine *machine) {
    for (uint32_t context = 0; context < machine->n_harts; context++)
        update_context(machine, context);
}

// The gateway: a high level makes one request, and another after completion if it is still high.
static void gateway(crb_plic *plic, uint32_t source) {
    if (get_bit(plic->level, source) && !get_bit(plic->claimed, source))
        put_bit(plic->pending, source, true);
}

void crb_plic_set_level(crb_machine *machine, uint32_t source, bool level) {
    if (source == 0 || source >= CRB_PLIC_SOURCES) return;
    crb_plic *plic = &machine->plic;
    put_bit(plic->level, source, level);
    // A device that lowers its line before anyone claimed it takes its request back, as QEMU does.
    if (!level) put_bit(plic->pending, source, false);
    gateway(plic, source);
    crb_plic_update(machine);
}

static uint32_t claim(crb_machine *machine, uint32_t context) {
    const uint32_t source = best(&machine->plic, context);
    if (source != 0) {
        put_bit(machine->plic.pending, source, false);
        put_bit(machine->plic.claimed, source, true);
        crb_plic_update(machine);
    }
    return source;
}

static void complete(crb_machine *machine, uint32_t context, uint32_t source) {
    crb_plic *plic = &machine->plic;
    if (source == 0 || source >= CRB_PLIC_SOURCES) return;
    if (!get_bit(plic->enable[context], source)) return;
    put_bit(plic->claimed, source, false);
    gateway(plic, source);
    crb_plic_update(machine);
}

uint32_t crb_plic_read(crb_machine *machine, uint64_t offset) {
    const crb_plic *plic = &machine->plic;
    if (offset < CRB_PLIC_SOURCES * 4) return plic->priority[offset / 4];
    if (offset - PENDING_BASE < CRB_PLIC_WORDS * 4)
        return plic->pending[(offset - PENDING_BASE) / 4];
    if (offset - ENABLE_BASE < machine->n_harts * (uint64_t)ENABLE_STRIDE) {
        const uint64_t context = (offset - ENABLE_BASE) / ENABLE_STRIDE;
        const uint64_t word = (offset - ENABLE_BASE) % ENABLE_STRIDE / 4;
        return word < CRB_PLIC_WORDS ? plic->enable[context][word] : 0;
    }
    if (offset - CONTEXT_BASE < machine->n_harts * (uint64_t)CONTEXT_STRIDE) {
        const uint32_t context = (uint32_t)((offset - CONTEXT_BASE) / CONTEXT_STRIDE);
        const uint64_t reg = (offset - CONTEXT_BASE) % CONTEXT_STRIDE;
        if (reg == 0) return plic->threshold[context];
        if (reg == 4) return claim(machine, context);
    }
    return 0;
}

void crb_plic_write(crb_machine *machine, uint64_t offset, uint32_t value) {
    crb_plic *plic = &machine->plic;
    if (offset < CRB_PLIC_SOURCES * 4) {
        if (offset != 0) plic->priority[offset / 4] = value & PRIORITY_MASK;
        crb_plic_update(machine);
    } else if (offset - ENABLE_BASE < machine->n_harts * (uint64_t)ENABLE_STRIDE) {
        const uint64_t context = (offset - ENABLE_BASE) / ENABLE_STRIDE;
        const uint64_t word = (offset - ENABLE_BASE) % ENABLE_STRIDE / 4;
        if (word >= CRB_PLIC_WORDS) return;
        plic->enable[context][word] = word == 0 ? value & ~1u : value;
        update_context(machine, (uint32_t)context);
    } else if (offset - CONTEXT_BASE < machine->n_harts * (uint64_t)CONTEXT_STRIDE) {
        const uint32_t context = (uint32_t)((offset - CONTEXT_BASE) / CONTEXT_STRIDE);
        const uint64_t reg = (offset - CONTEXT_BASE) % CONTEXT_STRIDE;
        if (reg == 0) plic->threshold[context] = value & PRIORITY_MASK;
        if (reg == 4) complete(machine, context, value);
        update_context(machine, context);
    }
}
