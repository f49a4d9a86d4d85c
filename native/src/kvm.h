// What kvm.c and its parts for architectures share.
#ifndef CRUMBLE_KVM_PRIVATE_H
#define CRUMBLE_KVM_PRIVATE_H

#include "crumble/kvm.h"

#include <stdatomic.h>
#include <sys/types.h>

#define CRB_KVM_MAX_SLOTS 64
#define CRB_KVM_MAX_VCPUS 64

typedef struct crb_kvm_slot {
    uint64_t status;
    uint64_t acknowledge;
    uint32_t source; // of the PLIC, whose level the bits are; 0: none
    _Atomic uint32_t bits;
} crb_kvm_slot;

typedef struct crb_kvm_plic crb_kvm_plic;

struct crb_kvm_vcpu {
    crb_kvm_vm *vm;
    int fd;
    struct kvm_run *run;
    size_t run_size;
    _Atomic bool cancel;
    _Atomic pid_t thread; // that is in KVM_RUN or about to be; 0: none
    uint32_t pending;     // CRB_KVM_EXIT_* that `data` of the next run answers; 0 none
    uint32_t element;     // of a string instruction's accesses to a port, the one that is out
    crb_kvm_counters counters;
};

struct crb_kvm_vm {
    int kvm;
    int fd;
    int gic;            // arm64's interrupt controller; -1: none
    int its;            // and its ITS
    crb_kvm_plic *plic; // riscv64's; NULL: none
    uint32_t n_slots;
    uint32_t n_vcpus;
    crb_kvm_slot slots[CRB_KVM_MAX_SLOTS];
    crb_kvm_vcpu *vcpus[CRB_KVM_MAX_VCPUS];
};

// What KVM_CREATE_VM is given.
unsigned long crb_kvm_vm_type(int kvm);
// The architecture's interrupt controllers and whatever else comes before vCPUs.
int crb_kvm_create_irqchip(crb_kvm_vm *vm, int irqchip);

// ---- kvm_plic.c

void crb_kvm_plic_free(crb_kvm_plic *plic);
int crb_kvm_plic_line(crb_kvm_plic *plic, uint32_t source, bool level);
// A write to `fd` is a used buffer of the slot that is bound to `source`; or no longer.
int crb_kvm_plic_call(crb_kvm_plic *plic, uint32_t source, int fd, bool assign);
void crb_kvm_plic_slot_changed(crb_kvm_plic *plic, crb_kvm_slot *slot);
// True when the access was to its registers, and is done.
bool crb_kvm_plic_serve(crb_kvm_plic *plic, struct kvm_run *run);

#endif
