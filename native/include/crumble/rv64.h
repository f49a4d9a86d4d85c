// The soft CPU: a riscv64 machine's harts, PLIC and interrupt and doorbell wiring, in user space.
//
// A machine is created over guest memory, wired (doorbells, interrupt sources), then each hart is
// run by a thread of its own: crb_hart_run() returns only for what Python must see. M-mode does not
// exist for the guest: harts start in S-mode and SBI calls are served here (base, TIME, IPI,
// RFENCE, HSM, DBCN) or returned as exits (SRST).
#ifndef CRUMBLE_RV64_H
#define CRUMBLE_RV64_H

#include "crumble/memory.h"

#define CRB_MAX_HARTS    16
#define CRB_PLIC_SOURCES 96
#define CRB_MAX_VLENB    32

typedef struct crb_machine crb_machine;

typedef struct crb_machine_config {
    uint32_t harts;
    uint32_t mode;        // CRB_MODE_*
    uint64_t timebase_hz; // rate of `time`
    uint64_t plic_gpa;    // base of the PLIC's register window (0x4000000 bytes)
    // One hart whose clock counts its instructions (a nanosecond each; WFI skips to the timer): the
    // same inputs at the same instructions give the same memory and state, bit for bit.
    uint32_t deterministic;
    uint32_t vlen; // bits of a vector register: 128, 256; 0 is 128
} crb_machine_config;

// SYSTEM is what a kernel sees. USER runs one hart in U-mode over bare physical addresses, where an
// ecall or any trap is an exit: for differential tests against qemu-user.
#define CRB_MODE_SYSTEM 0
#define CRB_MODE_USER   1

enum crb_exit_reason {
    CRB_EXIT_NONE = 0,
    CRB_EXIT_CANCELED,   // crb_hart_cancel was called
    CRB_EXIT_MMIO_READ,  // fill `data`, then run again
    CRB_EXIT_MMIO_WRITE, // `data` holds the bytes written, little endian
    CRB_EXIT_CONSOLE,    // DBCN write: `gpa`, `size` bytes of guest memory; put bytes written in
                         // `data`
    CRB_EXIT_RESET,      // SRST: `data` type (0 shutdown, 1 cold, 2 warm), `extra` reason
    CRB_EXIT_STOPPED,    // HSM stop: run again blocks until another hart starts this one
    CRB_EXIT_TRAP,       // USER mode only: `data` is scause, `extra` stval, pc in the state
    CRB_EXIT_DEBUG,      // `data` CRB_STOP_*, `extra` the address; the pc is where to go on
    CRB_EXIT_MEET,       // crb_hart_meet: `data` 1 in a WFI that nothing ends, `extra` instret
    CRB_EXIT_CRASH, // the guest cannot go on: `data` scause, `extra` stval (trap in trap vector)
};

typedef struct crb_exit {
    uint32_t reason;
    uint32_t size; // of an MMIO access: 1, 2, 4, 8
    uint64_t gpa;
    uint64_t data;
    uint64_t extra;
} crb_exit;

// Everything a hart is: what a snapshot stores. Unused bits are zero; set_state validates.
typedef struct crb_hart_state {
    uint64_t x[32];
    uint64_t f[32];
    uint64_t pc;
    uint32_t fcsr;
    uint32_t privilege; // 0 U, 1 S
    uint64_t sstatus, sie, sip, stvec, sscratch, sepc, scause, stval, satp, scounteren, senvcfg;
    uint64_t stimecmp;
    uint64_t instret;
    uint64_t reservation; // guest-physical address of LR, ~0 none
    uint32_t hsm;         // 0 started, 1 stopped, 4 suspended
    uint32_t waiting;     // 1: in WFI
    uint64_t vtype, vl, vstart, vcsr, vlenb;
    uint8_t v[1024]; // 32 registers of vlenb bytes, then zeroes
} crb_hart_state;

// NULL with errno set when the configuration is invalid or memory is short.
crb_machine *crb_machine_new(crb_memory *memory, const crb_machine_config *config);
void crb_machine_free(crb_machine *machine);

// A store of `size` bytes to `gpa` whose value equals `match` (any value when match < 0) writes 1
// to `eventfd` and never leaves the run loop. 0 or -errno.
int crb_machine_add_doorbell(crb_machine *machine, uint64_t gpa, uint32_t size, int64_t match,
                             int eventfd);
int crb_machine_remove_doorbell(crb_machine *machine, uint64_t gpa, int64_t match);

// A virtio-mmio transport's interrupt: loads of status_gpa (InterruptStatus) and stores to ack_gpa
// (InterruptACK) are served here; the PLIC source is level-high while the status is non-zero.
// call_fd >= 0: a write to that eventfd sets bit 0 (used buffer), as an irqfd does. Several
// call_fds may be added to one source. 0 or -errno.
int crb_machine_add_virtio_irq(crb_machine *machine, uint32_t source, uint64_t status_gpa,
                               uint64_t ack_gpa);
int crb_machine_add_call_fd(crb_machine *machine, uint32_t source, int call_fd);
int crb_machine_remove_call_fd(crb_machine *machine, uint32_t source, int call_fd);
void crb_machine_virtio_raise(crb_machine *machine, uint32_t source, uint32_t bits);
// Clears bits, as a store to ack_gpa does.
void crb_machine_virtio_acknowledge(crb_machine *machine, uint32_t source, uint32_t bits);
uint32_t crb_machine_virtio_status(crb_machine *machine, uint32_t source);

