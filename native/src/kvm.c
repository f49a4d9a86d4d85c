// Virtual machines by /dev/kvm. See kvm.h; the ioctls: Linux, Documentation/virt/kvm/api.rst.
#include "kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int checked(int result) {
    return result < 0 ? -errno : result;
}

// What every host that is supported has: Linux 4.13 and newer.
static const int needed[] = {KVM_CAP_USER_MEMORY, KVM_CAP_IOEVENTFD, KVM_CAP_IRQFD,
                             KVM_CAP_IMMEDIATE_EXIT};

// ---- Cancelling: a signal gets a thread out of KVM_RUN, immediate_exit keeps it from going in.

static void ignore(int number) {
    (void)number;
}

static int kick_signal(void) {
    return SIGRTMIN + 3;
}

static void install_kick(void) {
    struct sigaction action = {.sa_handler = ignore, .sa_flags = SA_RESTART};
    sigaction(kick_signal(), &action, NULL);
}

void crb_kvm_cancel(crb_kvm_vcpu *vcpu) {
    atomic_store(&vcpu->cancel, true);
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    const pid_t thread = atomic_load(&vcpu->thread);
    if (thread != 0) syscall(SYS_tgkill, getpid(), thread, kick_signal());
}

// ---- The VM

static int open_vm(crb_kvm_vm *vm, int irqchip, int *stage, int *missing) {
    *stage = CRB_KVM_STAGE_OPEN;
    vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (vm->kvm < 0) return -errno;
    *stage = CRB_KVM_STAGE_VERSION;
    if (ioctl(vm->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) return -ENOTSUP;
    *stage = CRB_KVM_STAGE_CAPABILITY;
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        *missing = needed[i];
        if (ioctl(vm->kvm, KVM_CHECK_EXTENSION, needed[i]) <= 0) return -ENOTSUP;
    }
    *stage = CRB_KVM_STAGE_VM;
    do {
        vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, crb_kvm_vm_type(vm->kvm));
    } while (vm->fd < 0 && errno == EINTR);
    if (vm->fd < 0) return -errno;
    *stage = CRB_KVM_STAGE_IRQCHIP;
    return crb_kvm_create_irqchip(vm, irqchip);
}

int crb_kvm_create(crb_kvm_vm **made, int irqchip, int *stage, int *missing) {
    crb_kvm_vm *vm = calloc(1, sizeof *vm);
    if (vm == NULL) return -ENOMEM;
    vm->kvm = vm->fd = vm->gic = vm->its = -1;
    install_kick();
    const int status = open_vm(vm, irqchip, stage, missing);
    if (status < 0) {
        crb_kvm_close(vm);
        return status;
    }
    *made = vm;
    return 0;
}

void crb_kvm_close(crb_kvm_vm *vm) {
    if (vm->plic != NULL) crb_kvm_plic_free(vm->plic);
    for (uint32_t i = 0; i < vm->n_vcpus; i++) {
        munmap(vm->vcpus[i]->run, vm->vcpus[i]->run_size);
        close(vm->vcpus[i]->fd);
        free(vm->vcpus[i]);
    }
    if (vm->its >= 0) close(vm->its);
    if (vm->gic >= 0) close(vm->gic);
    if (vm->fd >= 0) close(vm->fd);
    if (vm->kvm >= 0) close(vm->kvm);
    free(vm);
}

int crb_kvm_capability(crb_kvm_vm *vm, int capability) {
    return checked(ioctl(vm->fd, KVM_CHECK_EXTENSION, capability));
}

int crb_kvm_set_memory(crb_kvm_vm *vm, const crb_memory *memory, bool log_dirty) {
    for (uint32_t i = 0; i < memory->n_regions; i++)
        if (memory->regions[i].base != NULL) return -ENOTSUP;
    for (uint32_t i = 0; i < memory->n_regions; i++) {
        struct kvm_userspace_memory_region slot = {.slot = i,
                                                   .flags = log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0,
                                                   .guest_phys_addr = memory->regions[i].gpa,
                                                   .memory_size = memory->regions[i].size,
                                                   .userspace_addr =
                                                       (uintptr_t)memory->regions[i].overlay};
        if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &slot) < 0) return -errno;
    }
    return 0;
}

