// arm64's part of KVM: the kernel's GIC, and vCPUs like the host's. See kvm.h; Linux,
// Documentation/virt/kvm/devices/arm-vgic*.rst.
#include "kvm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#if defined(__aarch64__)
#define IPA_BITS    40
#define PRIVATE     32 // interrupts before the shared ones
#define LINES_ALIGN 32

unsigned long crb_kvm_vm_type(int kvm) {
    const int bits = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE);
    return bits > 0 && bits < IPA_BITS ? (unsigned long)bits : 0;
}

static int device_set(int device, uint32_t group, uint64_t attribute, void *value) {
    struct kvm_device_attr set = {.group = group, .attr = attribute, .addr = (uintptr_t)value};
    return ioctl(device, KVM_SET_DEVICE_ATTR, &set) < 0 ? -errno : 0;
}

static int gic_set(crb_kvm_vm *vm, uint32_t group, uint64_t attribute, void *value) {
    return device_set(vm->gic, group, attribute, value);
}

static int open_device(crb_kvm_vm *vm, uint32_t type, int *fd) {
    struct kvm_create_device device = {.type = type};
    if (ioctl(vm->fd, KVM_CREATE_DEVICE, &device) < 0) return -errno;
    *fd = (int)device.fd;
    return 0;
}

static int place_gic(crb_kvm_vm *vm, uint32_t distributor_type, uint64_t distributor,
                     uint32_t other_type, uint64_t other) {
    const int status = gic_set(vm, KVM_DEV_ARM_VGIC_GRP_ADDR, distributor_type, &distributor);
    return status < 0 ? status : gic_set(vm, KVM_DEV_ARM_VGIC_GRP_ADDR, other_type, &other);
}

int crb_kvm_gic_create(crb_kvm_vm *vm, uint64_t distributor, uint64_t redistributors,
                       uint64_t cpu_interface, uint32_t lines) {
    int version = 3, status;
    if (open_device(vm, KVM_DEV_TYPE_ARM_VGIC_V3, &vm->gic) == 0) {
        status = place_gic(vm, KVM_VGIC_V3_ADDR_TYPE_DIST, distributor,
                           KVM_VGIC_V3_ADDR_TYPE_REDIST, redistributors);
    } else {
        version = 2;
        status = open_device(vm, KVM_DEV_TYPE_ARM_VGIC_V2, &vm->gic);
        if (status == 0)
            status = place_gic(vm, KVM_VGIC_V2_ADDR_TYPE_DIST, distributor,
                               KVM_VGIC_V2_ADDR_TYPE_CPU, cpu_interface);
    }
    uint32_t count = PRIVATE + (lines + LINES_ALIGN - 1) / LINES_ALIGN * LINES_ALIGN;
    if (status == 0) status = gic_set(vm, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &count);
    return status < 0 ? status : version;
}

int crb_kvm_gic_start(crb_kvm_vm *vm) {
    return gic_set(vm, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL);
}

int crb_kvm_its_create(crb_kvm_vm *vm, uint64_t address) {
    int status = open_device(vm, KVM_DEV_TYPE_ARM_VGIC_ITS, &vm->its);
    if (status == 0)
        status = device_set(vm->its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &address);
    return status < 0
               ? status
               : device_set(vm->its, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL);
}

static int owner_of(const crb_kvm_vm *vm, uint32_t group, uint64_t attribute) {
    const bool tables =
        group == KVM_DEV_ARM_VGIC_GRP_CTRL &&
        (attribute == KVM_DEV_ARM_ITS_SAVE_TABLES || attribute == KVM_DEV_ARM_ITS_RESTORE_TABLES);
    return tables || group == KVM_DEV_ARM_VGIC_GRP_ITS_REGS ? vm->its : vm->gic;
}

int crb_kvm_gic_get(crb_kvm_vm *vm, uint32_t group, uint64_t attribute, uint64_t *value) {
    *value = 0;
    struct kvm_device_attr get = {.group = group, .attr = attribute, .addr = (uintptr_t)value};
    return ioctl(owner_of(vm, group, attribute), KVM_GET_DEVICE_ATTR, &get) < 0 ? -errno : 0;
}

int crb_kvm_gic_set(crb_kvm_vm *vm, uint32_t group, uint64_t attribute, uint64_t value) {
    return device_set(owner_of(vm, group, attribute), group, attribute, &value);
}

int crb_kvm_arm_init(crb_kvm_vcpu *vcpu, bool off) {
    struct kvm_vcpu_init init;
    if (ioctl(vcpu->vm->fd, KVM_ARM_PREFERRED_TARGET, &init) < 0) return -errno;
    init.features[0] |= 1u << KVM_ARM_VCPU_PSCI_0_2;
    if (off) init.features[0] |= 1u << KVM_ARM_VCPU_POWER_OFF;
    return ioctl(vcpu->fd, KVM_ARM_VCPU_INIT, &init) < 0 ? -errno : 0;
}
#else
unsigned long crb_kvm_vm_type(int kvm) {
    (void)kvm;
    return 0;
}

int crb_kvm_gic_create(crb_kvm_vm *vm, uint64_t distributor, uint64_t redistributors,
                       uint64_t cpu_interface, uint32_t lines) {
    (void)vm, (void)distributor, (void)redistributors, (void)cpu_interface, (void)lines;
    return -ENOSYS;
}

int crb_kvm_gic_start(crb_kvm_vm *vm) {
    (void)vm;
    return -ENOSYS;
}

int crb_kvm_its_create(crb_kvm_vm *vm, uint64_t address) {
    (void)vm, (void)address;
    return -ENOSYS;
}

int crb_kvm_gic_get(crb_kvm_vm *vm, uint32_t group, uint64_t attribute, uint64_t *value) {
    (void)vm, (void)group, (void)attribute, (void)value;
    return -ENOSYS;
}

int crb_kvm_gic_set(crb_kvm_vm *vm, uint32_t group, uint64_t attribute, uint64_t value) {
    (void)vm, (void)group, (void)attribute, (void)value;
    return -ENOSYS;
}

int crb_kvm_arm_init(crb_kvm_vcpu *vcpu, bool off) {
    (void)vcpu, (void)off;
    return -ENOSYS;
}
#endif
