// Our PLIC for vCPUs of riscv64, whose kernel has none: its registers are served in the run loop,
// its contexts are vCPUs' external interrupts (KVM_INTERRUPT), and a thread waits for call
// eventfds. See kvm.h; Linux, Documentation/virt/kvm/api.rst.
#include "kvm.h"
#include "rv64/plic.h"

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

// Of riscv64's asm/kvm.h.
#define INTERRUPT_SET   0xffffffffu
#define INTERRUPT_UNSET 0xfffffffeu
#define MAX_CALL_FDS    256
#define MAX_EVENTS      16

typedef struct call_fd {
    uint32_t source;
    int fd;
} call_fd;

struct crb_kvm_plic {
    crb_kvm_vm *vm;
    uint64_t address;
    pthread_t thread;
    int epoll_fd;
    int stop_fd;
    pthread_mutex_t lock; // everything below
    crb_plic plic;
    bool driven[CRB_MAX_HARTS];
    call_fd calls[MAX_CALL_FDS];
    uint32_t n_calls;
};

// Another architecture's vCPUs, which tests make, refuse it.
static int tell(crb_kvm_plic *plic, uint32_t context) {
    struct kvm_interrupt interrupt = {.irq =
                                          plic->driven[context] ? INTERRUPT_SET : INTERRUPT_UNSET};
    return ioctl(plic->vm->vcpus[context]->fd, KVM_INTERRUPT, &interrupt) < 0 ? -errno : 0;
}

static void drive_vcpu(void *owner, uint32_t context, bool level) {
    crb_kvm_plic *plic = owner;
    if (plic->driven[context] == level) return;
    plic->driven[context] = level;
    tell(plic, context);
}

static void lock(crb_kvm_plic *plic) {
    pthread_mutex_lock(&plic->lock);
    const uint32_t count = plic->vm->n_vcpus;
    plic->plic.n_contexts = count < CRB_MAX_HARTS ? count : CRB_MAX_HARTS;
}

static void unlock(crb_kvm_plic *plic) {
    pthread_mutex_unlock(&plic->lock);
}

// ---- Lines

int crb_kvm_plic_line(crb_kvm_plic *plic, uint32_t source, bool level) {
    lock(plic);
    crb_plic_set_level(&plic->plic, source, level);
    unlock(plic);
    return 0;
}

void crb_kvm_plic_slot_changed(crb_kvm_plic *plic, crb_kvm_slot *slot) {
    lock(plic);
    crb_plic_set_level(&plic->plic, slot->source, atomic_load(&slot->bits) != 0);
    unlock(plic);
}

// With the lock held: a buffer was used.
static void called(crb_kvm_plic *plic, uint32_t source) {
    crb_kvm_vm *vm = plic->vm;
    for (uint32_t i = 0; i < vm->n_slots; i++)
        if (vm->slots[i].source == source) atomic_fetch_or(&vm->slots[i].bits, 1);
    crb_plic_set_level(&plic->plic, source, true);
}

// Nobody else reads a call eventfd; one that was removed meanwhile is not touched.
static void take_call(crb_kvm_plic *plic, int fd) {
    uint64_t count;
    lock(plic);
    for (uint32_t i = 0; i < plic->n_calls; i++)
        if (plic->calls[i].fd == fd) {
            if (read(fd, &count, sizeof count) == sizeof count) called(plic, plic->calls[i].source);
            break;
        }
    unlock(plic);
}

static void *wait_for_calls(void *argument) {
    crb_kvm_plic *plic = argument;
    struct epoll_event events[MAX_EVENTS];
    for (;;) {
        const int ready = epoll_wait(plic->epoll_fd, events, MAX_EVENTS, -1);
        if (ready < 0 && errno != EINTR) return NULL;
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == plic->stop_fd) return NULL;
            take_call(plic, events[i].data.fd);
        }
    }
}

static int add_call(crb_kvm_plic *plic, uint32_t source, int fd) {
    if (plic->n_calls == MAX_CALL_FDS) return -ENOSPC;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(plic->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) return -errno;
    plic->calls[plic->n_calls++] = (call_fd){.source = source, .fd = fd};
    return 0;
}

