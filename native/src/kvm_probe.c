// The probe of /dev/kvm. See kvm_probe.h.
//
// A /dev/kvm need not be hardware virtualization: some modules emulate what a guest kernel does,
// hundreds of times slower, and only run its user code natively. So the test guest is a loop at CPL
// 0.
#include "crumble/kvm_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__linux__)
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

static crb_kvm_report outcome(int32_t what) {
    return (crb_kvm_report){.outcome = what, .error = what == CRB_KVM_UNTIMED ? 0 : errno};
}

#if defined(__x86_64__)
#define GUEST_SIZE 0x1000u
#define LOOPS      20000u
#define RUNS       5

// mov ecx, LOOPS; again: dec ecx; jnz again; hlt; then back to the start, for the next run
static const uint8_t guest[] = {0xb9, LOOPS & 0xff, LOOPS >> 8 & 0xff, 0, 0, 0x49, 0x75, 0xfd, 0xf4,
                                0xeb, 0xf5};

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static struct kvm_segment flat(uint16_t selector, uint8_t type) {
    return (struct kvm_segment){.limit = 0xffffffff,
                                .selector = selector,
                                .type = type,
                                .present = 1,
                                .db = 1,
                                .s = 1,
                                .g = 1};
}

// Flat 32-bit protected mode without paging, which every virtualizing CPU runs natively.
static int set_up(int vcpu) {
    struct kvm_sregs sregs;
    if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0) return -1;
    sregs.cs = flat(8, 11);
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat(16, 3);
    sregs.cr0 |= 1;
    struct kvm_regs regs = {.rip = 0, .rflags = 2, .rsp = GUEST_SIZE};
    return ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0 ? -1 : 0;
}

static crb_kvm_report time_guest(int vcpu, struct kvm_run *run) {
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < RUNS; i++) {
        const uint64_t start = now_ns();
        if (ioctl(vcpu, KVM_RUN, 0) < 0) return outcome(CRB_KVM_UNUSABLE);
        const uint64_t took = now_ns() - start;
        if (run->exit_reason != KVM_EXIT_HLT) {
            errno = ENOTSUP;
            return outcome(CRB_KVM_UNUSABLE);
        }
        if (took < best) best = took;
    }
    crb_kvm_report report = {.outcome = CRB_KVM_TIMED};
    report.instructions_per_second = 2ull * LOOPS * 1000000000u / (best > 0 ? best : 1);
    return report;
}

static crb_kvm_report run_guest(int kvm, int vm) {
    uint8_t *ram =
        mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ram == MAP_FAILED) return outcome(CRB_KVM_UNUSABLE);
    memcpy(ram, guest, sizeof guest);
    struct kvm_userspace_memory_region region = {.memory_size = GUEST_SIZE,
                                                 .userspace_addr = (uintptr_t)ram};
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0) return outcome(CRB_KVM_UNUSABLE);
    const int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    const int run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (vcpu < 0 || run_size < 0 || set_up(vcpu) < 0) return outcome(CRB_KVM_UNUSABLE);
    struct kvm_run *run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED) return outcome(CRB_KVM_UNUSABLE);
    return time_guest(vcpu, run);
}
#else
static crb_kvm_report run_guest(int kvm, int vm) {
    (void)kvm;
    (void)vm;
    return outcome(CRB_KVM_UNTIMED);
}
#endif

static crb_kvm_report probe(void) {
    const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) return outcome(CRB_KVM_ABSENT);
    errno = ENOTSUP;
    if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) return outcome(CRB_KVM_UNUSABLE);
    const int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    return vm < 0 ? outcome(CRB_KVM_UNUSABLE) : run_guest(kvm, vm);
}
#else
static crb_kvm_report probe(void) {
    return (crb_kvm_report){CRB_KVM_ABSENT, ENOENT, 0};
}
#endif

// The child's report, read within the time; all descriptors of the probe end with the child.
static int collect(int reader, crb_kvm_report *report, int timeout_ms) {
    struct pollfd waiting = {.fd = reader, .events = POLLIN};
    int ready;
    do {
        ready = poll(&waiting, 1, timeout_ms);
    } while (ready < 0 && errno == EINTR);
    if (ready <= 0) return -1;
    return read(reader, report, sizeof *report) == (ssize_t)sizeof *report ? 0 : -1;
}

void crb_kvm_probe(crb_kvm_report *report, int timeout_ms) {
    *report = (crb_kvm_report){.outcome = CRB_KVM_UNUSABLE, .error = ETIMEDOUT};
    int pipes[2];
    if (pipe2(pipes, O_CLOEXEC) < 0) {
        report->error = errno;
        return;
    }
    const pid_t child = fork();
    if (child == 0) {
        const crb_kvm_report found = probe();
        _exit(write(pipes[1], &found, sizeof found) == (ssize_t)sizeof found ? 0 : 1);
    }
    if (child < 0) {
        report->error = errno;
    } else {
        crb_kvm_report found;
        if (collect(pipes[0], &found, timeout_ms) == 0) *report = found;
        kill(child, SIGKILL);
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    close(pipes[0]);
    close(pipes[1]);
}
