// Virtual machines by /dev/kvm: what must not wait for Python. The run loop, doorbells (ioeventfd),
// interrupts (irqfd) and the interrupt registers of virtio-mmio slots stay here and in the kernel.
//
// Functions give 0 or a negative errno unless it says otherwise; -ENOSYS for what another
// architecture has. A register group is the kernel's own structure (linux/kvm.h), as bytes.
#ifndef CRUMBLE_KVM_H
#define CRUMBLE_KVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crumble/memory.h"

// How far crb_kvm_create came.
#define CRB_KVM_STAGE_OPEN       0 // /dev/kvm cannot be opened
#define CRB_KVM_STAGE_VERSION    1 // it speaks another API version
#define CRB_KVM_STAGE_CAPABILITY 2 // `missing` names a capability it lacks
#define CRB_KVM_STAGE_VM         3 // it makes no VM
#define CRB_KVM_STAGE_IRQCHIP    4 // it makes no interrupt controllers

// Interrupt controllers of x86: the kernel's PIC, IOAPIC and LAPICs, or only its LAPICs.
#define CRB_KVM_IRQCHIP_NONE   0
#define CRB_KVM_IRQCHIP_KERNEL 1
#define CRB_KVM_IRQCHIP_SPLIT  2

#define CRB_KVM_EXIT_CANCELED   0
#define CRB_KVM_EXIT_MMIO_READ  1 // address, size; `data` is the answer of the next run
#define CRB_KVM_EXIT_MMIO_WRITE 2 // address, size, data
#define CRB_KVM_EXIT_PORT_READ  3
#define CRB_KVM_EXIT_PORT_WRITE 4
#define CRB_KVM_EXIT_HALT       5 // nothing wakes it: there is no interrupt controller
#define CRB_KVM_EXIT_SHUTDOWN   6 // x86: a triple fault
#define CRB_KVM_EXIT_SYSTEM     7 // data: KVM_SYSTEM_EVENT_*; extra: its first word
#define CRB_KVM_EXIT_EMULATION  8 // an instruction it cannot emulate: `size` of `bytes`, 0: unknown
#define CRB_KVM_EXIT_INTERNAL   9 // data: KVM_INTERNAL_ERROR_*; extra: the first word of more, or 0
#define CRB_KVM_EXIT_ENTRY      10 // the CPU refuses the state: data is its reason
#define CRB_KVM_EXIT_MEMORY                                                                        \
    11                        // host memory behind the guest's is gone: data is an errno;
                              // address: where, when `extra` is 1
#define CRB_KVM_EXIT_EOI   12 // split irqchip: data is the vector of a level interrupt
#define CRB_KVM_EXIT_OTHER 13 // data: KVM_EXIT_*
#define CRB_KVM_EXIT_SBI   14 // riscv64: a call that KVM does not serve, in `sbi`

typedef struct crb_kvm_vm crb_kvm_vm;
typedef struct crb_kvm_vcpu crb_kvm_vcpu;

typedef struct crb_kvm_exit {
    int32_t reason;
    uint32_t size;
    uint64_t address;
    uint64_t data;
    uint64_t extra;
    uint8_t bytes[16];
    uint64_t sbi[8]; // a0 to a7; the next run's answer is in `data` (a1) and `extra` (a0)
} crb_kvm_exit;

typedef struct crb_kvm_counters {
    uint64_t entries;
    uint64_t mmio;
    uint64_t ports;
    uint64_t interrupt_registers; // of virtio-mmio slots and the PLIC, served here
    uint64_t canceled;
    uint64_t other;
} crb_kvm_counters;

// On failure `*stage` says how far it came, and `*missing` is a KVM_CAP_* for STAGE_CAPABILITY.
int crb_kvm_create(crb_kvm_vm **vm, int irqchip, int *stage, int *missing);
// No vCPU is running. Frees the vCPUs as well.
void crb_kvm_close(crb_kvm_vm *vm);
// The value of KVM_CHECK_EXTENSION.
int crb_kvm_capability(crb_kvm_vm *vm, int capability);