int crb_kvm_dirty_log(crb_kvm_vm *vm, uint32_t slot, uint8_t *bitmap, size_t size) {
    (void)size; // checked by the face against the region's size
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bitmap};
    return checked(ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log));
}

int crb_kvm_doorbell(crb_kvm_vm *vm, uint64_t address, uint32_t size, uint64_t value, int fd,
                     bool port, bool assign) {
    struct kvm_ioeventfd bell = {.datamatch = value, .addr = address, .len = size, .fd = fd};
    bell.flags = KVM_IOEVENTFD_FLAG_DATAMATCH | (port ? KVM_IOEVENTFD_FLAG_PIO : 0) |
                 (assign ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN);
    return checked(ioctl(vm->fd, KVM_IOEVENTFD, &bell));
}

int crb_kvm_irqfd(crb_kvm_vm *vm, uint32_t gsi, int fd, bool assign) {
    if (vm->plic != NULL) return crb_kvm_plic_call(vm->plic, gsi, fd, assign);
    struct kvm_irqfd irqfd = {
        .fd = (uint32_t)fd, .gsi = gsi, .flags = assign ? 0 : KVM_IRQFD_FLAG_DEASSIGN};
    return checked(ioctl(vm->fd, KVM_IRQFD, &irqfd));
}

int crb_kvm_set_line(crb_kvm_vm *vm, uint32_t gsi, bool level) {
    if (vm->plic != NULL) return crb_kvm_plic_line(vm->plic, gsi, level);
    struct kvm_irq_level line = {.irq = gsi, .level = level};
    return checked(ioctl(vm->fd, KVM_IRQ_LINE, &line));
}

int crb_kvm_signal_msi(crb_kvm_vm *vm, const crb_kvm_message *message) {
    struct kvm_msi msi = {.address_lo = (uint32_t)message->address,
                          .address_hi = (uint32_t)(message->address >> 32),
                          .data = message->data,
                          .flags = message->device != 0 ? KVM_MSI_VALID_DEVID : 0,
                          .devid = message->device};
    return checked(ioctl(vm->fd, KVM_SIGNAL_MSI, &msi));
}

static void route_message(struct kvm_irq_routing_entry *entry, const crb_kvm_message *message) {
    entry->type = KVM_IRQ_ROUTING_MSI;
    entry->flags = message->device != 0 ? KVM_MSI_VALID_DEVID : 0;
    entry->u.msi.address_lo = (uint32_t)message->address;
    entry->u.msi.address_hi = (uint32_t)(message->address >> 32);
    entry->u.msi.data = message->data;
    entry->u.msi.devid = message->device;
}

int crb_kvm_set_routes(crb_kvm_vm *vm, uint32_t pins, const crb_kvm_message *messages,
                       uint32_t count) {
    const size_t size =
        sizeof(struct kvm_irq_routing) + (pins + count) * sizeof(struct kvm_irq_routing_entry);
    struct kvm_irq_routing *table = calloc(1, size);
    if (table == NULL) return -ENOMEM;
    for (uint32_t i = 0; i < pins; i++) {
        struct kvm_irq_routing_entry *entry = &table->entries[table->nr++];
        entry->gsi = entry->u.irqchip.pin = i;
        entry->type = KVM_IRQ_ROUTING_IRQCHIP;
#if defined(__x86_64__)
        entry->u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
#endif
    }
    for (uint32_t i = 0; i < count; i++) {
        if (messages[i].address == 0) continue;
        struct kvm_irq_routing_entry *entry = &table->entries[table->nr++];
        entry->gsi = pins + i;
        route_message(entry, &messages[i]);
    }
    const int status = checked(ioctl(vm->fd, KVM_SET_GSI_ROUTING, table));
    free(table);
    return status;
}

