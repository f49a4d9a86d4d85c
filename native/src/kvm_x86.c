// x86's part of KVM: register groups as bytes, CPUID, interrupt controllers. See kvm.h.
#include "kvm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#if defined(__x86_64__)
// Three pages and one page that KVM on Intel CPUs uses itself, below the BIOS.
#define TSS_ADDRESS      0xfffbd000u
#define IDENTITY_ADDRESS 0xfffbc000ull
#define IOAPIC_PINS      24

int crb_kvm_create_irqchip(crb_kvm_vm *vm, int irqchip) {
    uint64_t identity = IDENTITY_ADDRESS;
    if (ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0) return -errno;
    if (ioctl(vm->fd, KVM_SET_TSS_ADDR, (unsigned long)TSS_ADDRESS) < 0) return -errno;
    if (irqchip == CRB_KVM_IRQCHIP_NONE) return 0;
    if (irqchip == CRB_KVM_IRQCHIP_KERNEL)
        return ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0) < 0 ? -errno : 0;
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {IOAPIC_PINS}};
    return ioctl(vm->fd, KVM_ENABLE_CAP, &split) < 0 ? -errno : 0;
}

// PICs and IOAPIC, in the order of their numbers.
#define CHIPS (KVM_IRQCHIP_IOAPIC + 1)
_Static_assert(sizeof(struct kvm_irqchip) * CHIPS == CRB_KVM_IRQCHIP_SIZE, "as kvm.h says");

int crb_kvm_get_irqchip(crb_kvm_vm *vm, uint8_t *state, size_t size) {
    if (size != CRB_KVM_IRQCHIP_SIZE) return -EINVAL;
    for (uint32_t number = 0; number < CHIPS; number++) {
        struct kvm_irqchip chip = {.chip_id = number};
        if (ioctl(vm->fd, KVM_GET_IRQCHIP, &chip) < 0) return -errno;
        memcpy(state + number * sizeof chip, &chip, sizeof chip);
    }
    return 0;
}

int crb_kvm_set_irqchip(crb_kvm_vm *vm, const uint8_t *state, size_t size) {
    if (size != CRB_KVM_IRQCHIP_SIZE) return -EINVAL;
    for (uint32_t number = 0; number < CHIPS; number++) {
        struct kvm_irqchip chip;
        memcpy(&chip, state + number * sizeof chip, sizeof chip);
        if (chip.chip_id != number) return -EINVAL;
        if (ioctl(vm->fd, KVM_SET_IRQCHIP, &chip) < 0) return -errno;
    }
    return 0;
}

typedef struct group {
    unsigned long get;
    unsigned long set;
    size_t size;  // of the header where there are entries
    size_t entry; // bytes of an entry; 0: no entries
} group;

static const group groups[] = {
    [CRB_KVM_REGS] = {KVM_GET_REGS, KVM_SET_REGS, sizeof(struct kvm_regs), 0},
    [CRB_KVM_SREGS] = {KVM_GET_SREGS, KVM_SET_SREGS, sizeof(struct kvm_sregs), 0},
    [CRB_KVM_FPU] = {KVM_GET_FPU, KVM_SET_FPU, sizeof(struct kvm_fpu), 0},
    [CRB_KVM_XSAVE] = {KVM_GET_XSAVE, KVM_SET_XSAVE, 4096, 0},
    [CRB_KVM_XCRS] = {KVM_GET_XCRS, KVM_SET_XCRS, sizeof(struct kvm_xcrs), 0},
    [CRB_KVM_DEBUGREGS] = {KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, sizeof(struct kvm_debugregs), 0},
    [CRB_KVM_LAPIC] = {KVM_GET_LAPIC, KVM_SET_LAPIC, sizeof(struct kvm_lapic_state), 0},
    [CRB_KVM_MP_STATE] = {KVM_GET_MP_STATE, KVM_SET_MP_STATE, sizeof(struct kvm_mp_state), 0},
    [CRB_KVM_EVENTS] = {KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, sizeof(struct kvm_vcpu_events),
                        0},
    [CRB_KVM_MSRS] = {KVM_GET_MSRS, KVM_SET_MSRS, sizeof(struct kvm_msrs),
                      sizeof(struct kvm_msr_entry)},
    [CRB_KVM_CPUID] = {0, KVM_SET_CPUID2, sizeof(struct kvm_cpuid2),
                       sizeof(struct kvm_cpuid_entry2)},
};

_Static_assert(sizeof(struct kvm_cpuid_entry2) == CRB_KVM_CPUID_SIZE, "as kvm.h says");
_Static_assert(sizeof(struct kvm_cpuid2) == 8, "as kvm.h says");