static int remove_call(crb_kvm_plic *plic, uint32_t source, int fd) {
    for (uint32_t i = 0; i < plic->n_calls; i++) {
        if (plic->calls[i].source != source || plic->calls[i].fd != fd) continue;
        epoll_ctl(plic->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
        plic->calls[i] = plic->calls[--plic->n_calls];
        return 0;
    }
    return -ENOENT;
}

int crb_kvm_plic_call(crb_kvm_plic *plic, uint32_t source, int fd, bool assign) {
    lock(plic);
    const int status = assign ? add_call(plic, source, fd) : remove_call(plic, source, fd);
    unlock(plic);
    return status;
}

int crb_kvm_plic_slot(crb_kvm_vm *vm, uint32_t slot, uint32_t source) {
    if (vm->plic == NULL || slot >= vm->n_slots || source == 0 || source >= CRB_PLIC_SOURCES)
        return -EINVAL;
    vm->slots[slot].source = source;
    return 0;
}

// ---- Registers

bool crb_kvm_plic_serve(crb_kvm_plic *plic, struct kvm_run *run) {
    const uint64_t offset = run->mmio.phys_addr - plic->address;
    if (offset >= CRB_PLIC_WINDOW || run->mmio.len != 4) return false;
    uint32_t value;
    lock(plic);
    if (run->mmio.is_write) {
        memcpy(&value, run->mmio.data, sizeof value);
        crb_plic_write(&plic->plic, offset, value);
    } else {
        value = crb_plic_read(&plic->plic, offset);
        memcpy(run->mmio.data, &value, sizeof value);
    }
    unlock(plic);
    return true;
}

int crb_kvm_plic_get(crb_kvm_vm *vm, uint8_t *state) {
    if (vm->plic == NULL) return -ENOSYS;
    lock(vm->plic);
    crb_plic_get_state(&vm->plic->plic, state);
    unlock(vm->plic);
    return 0;
}

int crb_kvm_plic_set(crb_kvm_vm *vm, const uint8_t *state) {
    if (vm->plic == NULL) return -ENOSYS;
    lock(vm->plic);
    const int status = crb_plic_set_state(&vm->plic->plic, state);
    unlock(vm->plic);
    return status;
}

int crb_kvm_plic_redrive(crb_kvm_vm *vm, uint32_t index) {
    if (vm->plic == NULL || index >= vm->n_vcpus || index >= CRB_MAX_HARTS) return -EINVAL;
    lock(vm->plic);
    const int status = tell(vm->plic, index);
    unlock(vm->plic);
    return status;
}

// ---- Its life

// The thread takes no signals: those that there are have another's work to interrupt.
static int start_thread(crb_kvm_plic *plic) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int status = pthread_create(&plic->thread, NULL, wait_for_calls, plic);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -status;
}

static int open_fds(crb_kvm_plic *plic) {
    plic->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    plic->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (plic->epoll_fd < 0 || plic->stop_fd < 0) return -errno;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = plic->stop_fd};
    return epoll_ctl(plic->epoll_fd, EPOLL_CTL_ADD, plic->stop_fd, &event) < 0 ? -errno : 0;
}

static void free_plic(crb_kvm_plic *plic) {
    if (plic->epoll_fd >= 0) close(plic->epoll_fd);
    if (plic->stop_fd >= 0) close(plic->stop_fd);
    pthread_mutex_destroy(&plic->lock);
    free(plic);
}

int crb_kvm_plic_create(crb_kvm_vm *vm, uint64_t address) {
    if (vm->plic != NULL || vm->n_vcpus > 0) return -EBUSY;
    crb_kvm_plic *plic = calloc(1, sizeof *plic);
    if (plic == NULL) return -ENOMEM;
    plic->vm = vm;
    plic->address = address;
    plic->plic = (crb_plic){.owner = plic, .drive = drive_vcpu};
    pthread_mutex_init(&plic->lock, NULL);
    int status = open_fds(plic);
    if (status == 0) status = start_thread(plic);
    if (status < 0) {
        free_plic(plic);
        return status;
    }
    vm->plic = plic;
    return 0;
}

void crb_kvm_plic_free(crb_kvm_plic *plic) {
    const uint64_t one = 1;
    // An eventfd that only we have takes it.
    if (write(plic->stop_fd, &one, sizeof one) == sizeof one) pthread_join(plic->thread, NULL);
    free_plic(plic);
}
