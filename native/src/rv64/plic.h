// The PLIC, apart from whose CPUs it interrupts: the soft CPU's harts or KVM's vCPUs.
#ifndef CRUMBLE_RV64_PLIC_H
#define CRUMBLE_RV64_PLIC_H

#include "crumble/rv64.h"

#define CRB_PLIC_WORDS  (CRB_PLIC_SOURCES / 32)
#define CRB_PLIC_WINDOW 0x4000000ull // bytes of its registers

// All calls with its owner's lock held. drive: a context's external interrupt becomes this level,
// which it may have had before.
typedef struct crb_plic {
    void *owner;
    void (*drive)(void *owner, uint32_t context, bool level);
    uint32_t n_contexts;
    uint32_t priority[CRB_PLIC_SOURCES];
    uint32_t level[CRB_PLIC_WORDS];
    uint32_t pending[CRB_PLIC_WORDS];
    uint32_t claimed[CRB_PLIC_WORDS];
    uint32_t enable[CRB_MAX_HARTS][CRB_PLIC_WORDS];
    uint32_t threshold[CRB_MAX_HARTS];
} crb_plic;

void crb_plic_set_level(crb_plic *plic, uint32_t source, bool level);
uint32_t crb_plic_read(crb_plic *plic, uint64_t offset);
void crb_plic_write(crb_plic *plic, uint64_t offset, uint32_t value);
// As crb_machine_get_plic and crb_machine_set_plic.
void crb_plic_get_state(const crb_plic *plic, uint8_t *state);
int crb_plic_set_state(crb_plic *plic, const uint8_t *state);

#endif