// The group, when `size` bytes are what it has; both headers begin with the number of entries.
static const group *find(int number, const void *buffer, size_t size) {
    if (number < 0 || (size_t)number >= sizeof groups / sizeof *groups) return NULL;
    const group *found = &groups[number];
    if (found->entry == 0) return size == found->size ? found : NULL;
    uint32_t entries;
    if (size < found->size) return NULL;
    memcpy(&entries, buffer, sizeof entries);
    return size == found->size + entries * found->entry ? found : NULL;
}

int crb_kvm_get_group(crb_kvm_vcpu *vcpu, int number, void *buffer, size_t size) {
    const group *found = find(number, buffer, size);
    if (found == NULL || found->get == 0) return -EINVAL;
    const int result = ioctl(vcpu->fd, found->get, buffer);
    return result < 0 ? -errno : result;
}

// KVM_SET_MSRS stops at the first it refuses, and gives how many it took.
int crb_kvm_set_group(crb_kvm_vcpu *vcpu, int number, const void *buffer, size_t size) {
    const group *found = find(number, buffer, size);
    if (found == NULL) return -EINVAL;
    const int result = ioctl(vcpu->fd, found->set, buffer);
    return result < 0 ? -errno : result;
}

int crb_kvm_supported_cpuid(crb_kvm_vm *vm, void *buffer, size_t size) {
    struct kvm_cpuid2 *table = buffer;
    if (size < sizeof *table) return -EINVAL;
    table->nent = (uint32_t)((size - sizeof *table) / sizeof table->entries[0]);
    if (ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, table) < 0) return -errno;
    return (int)table->nent;
}

int crb_kvm_msr_list(crb_kvm_vm *vm, uint32_t *indices, uint32_t count) {
    struct kvm_msr_list *list = malloc(sizeof *list + count * sizeof *indices);
    if (list == NULL) return -ENOMEM;
    list->nmsrs = count;
    int status = ioctl(vm->kvm, KVM_GET_MSR_INDEX_LIST, list) < 0 ? -errno : 0;
    if (status == 0) memcpy(indices, list->indices, list->nmsrs * sizeof *indices);
    if (status == 0 || status == -E2BIG) status = (int)list->nmsrs;
    free(list);
    return status;
}

int crb_kvm_get_tsc_khz(crb_kvm_vcpu *vcpu) {
    const int khz = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0);
    return khz < 0 ? -errno : khz;
}

int crb_kvm_set_tsc_khz(crb_kvm_vcpu *vcpu, uint32_t khz) {
    return ioctl(vcpu->fd, KVM_SET_TSC_KHZ, (unsigned long)khz) < 0 ? -errno : 0;
}
#else
int crb_kvm_create_irqchip(crb_kvm_vm *vm, int irqchip) {
    (void)vm;
    return irqchip == CRB_KVM_IRQCHIP_NONE ? 0 : -ENOSYS;
}

int crb_kvm_get_irqchip(crb_kvm_vm *vm, uint8_t *state, size_t size) {
    (void)vm, (void)state, (void)size;
    return -ENOSYS;
}

int crb_kvm_set_irqchip(crb_kvm_vm *vm, const uint8_t *state, size_t size) {
    (void)vm, (void)state, (void)size;
    return -ENOSYS;
}

int crb_kvm_get_group(crb_kvm_vcpu *vcpu, int number, void *buffer, size_t size) {
    if (number != CRB_KVM_MP_STATE || size != sizeof(struct kvm_mp_state)) return -EINVAL;
    return ioctl(vcpu->fd, KVM_GET_MP_STATE, buffer) < 0 ? -errno : 0;
}

int crb_kvm_set_group(crb_kvm_vcpu *vcpu, int number, const void *buffer, size_t size) {
    if (number != CRB_KVM_MP_STATE || size != sizeof(struct kvm_mp_state)) return -EINVAL;
    return ioctl(vcpu->fd, KVM_SET_MP_STATE, buffer) < 0 ? -errno : 0;
}

int crb_kvm_supported_cpuid(crb_kvm_vm *vm, void *buffer, size_t size) {
    (void)vm, (void)buffer, (void)size;
    return -ENOSYS;
}

int crb_kvm_msr_list(crb_kvm_vm *vm, uint32_t *indices, uint32_t count) {
    (void)vm, (void)indices, (void)count;
    return -ENOSYS;
}

int crb_kvm_get_tsc_khz(crb_kvm_vcpu *vcpu) {
    (void)vcpu;
    return -ENOSYS;
}

int crb_kvm_set_tsc_khz(crb_kvm_vcpu *vcpu, uint32_t khz) {
    (void)vcpu, (void)khz;
    return -ENOSYS;
}
#endif