int crb_kvm_get_clock(crb_kvm_vm *vm, uint64_t *ns) {
    struct kvm_clock_data data = {0};
    if (ioctl(vm->fd, KVM_GET_CLOCK, &data) < 0) return -errno;
    *ns = data.clock;
    return 0;
}

int crb_kvm_set_clock(crb_kvm_vm *vm, uint64_t ns) {
    struct kvm_clock_data data = {.clock = ns};
    return checked(ioctl(vm->fd, KVM_SET_CLOCK, &data));
}

// ---- Interrupt registers of virtio-mmio slots

int crb_kvm_add_slot(crb_kvm_vm *vm, uint64_t status, uint64_t acknowledge) {
    if (vm->n_slots == CRB_KVM_MAX_SLOTS) return -ENOSPC;
    vm->slots[vm->n_slots].status = status;
    vm->slots[vm->n_slots].acknowledge = acknowledge;
    return (int)vm->n_slots++;
}

static uint32_t set_bits(crb_kvm_vm *vm, crb_kvm_slot *slot, uint32_t bits) {
    const uint32_t now = atomic_fetch_or(&slot->bits, bits) | bits;
    if (slot->source != 0) crb_kvm_plic_slot_changed(vm->plic, slot);
    return now;
}

static uint32_t clear_bits(crb_kvm_vm *vm, crb_kvm_slot *slot, uint32_t bits) {
    const uint32_t now = atomic_fetch_and(&slot->bits, ~bits) & ~bits;
    if (slot->source != 0) crb_kvm_plic_slot_changed(vm->plic, slot);
    return now;
}

uint32_t crb_kvm_slot_set(crb_kvm_vm *vm, uint32_t slot, uint32_t bits) {
    return set_bits(vm, &vm->slots[slot], bits);
}

uint32_t crb_kvm_slot_clear(crb_kvm_vm *vm, uint32_t slot, uint32_t bits) {
    return clear_bits(vm, &vm->slots[slot], bits);
}

// True when the access was to one of them, or to the PLIC, and is done.
static bool serve_interrupts(crb_kvm_vcpu *vcpu) {
    struct kvm_run *run = vcpu->run;
    crb_kvm_vm *vm = vcpu->vm;
    if (run->mmio.len != 4) return false;
    for (uint32_t i = 0; i < vm->n_slots; i++) {
        crb_kvm_slot *slot = &vm->slots[i];
        uint32_t value;
        if (!run->mmio.is_write && run->mmio.phys_addr == slot->status) {
            value = atomic_load(&slot->bits) | (slot->source == 0);
            memcpy(run->mmio.data, &value, sizeof value);
        } else if (run->mmio.is_write && run->mmio.phys_addr == slot->acknowledge) {
            memcpy(&value, run->mmio.data, sizeof value);
            clear_bits(vm, slot, value);
        } else {
            continue;
        }
        vcpu->counters.interrupt_registers++;
        return true;
    }
    if (vm->plic == NULL || !crb_kvm_plic_serve(vm->plic, run)) return false;
    vcpu->counters.interrupt_registers++;
    return true;
}

// ---- vCPUs

int crb_kvm_create_vcpu(crb_kvm_vm *vm, uint32_t index, crb_kvm_vcpu **made) {
    if (vm->n_vcpus == CRB_KVM_MAX_VCPUS) return -ENOSPC;
    const int run_size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (run_size < (int)sizeof(struct kvm_run)) return run_size < 0 ? -errno : -ENOTSUP;
    const int fd = ioctl(vm->fd, KVM_CREATE_VCPU, index);
    if (fd < 0) return -errno;
    void *run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    crb_kvm_vcpu *vcpu = run == MAP_FAILED ? NULL : calloc(1, sizeof *vcpu);
    if (vcpu == NULL) {
        if (run != MAP_FAILED) munmap(run, (size_t)run_size);
        close(fd);
        return -ENOMEM;
    }
    vcpu->vm = vm;
    vcpu->fd = fd;
    vcpu->run = run;
    vcpu->run_size = (size_t)run_size;
    vm->vcpus[vm->n_vcpus++] = vcpu;
    *made = vcpu;
    return 0;
}

