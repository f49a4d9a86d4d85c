// Whether /dev/kvm is there, may be used, and runs guest kernels at a useful speed.
#ifndef CRUMBLE_KVM_PROBE_H
#define CRUMBLE_KVM_PROBE_H

#include <stdint.h>

// Where a probe ended.
#define CRB_KVM_ABSENT   0 // open failed: `error` says why
#define CRB_KVM_UNUSABLE 1 // an ioctl failed, or the guest did not stop: `error` says why
#define CRB_KVM_UNTIMED  2 // a VM can be made; this host's architecture has no test guest
#define CRB_KVM_TIMED    3 // `instructions_per_second` was measured

typedef struct crb_kvm_report {
    int32_t outcome;
    int32_t error; // errno, 0 for none
    uint64_t
        instructions_per_second; // of a loop in the guest's most privileged mode, best of several
} crb_kvm_report;

// Opens /dev/kvm, makes a VM and runs a small guest in it, in a child process that is given
// `timeout_ms`: a module that emulates may do anything with a guest, also never come back.
void crb_kvm_probe(crb_kvm_report *report, int timeout_ms);

#endif
