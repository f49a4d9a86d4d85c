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
    _Atomic uint32_t bits;
} crb_kvm_slot;

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
    int gic; // arm64's interrupt controller; -1: none
    uint32_t n_slots;
    uint32_t n_vcpus;
    crb_kvm_slot slots[CRB_KVM_MAX_SLOTS];
    crb_kvm_vcpu *vcpus[CRB_KVM_MAX_VCPUS];
};

// What KVM_CREATE_VM is given.
unsigned long crb_kvm_vm_type(int kvm);
// The architecture's interrupt controllers and whatever else comes before vCPUs.
int crb_kvm_create_irqchip(crb_kvm_vm *vm, int irqchip);

#endif