// KVM_PRE_FAULT_MEMORY (Linux, Documentation/virt/kvm/api.rst), which headers before Linux 6.12
// have not.
typedef struct pre_fault {
    uint64_t address;
    uint64_t size;
    uint64_t flags;
    uint64_t padding[5];
} pre_fault;
#define PRE_FAULT     _IOWR(KVMIO, 0xd5, pre_fault)
#define CAP_PRE_FAULT 236

int crb_kvm_prefault(crb_kvm_vcpu *vcpu, uint64_t address, uint64_t size) {
    pre_fault range = {.address = address, .size = size}; // the kernel moves it on
    if (ioctl(vcpu->vm->fd, KVM_CHECK_EXTENSION, CAP_PRE_FAULT) <= 0) return 0;
    while (range.size != 0 && ioctl(vcpu->fd, PRE_FAULT, &range) < 0) {
        if (errno == EOPNOTSUPP) return 0; // without two levels of page tables
        if (errno != EINTR && errno != EAGAIN) return -errno;
    }
    return 0;
}

void crb_kvm_get_counters(const crb_kvm_vcpu *vcpu, crb_kvm_counters *counters) {
    *counters = vcpu->counters;
}

// ---- Registers one by one

#define ONE_REG_SIZE_SHIFT 52

static int one_register(crb_kvm_vcpu *vcpu, unsigned long request, uint64_t id, void *buffer,
                        size_t size) {
    if (size != (size_t)1 << (id >> ONE_REG_SIZE_SHIFT & 0xf)) return -EINVAL;
    struct kvm_one_reg one = {.id = id, .addr = (uintptr_t)buffer};
    return checked(ioctl(vcpu->fd, request, &one));
}

int crb_kvm_get_register(crb_kvm_vcpu *vcpu, uint64_t id, void *buffer, size_t size) {
    return one_register(vcpu, KVM_GET_ONE_REG, id, buffer, size);
}

int crb_kvm_set_register(crb_kvm_vcpu *vcpu, uint64_t id, const void *buffer, size_t size) {
    return one_register(vcpu, KVM_SET_ONE_REG, id, (void *)(uintptr_t)buffer, size);
}

int crb_kvm_register_list(crb_kvm_vcpu *vcpu, uint64_t *ids, uint32_t count) {
    struct kvm_reg_list *list = calloc(1, sizeof *list + count * sizeof list->reg[0]);
    if (list == NULL) return -ENOMEM;
    list->n = count;
    int status = checked(ioctl(vcpu->fd, KVM_GET_REG_LIST, list));
    if (status == 0) memcpy(ids, list->reg, list->n * sizeof list->reg[0]);
    if (status == 0 || status == -E2BIG) status = (int)list->n;
    free(list);
    return status;
}

// ---- Exits

// KVM_EXIT_MEMORY_FAULT and where its address is, which headers before Linux 6.8 have not.
#define EXIT_MEMORY_FAULT 39
#define MEMORY_FAULT_GPA  8

static uint8_t *port_data(crb_kvm_vcpu *vcpu) {
    struct kvm_run *run = vcpu->run;
    return (uint8_t *)run + run->io.data_offset + (size_t)vcpu->element * run->io.size;
}

// One access of those that a port instruction makes.
static int port_exit(crb_kvm_vcpu *vcpu, crb_kvm_exit *stop) {
    struct kvm_run *run = vcpu->run;
    const bool write = run->io.direction == KVM_EXIT_IO_OUT;
    stop->reason = write ? CRB_KVM_EXIT_PORT_WRITE : CRB_KVM_EXIT_PORT_READ;
    stop->address = run->io.port;
    stop->size = run->io.size;
    stop->data = 0;
    if (write) memcpy(&stop->data, port_data(vcpu), run->io.size);
    vcpu->pending = (uint32_t)stop->reason;
    vcpu->counters.ports++;
    return 0;
}

