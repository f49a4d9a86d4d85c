// Accesses outside RAM: what is served without leaving the run loop, and exits for the rest.
#include "rv64/hart.h"

#include <unistd.h>

static crb_result leave(crb_hart *hart, uint32_t reason, uint64_t gpa, uint32_t size,
                        uint64_t data) {
    *hart->exit = (crb_exit){.reason = reason, .size = size, .gpa = gpa, .data = data};
    return CRB_LEAVE;
}

// True when the load was one of ours.
static bool serve_load(crb_machine *machine, uint64_t gpa, uint32_t size, uint64_t *value) {
    if (size == 4 && gpa - machine->plic_gpa < CRB_PLIC_WINDOW) {
        *value = crb_plic_read(&machine->plic, gpa - machine->plic_gpa);
        return true;
    }
    for (uint32_t i = 0; size == 4 && i < machine->n_virtio; i++) {
        if (machine->virtio[i].status_gpa != gpa) continue;
        *value = machine->virtio[i].status;
        return true;
    }
    return false;
}

static void acknowledge(crb_machine *machine, crb_virtio_irq *irq, uint64_t value) {
    irq->status &= ~(uint32_t)value;
    crb_plic_set_level(&machine->plic, irq->source, irq->status != 0);
}

static bool serve_store(crb_machine *machine, uint64_t gpa, uint32_t size, uint64_t value) {
    if (size == 4 && gpa - machine->plic_gpa < CRB_PLIC_WINDOW) {
        crb_plic_write(&machine->plic, gpa - machine->plic_gpa, (uint32_t)value);
        return true;
    }
    for (uint32_t i = 0; i < machine->n_doorbells; i++) {
        const crb_doorbell *bell = &machine->doorbells[i];
        if (bell->gpa != gpa || bell->size != size) continue;
        if (bell->match >= 0 && (uint64_t)bell->match != value) continue;
        // A full or closed eventfd is its owner's trouble; the guest's store is done either way.
        const uint64_t one = 1;
        if (write(bell->fd, &one, sizeof one) < 0) continue;
        return true;
    }
    for (uint32_t i = 0; size == 4 && i < machine->n_virtio; i++) {
        if (machine->virtio[i].ack_gpa != gpa) continue;
        acknowledge(machine, &machine->virtio[i], value);
        return true;
    }
    return false;
}

crb_result crb_mmio_load(crb_hart *hart, uint64_t gpa, uint32_t size, uint64_t *value) {
    crb_machine *machine = hart->machine;
    if (gpa % size != 0 || machine->mode == CRB_MODE_USER)
        return crb_raise(hart, CRB_CAUSE_LOAD_ACCESS, 0);
    pthread_mutex_lock(&machine->lock);
    const bool served = serve_load(machine, gpa, size, value);
    pthread_mutex_unlock(&machine->lock);
    return served ? CRB_NEXT : leave(hart, CRB_EXIT_MMIO_READ, gpa, size, 0);
}

crb_result crb_mmio_store(crb_hart *hart, uint64_t gpa, uint32_t size, uint64_t value) {
    crb_machine *machine = hart->machine;
    if (gpa % size != 0 || machine->mode == CRB_MODE_USER)
        return crb_raise(hart, CRB_CAUSE_STORE_ACCESS, 0);
    if (size < 8) value &= (1ull << (size * 8)) - 1;
    pthread_mutex_lock(&machine->lock);
    const bool served = serve_store(machine, gpa, size, value);
    pthread_mutex_unlock(&machine->lock);
    return served ? CRB_RESYNC : leave(hart, CRB_EXIT_MMIO_WRITE, gpa, size, value);
}