// All regions of `memory`, which stays, become memory slots, the lowest number first; -ENOTSUP when
// one has a base.
int crb_kvm_set_memory(crb_kvm_vm *vm, const crb_memory *memory, bool log_dirty);
// The pages of region `slot` that vCPUs wrote since the last call: bit n of `bitmap` for page n.
int crb_kvm_dirty_log(crb_kvm_vm *vm, uint32_t slot, uint8_t *bitmap, size_t size);

// A write of `size` bytes of `value` at `address` (a port when `port`) writes 1 to eventfd `fd`.
int crb_kvm_doorbell(crb_kvm_vm *vm, uint64_t address, uint32_t size, uint64_t value, int fd,
                     bool port, bool assign);
// A write to eventfd `fd` is an edge of interrupt `gsi`.
int crb_kvm_irqfd(crb_kvm_vm *vm, uint32_t gsi, int fd, bool assign);
int crb_kvm_set_line(crb_kvm_vm *vm, uint32_t gsi, bool level);
// A message of what has requester ID `device`, which an ITS asks for; 0: who asks not.
typedef struct crb_kvm_message {
    uint64_t address;
    uint32_t data;
    uint32_t device;
} crb_kvm_message;
int crb_kvm_signal_msi(crb_kvm_vm *vm, const crb_kvm_message *message);
// The first `pins` interrupts are the kernel's controller's (arm64: shared ones); number pins + n
// of `count` more is messages[n], none where the address is 0.
int crb_kvm_set_routes(crb_kvm_vm *vm, uint32_t pins, const crb_kvm_message *messages,
                       uint32_t count);

// x86, where all controllers are the kernel's: both PICs and the IOAPIC. -EINVAL for another size,
// or what is none.
#define CRB_KVM_IRQCHIP_SIZE 1560
int crb_kvm_get_irqchip(crb_kvm_vm *vm, uint8_t *state, size_t size);
int crb_kvm_set_irqchip(crb_kvm_vm *vm, const uint8_t *state, size_t size);

// The kvmclock, ns.
int crb_kvm_get_clock(crb_kvm_vm *vm, uint64_t *ns);
int crb_kvm_set_clock(crb_kvm_vm *vm, uint64_t ns);

// InterruptStatus and InterruptACK of a virtio-mmio slot, before any vCPU runs. Gives its number,
// or -ENOSPC. Bit 0 reads as set: who uses an irqfd cannot set it.
int crb_kvm_add_slot(crb_kvm_vm *vm, uint64_t status, uint64_t acknowledge);
uint32_t crb_kvm_slot_set(crb_kvm_vm *vm, uint32_t slot, uint32_t bits);   // the bits afterwards
uint32_t crb_kvm_slot_clear(crb_kvm_vm *vm, uint32_t slot, uint32_t bits); // the bits afterwards

int crb_kvm_create_vcpu(crb_kvm_vm *vm, uint32_t index, crb_kvm_vcpu **vcpu);
// Runs until the caller must do something. Only by the vCPU's thread. -errno when KVM_RUN fails.
int crb_kvm_run(crb_kvm_vcpu *vcpu, crb_kvm_exit *stop);
// What a vCPU's end is, from the first `size` bytes of its struct kvm_run, and KVM_RUN's errno (0:
// it succeeded); -EINVAL for what is no end. What crb_kvm_run does with them.
int crb_kvm_decode(const void *run, size_t size, int error, crb_kvm_exit *stop);
// Makes run return CANCELED soon, also when it is called only later. Any thread.
void crb_kvm_cancel(crb_kvm_vcpu *vcpu);
// Maps the guest memory [address, address + size), of whole pages, as accesses to it would, without
// an exit for each page. 0 also where KVM has no such call (before Linux 6.12). Not while the vCPU
// runs.
int crb_kvm_prefault(crb_kvm_vcpu *vcpu, uint64_t address, uint64_t size);
void crb_kvm_get_counters(const crb_kvm_vcpu *vcpu, crb_kvm_counters *counters);