static int mmio_exit(crb_kvm_vcpu *vcpu, crb_kvm_exit *stop) {
    struct kvm_run *run = vcpu->run;
    stop->reason = run->mmio.is_write ? CRB_KVM_EXIT_MMIO_WRITE : CRB_KVM_EXIT_MMIO_READ;
    stop->address = run->mmio.phys_addr;
    stop->size = run->mmio.len;
    stop->data = 0;
    if (run->mmio.is_write) memcpy(&stop->data, run->mmio.data, run->mmio.len);
    vcpu->pending = (uint32_t)stop->reason;
    vcpu->counters.mmio++;
    return 0;
}

// A call to riscv64's firmware: extension in a7, function in a6 (RISC-V SBI 2.0).
static int sbi_exit(crb_kvm_vcpu *vcpu, crb_kvm_exit *stop) {
    const struct kvm_run *run = vcpu->run;
    stop->reason = CRB_KVM_EXIT_SBI;
    for (uint32_t i = 0; i < 6; i++)
        stop->sbi[i] = run->riscv_sbi.args[i];
    stop->sbi[6] = run->riscv_sbi.function_id;
    stop->sbi[7] = run->riscv_sbi.extension_id;
    vcpu->pending = CRB_KVM_EXIT_SBI;
    vcpu->counters.other++;
    return 0;
}

// Gives the last exit its answer. True when a string instruction has one more access to make.
static bool answer(crb_kvm_vcpu *vcpu, uint64_t data, uint64_t extra) {
    struct kvm_run *run = vcpu->run;
    const uint32_t pending = vcpu->pending;
    vcpu->pending = 0;
    if (pending == CRB_KVM_EXIT_MMIO_READ) memcpy(run->mmio.data, &data, run->mmio.len);
    if (pending == CRB_KVM_EXIT_SBI) {
        run->riscv_sbi.ret[0] = extra;
        run->riscv_sbi.ret[1] = data;
    }
    if (pending == CRB_KVM_EXIT_PORT_READ) memcpy(port_data(vcpu), &data, run->io.size);
    if (pending != CRB_KVM_EXIT_PORT_READ && pending != CRB_KVM_EXIT_PORT_WRITE) return false;
    return ++vcpu->element < run->io.count;
}

static int internal_exit(const struct kvm_run *run, crb_kvm_exit *stop) {
    stop->reason = CRB_KVM_EXIT_INTERNAL;
    stop->data = run->internal.suberror;
    if (run->internal.ndata > 0) stop->extra = run->internal.data[0];
    if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION) return 0;
    stop->reason = CRB_KVM_EXIT_EMULATION;
    stop->extra = 0;
#if defined(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
    if (run->emulation_failure.ndata >= 3 &&
        run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) {
        stop->size = run->emulation_failure.insn_size;
        if (stop->size > sizeof run->emulation_failure.insn_bytes)
            stop->size = sizeof run->emulation_failure.insn_bytes;
        memcpy(stop->bytes, run->emulation_failure.insn_bytes, stop->size);
    }
#endif
    return 0;
}

static int final_exit(const struct kvm_run *run, crb_kvm_exit *stop) {
    switch (run->exit_reason) {
    case KVM_EXIT_HLT:
        stop->reason = CRB_KVM_EXIT_HALT;
        return 0;
    case KVM_EXIT_SHUTDOWN:
        stop->reason = CRB_KVM_EXIT_SHUTDOWN;
        return 0;
    case KVM_EXIT_INTERNAL_ERROR:
        return internal_exit(run, stop);
    case KVM_EXIT_SYSTEM_EVENT:
        stop->reason = CRB_KVM_EXIT_SYSTEM;
        stop->data = run->system_event.type;
        return 0;
    case KVM_EXIT_FAIL_ENTRY:
        stop->reason = CRB_KVM_EXIT_ENTRY;
        stop->data = run->fail_entry.hardware_entry_failure_reason;
        return 0;
    case KVM_EXIT_IOAPIC_EOI:
        stop->reason = CRB_KVM_EXIT_EOI;
        stop->data = run->eoi.vector;
        return 0;
    default:
        stop->reason = CRB_KVM_EXIT_OTHER;
        stop->data = run->exit_reason;
        return 0;
    }
}