// A plain level line (UART, RTC). Safe from any thread.
void crb_machine_set_line(crb_machine *machine, uint32_t source, bool level);

// Runs until there is something for the caller. `exit` carries the last exit's answer in
// (MMIO_READ: data; CONSOLE: data) and the new exit out. 0 or -errno. One thread a hart.
int crb_hart_run(crb_machine *machine, uint32_t hart, crb_exit *exit);
// Makes crb_hart_run return CANCELED soon: also when called before it. Any thread;
// async-signal-safe.
void crb_hart_cancel(crb_machine *machine, uint32_t hart);

// Of a deterministic machine: crb_hart_run returns MEET, once, at the end of the first time slice
// with so many instructions executed, or before in a WFI that nothing would end; UINT64_MAX takes
// that back. Any thread.
void crb_hart_meet(crb_machine *machine, uint32_t hart, uint64_t instret);
// Instructions executed so far. Only while the hart is not running.
uint64_t crb_hart_instret(const crb_machine *machine, uint32_t hart);

// Only while the hart is not running.
int crb_hart_get_state(crb_machine *machine, uint32_t hart, crb_hart_state *state);
int crb_hart_set_state(crb_machine *machine, uint32_t hart, const crb_hart_state *state);

// Makes the machine ready for a capture (memory.h), no hart running: takes the interrupts that wait
// in call_fds, and forgets what the harts know of pages being writable.
void crb_machine_settle(crb_machine *machine);

// The PLIC, for snapshots: priorities, pending and claimed bits, enables, thresholds. Opaque,
// little endian, CRB_PLIC_STATE_SIZE bytes; set_plic checks it (-EINVAL). Lines and virtio statuses
// are the devices' to restore (set_line, virtio_raise).
#define CRB_PLIC_STATE_SIZE 4096
int crb_machine_get_plic(crb_machine *machine, uint8_t *state);
int crb_machine_set_plic(crb_machine *machine, const uint8_t *state);

// `time` in ticks of the timebase: 0 when the machine was made. A restored machine goes on from the
// snapshot's time.
uint64_t crb_machine_get_time(crb_machine *machine);
void crb_machine_set_time(crb_machine *machine, uint64_t ticks);

// What a debugger wants of a hart. While it wants anything, the hart is interpreted instruction by
// instruction. Addresses are virtual. A hart stops before an instruction with a breakpoint (not
// when it starts there) and behind one that touched what is watched.
#define CRB_MAX_BREAKPOINTS 64
#define CRB_MAX_WATCHPOINTS 16
#define CRB_MAX_TRACE       65536

#define CRB_STOP_STEP  1
#define CRB_STOP_BREAK 2
#define CRB_STOP_WATCH 3

#define CRB_WATCH_WRITE 1
#define CRB_WATCH_READ  2

typedef struct crb_watchpoint {
    uint64_t va;
    uint32_t size;
    uint32_t kind; // CRB_WATCH_*, or both
} crb_watchpoint;

typedef struct crb_debug {
    uint32_t step; // stop behind one instruction; interrupts wait
    uint32_t n_breakpoints, n_watchpoints;
    uint32_t trace; // instructions to remember, the last ones; 0 none
    uint64_t breakpoints[CRB_MAX_BREAKPOINTS];
    crb_watchpoint watchpoints[CRB_MAX_WATCHPOINTS];
} crb_debug;

// Only while the hart is not running. NULL, or nothing wanted: at full speed again. 0 or -errno.
int crb_hart_set_debug(crb_machine *machine, uint32_t hart, const crb_debug *debug);

typedef struct crb_trace_entry {
    uint64_t pc;
    uint32_t insn; // the instruction's bytes; 0 when they could not be read
    uint32_t privilege;
} crb_trace_entry;

// The oldest first; how many there are, at most `max`. Only while the hart is not running.
uint32_t crb_hart_get_trace(crb_machine *machine, uint32_t hart, crb_trace_entry *entries,
                            uint32_t max);

typedef struct crb_hart_counters {
    uint64_t instructions, blocks_decoded, block_flushes, tlb_fills, tlb_flushes;
    uint64_t traps, interrupts, exits, wfi_ns;
} crb_hart_counters;
void crb_hart_get_counters(crb_machine *machine, uint32_t hart, crb_hart_counters *counters);

// Whether harts made now translate hot code, and if not, why they only interpret.
enum crb_translator {
    CRB_TRANSLATOR_ON,
    CRB_TRANSLATOR_OFF,       // CRUMBLE_SOFT_JIT=0
    CRB_TRANSLATOR_CPU,       // not on a CPU such as this host's
    CRB_TRANSLATOR_FORBIDDEN, // the host gives no executable memory
};
int crb_translator_state(void);

// What translated code does not do itself, by kind of operation: `called` by a function and back,
// `left` to the interpreter for the rest of the block. NULL when there is no such kind. Any thread;
// the counts are about right while the hart runs.
const char *crb_hart_fallback(crb_machine *machine, uint32_t hart, uint32_t kind, uint64_t *called,
                              uint64_t *left);

#endif