// Register groups, of x86 all but MP_STATE. Get gives the group's size; -EINVAL for another one, or
// a wrong size.
#define CRB_KVM_REGS       0
#define CRB_KVM_SREGS      1
#define CRB_KVM_FPU        2
#define CRB_KVM_XSAVE      3
#define CRB_KVM_XCRS       4
#define CRB_KVM_DEBUGREGS  5
#define CRB_KVM_LAPIC      6
#define CRB_KVM_MP_STATE   7
#define CRB_KVM_EVENTS     8
#define CRB_KVM_MSRS       9  // struct kvm_msrs and its entries; get fills in those that are there
#define CRB_KVM_CPUID      10 // struct kvm_cpuid2 and its entries; only set
#define CRB_KVM_CPUID_SIZE 40 // of an entry, after 8 bytes of header
int crb_kvm_get_group(crb_kvm_vcpu *vcpu, int group, void *buffer, size_t size);
int crb_kvm_set_group(crb_kvm_vcpu *vcpu, int group, const void *buffer, size_t size);
// struct kvm_cpuid2 of what the host can give a guest; the number of entries.
int crb_kvm_supported_cpuid(crb_kvm_vm *vm, void *buffer, size_t size);
// The MSRs that can be got or set here: fills up to `count` indices and gives how many there are.
int crb_kvm_msr_list(crb_kvm_vm *vm, uint32_t *indices, uint32_t count);
// The frequency of a vCPU's TSC, kHz.
int crb_kvm_get_tsc_khz(crb_kvm_vcpu *vcpu);
int crb_kvm_set_tsc_khz(crb_kvm_vcpu *vcpu, uint32_t khz);

// Registers one by one (KVM_GET_ONE_REG), where vCPUs have them so: arm64, riscv64. `size` is that
// in `id`; -EINVAL for another one.
int crb_kvm_get_register(crb_kvm_vcpu *vcpu, uint64_t id, void *buffer, size_t size);
int crb_kvm_set_register(crb_kvm_vcpu *vcpu, uint64_t id, const void *buffer, size_t size);
// Fills up to `count` ids of those a vCPU has, and gives how many there are.
int crb_kvm_register_list(crb_kvm_vcpu *vcpu, uint64_t *ids, uint32_t count);

// arm64: the kernel's interrupt controller, before any vCPU; `lines` of them are shared. Gives its
// version: 3, or 2 where the host has no other; `cpu_interface` is that of version 2.
int crb_kvm_gic_create(crb_kvm_vm *vm, uint64_t distributor, uint64_t redistributors,
                       uint64_t cpu_interface, uint32_t lines);
// After the last vCPU.
int crb_kvm_gic_start(crb_kvm_vm *vm);
// Version 3's translator of messages, before any vCPU.
int crb_kvm_its_create(crb_kvm_vm *vm, uint64_t address);
// One of its registers, in a KVM_DEV_ARM_VGIC_GRP_* (arm-vgic-v3.rst, arm-vgic-its.rst): 32 bits,
// or 64 of CPU_SYSREGS and ITS_REGS. Or, of CTRL, something that it does, where the value is
// nothing.
int crb_kvm_gic_get(crb_kvm_vm *vm, uint32_t group, uint64_t attribute, uint64_t *value);
int crb_kvm_gic_set(crb_kvm_vm *vm, uint32_t group, uint64_t attribute, uint64_t value);
// The CPU as the host has it, with PSCI; one that is off waits for CPU_ON.
int crb_kvm_arm_init(crb_kvm_vcpu *vcpu, bool off);

// riscv64, where KVM has no interrupt controller: our PLIC (rv64.h), served in the run loop,
// context n being vCPU n's. Before any vCPU; lines are its sources.
int crb_kvm_plic_create(crb_kvm_vm *vm, uint64_t address);
// A virtio-mmio slot's InterruptStatus is the level of `source`.
int crb_kvm_plic_slot(crb_kvm_vm *vm, uint32_t slot, uint32_t source);
// As crb_machine_get_plic and crb_machine_set_plic: CRB_PLIC_STATE_SIZE bytes.
int crb_kvm_plic_get(crb_kvm_vm *vm, uint8_t *state);
int crb_kvm_plic_set(crb_kvm_vm *vm, const uint8_t *state);
// Tells vCPU `index` its external interrupt's level again, after its registers were set.
int crb_kvm_plic_redrive(crb_kvm_vm *vm, uint32_t index);

#endif