// 1: nothing for the caller, go on.
static int take_exit(crb_kvm_vcpu *vcpu, crb_kvm_exit *stop) {
    switch (vcpu->run->exit_reason) {
    case KVM_EXIT_MMIO:
        return serve_interrupts(vcpu) ? 1 : mmio_exit(vcpu, stop);
    case KVM_EXIT_IO:
        vcpu->element = 0;
        return port_exit(vcpu, stop);
    case KVM_EXIT_RISCV_SBI:
        return sbi_exit(vcpu, stop);
    case KVM_EXIT_INTR:
        return 1;
    default:
        vcpu->counters.other++;
        return final_exit(vcpu->run, stop);
    }
}

// An error of KVM_RUN that the guest does not survive.
static int final_error(const struct kvm_run *run, crb_kvm_exit *stop, int error) {
    if (error == EFAULT || error == EHWPOISON) {
        stop->reason = CRB_KVM_EXIT_MEMORY;
        stop->data = (uint64_t)error;
        stop->extra = run->exit_reason == EXIT_MEMORY_FAULT;
        if (stop->extra)
            memcpy(&stop->address, run->padding + MEMORY_FAULT_GPA, sizeof stop->address);
        return 0;
    }
    // arm64: a load or store that says nothing of itself; riscv64: code where nothing is
    if (error == ENOSYS || error == EOPNOTSUPP) {
        stop->reason = CRB_KVM_EXIT_EMULATION;
        return 0;
    }
    return -error;
}

int crb_kvm_decode(const void *run, size_t size, int error, crb_kvm_exit *stop) {
    struct kvm_run whole = {0};
    memcpy(&whole, run, size < sizeof whole ? size : sizeof whole);
    memset(stop, 0, sizeof *stop);
    if (error != 0) return final_error(&whole, stop, error);
    switch (whole.exit_reason) {
    case KVM_EXIT_MMIO:
    case KVM_EXIT_IO:
    case KVM_EXIT_RISCV_SBI:
    case KVM_EXIT_INTR:
        return -EINVAL;
    default:
        return final_exit(&whole, stop);
    }
}

// KVM_RUN failed with `error`. 1: go on.
static int take_error(crb_kvm_vcpu *vcpu, crb_kvm_exit *stop, int error) {
    if (error == EAGAIN) return 1; // a vCPU that is not started yet was woken
    if (error != EINTR) return final_error(vcpu->run, stop, error);
    // In this order: a cancel after the first line is seen by the second or by the next KVM_RUN.
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    if (!atomic_exchange(&vcpu->cancel, false)) return 1;
    vcpu->counters.canceled++;
    stop->reason = CRB_KVM_EXIT_CANCELED;
    return 0;
}

int crb_kvm_run(crb_kvm_vcpu *vcpu, crb_kvm_exit *stop) {
    const bool more = answer(vcpu, stop->data, stop->extra);
    memset(stop, 0, sizeof *stop);
    if (more) return port_exit(vcpu, stop);
    atomic_store(&vcpu->thread, (pid_t)syscall(SYS_gettid));
    int status;
    do {
        vcpu->counters.entries++;
        const int result = ioctl(vcpu->fd, KVM_RUN, 0);
        status = result < 0 ? take_error(vcpu, stop, errno) : take_exit(vcpu, stop);
    } while (status > 0);
    atomic_store(&vcpu->thread, 0);
    return status;
}
