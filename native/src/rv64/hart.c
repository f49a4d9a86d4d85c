// A hart's run loop around the interpreter: exits and their answers, time slices, WFI, requests of
// other threads.
#include "rv64/hart.h"
#include "rv64/fpu.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// Instructions between looks at the clock and at attention: 25 to 50 us of integer code.
#define SLICE 10000
// How often call_fds are polled while the guest runs.
#define POLL_NS 50000
// A hart that for so long did not run so many instructions between two sleeps is idle: what was
// decoded costs more than to decode it again.
#define IDLE_NS   2000000000ull
#define IDLE_RUNS 1000000

uint64_t crb_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

// ---- Between threads

void crb_attract(crb_hart *hart, uint32_t attention) {
    __atomic_or_fetch(&hart->attention, attention, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&hart->sleeping, __ATOMIC_SEQ_CST) == 0) return;
    const int saved = errno;
    const uint64_t one = 1;
    // Fails only when the count is full: then the hart is awake already.
    if (write(hart->wake_fd, &one, sizeof one) < 0) errno = saved;
}

void crb_hart_cancel(crb_machine *machine, uint32_t hart) {
    if (hart < machine->n_harts) crb_attract(machine->harts[hart], CRB_ATTENTION_CANCEL);
}

void crb_hart_meet(crb_machine *machine, uint32_t id, uint64_t instret) {
    if (id >= machine->n_harts) return;
    __atomic_store_n(&machine->harts[id]->meet_at, instret, __ATOMIC_SEQ_CST);
    crb_attract(machine->harts[id], CRB_ATTENTION_IRQ); // it may be asleep
}

uint64_t crb_hart_instret(const crb_machine *machine, uint32_t id) {
    const crb_hart *hart = machine->harts[id < machine->n_harts ? id : 0];
    return hart->retired_base - (uint64_t)hart->budget;
}

// True when the caller should have MEET, which was asked for no later than `at`.
static bool meet(crb_hart *hart, uint64_t at, uint64_t waiting) {
    const uint64_t wanted = __atomic_load_n(&hart->meet_at, __ATOMIC_SEQ_CST);
    if (wanted == UINT64_MAX || wanted > at || !hart->machine->deterministic) return false;
    __atomic_store_n(&hart->meet_at, UINT64_MAX, __ATOMIC_SEQ_CST);
    *hart->exit = (crb_exit){
        .reason = CRB_EXIT_MEET,
        .data = waiting,
        .extra = crb_hart_instret(hart->machine, hart->id),
    };
    return true;
}

void crb_serve_requests(crb_hart *hart) {
    const uint32_t purge = __atomic_load_n(&hart->purge_wanted, __ATOMIC_SEQ_CST);
    if (purge != __atomic_load_n(&hart->purge_done, __ATOMIC_RELAXED)) {
        crb_tlb_flush_writes(hart);
        __atomic_store_n(&hart->purge_done, purge, __ATOMIC_SEQ_CST);
    }
    const uint32_t wanted = __atomic_load_n(&hart->flush_wanted, __ATOMIC_SEQ_CST);
    if (wanted == __atomic_load_n(&hart->flush_done, __ATOMIC_RELAXED)) return;
    const uint32_t flush = __atomic_exchange_n(&hart->flush, 0, __ATOMIC_SEQ_CST);
    if ((flush & CRB_FLUSH_TLB) != 0) crb_tlb_flush(hart);
    if ((flush & CRB_FLUSH_CODE) != 0) crb_drop_stale(hart, true);
    __atomic_store_n(&hart->flush_done, wanted, __ATOMIC_SEQ_CST);
}

// A hart outside the guest serves what is wanted before it runs any instruction, so it counts as
// done. Two harts that wait for each other serve each other here.
void crb_await(crb_hart *hart, crb_hart *other, uint32_t *wanted, uint32_t *done) {
    const uint32_t want = __atomic_load_n(wanted, __ATOMIC_SEQ_CST);
    while ((int32_t)(__atomic_load_n(done, __ATOMIC_SEQ_CST) - want) < 0 &&
           __atomic_load_n(&other->running, __ATOMIC_SEQ_CST) != 0) {
        crb_serve_requests(hart);
        sched_yield();
    }
}

// ---- Sleeping

static uint64_t timer_ns(const crb_hart *hart) {
    const crb_machine *machine = hart->machine;
    const unsigned __int128 ns =
        (unsigned __int128)hart->stimecmp * 1000000000 / machine->timebase_hz;
    const uint64_t offset = __atomic_load_n(&machine->time_offset_ns, __ATOMIC_RELAXED);
    return ns > UINT64_MAX - offset ? UINT64_MAX : (uint64_t)ns + offset;
}

void crb_timer_changed(crb_hart *hart) {
    hart->stip = crb_time(hart->machine) >= hart->stimecmp ? CRB_STIP : 0;
}

// A deterministic machine waits for its timer in no time.
static bool skip_to_timer(crb_hart *hart) {
    crb_machine *machine = hart->machine;
    if (!machine->deterministic || (hart->sie & CRB_STIP) == 0 || hart->stimecmp == UINT64_MAX)
        return false;
    crb_poll_calls(machine);
    if (crb_pending(hart) == 0) crb_machine_set_time(machine, hart->stimecmp);
    return true;
}

// True when there is a reason to go on: an enabled interrupt or another thread's wish.
static bool awake(crb_hart *hart) {
    crb_poll_calls(hart->machine);
    crb_timer_changed(hart);
    return crb_pending(hart) != 0 || __atomic_load_n(&hart->attention, __ATOMIC_SEQ_CST) != 0;
}

static void sleep_until(crb_hart *hart, uint64_t deadline_ns) {
    struct pollfd fds[2] = {{.fd = hart->wake_fd, .events = POLLIN},
                            {.fd = hart->machine->epoll_fd, .events = POLLIN}};
    const uint64_t now = crb_now_ns();
    const uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
    const struct timespec timeout = {.tv_sec = (time_t)(left / 1000000000),
                                     .tv_nsec = (long)(left % 1000000000)};
    ppoll(fds, 2, deadline_ns == UINT64_MAX ? NULL : &timeout, NULL);
    uint64_t count;
    if ((fds[0].revents & POLLIN) != 0 && read(hart->wake_fd, &count, sizeof count) < 0) return;
}

// Looks for crb_spin's window; true when there is a reason to go on.
static bool look(crb_hart *hart) {
    crb_spin *spin = &hart->spin;
    if (awake(hart)) return true;
    if (spin->window_ns == 0 || spin->resting > 0) return false;
    const uint64_t end = crb_now_ns() + spin->window_ns;
    bool found = false;
    while (!found && crb_now_ns() < end)
        found = awake(hart);
    crb_spin_looked(spin, found);
    return found;
}

// Sleeps, at most until it counts as idle.
static void doze(crb_hart *hart, uint64_t due_ns) {
    const bool much = hart->n_ops > CRB_KEPT_OPS && !hart->machine->deterministic;
    const uint64_t idle_ns = hart->busy_ns + IDLE_NS;
    sleep_until(hart, much && idle_ns < due_ns ? idle_ns : due_ns);
    hart->idle = much && crb_now_ns() >= idle_ns;
}

// Waits until something happens: looks for a while first, as waking up costs more (doorbell.h).
static void halt(crb_hart *hart) {
    const uint64_t start = crb_now_ns();
    const bool timed = (hart->sie & CRB_STIP) != 0;
    __atomic_store_n(&hart->running, 0, __ATOMIC_SEQ_CST);
    if (hart->retired_base - hart->busy_retired > IDLE_RUNS || hart->busy_ns == 0)
        hart->busy_ns = start;
    hart->busy_retired = hart->retired_base;
    if (!look(hart)) {
        const uint64_t slept = crb_now_ns();
        __atomic_store_n(&hart->sleeping, 1, __ATOMIC_SEQ_CST);
        while (!hart->idle && !awake(hart))
            doze(hart, timed ? timer_ns(hart) : UINT64_MAX);
        __atomic_store_n(&hart->sleeping, 0, __ATOMIC_SEQ_CST);
        crb_spin_slept(&hart->spin, crb_now_ns() - slept);
    }
    __atomic_store_n(&hart->running, 1, __ATOMIC_SEQ_CST);
    hart->counters.wfi_ns += crb_now_ns() - start;
}

static bool take_cancel(crb_hart *hart) {
    const uint32_t seen =
        __atomic_fetch_and(&hart->attention, ~CRB_ATTENTION_CANCEL, __ATOMIC_SEQ_CST);
    if ((seen & CRB_ATTENTION_CANCEL) == 0) return false;
    *hart->exit = (crb_exit){.reason = CRB_EXIT_CANCELED};
    return true;
}

// Serves everything but a cancel. True when the caller should have CANCELED.
static bool attend(crb_hart *hart) {
    if (__atomic_load_n(&hart->attention, __ATOMIC_SEQ_CST) == 0) return false;
    __atomic_and_fetch(&hart->attention, CRB_ATTENTION_CANCEL, __ATOMIC_SEQ_CST);
    crb_serve_requests(hart);
    return take_cancel(hart);
}

crb_result crb_wfi(crb_hart *hart) {
    hart->waiting = 1;
    while (true) {
        if (attend(hart)) return CRB_LEAVE;
        crb_timer_changed(hart);
        if (crb_pending(hart) != 0) break;
        if (skip_to_timer(hart)) continue;
        if (meet(hart, UINT64_MAX - 1, 1)) return CRB_LEAVE;
        halt(hart);
        if (hart->idle) { // run() goes on from here, where no block is under way
            *hart->exit = (crb_exit){.reason = CRB_EXIT_CANCELED};
            return CRB_LEAVE;
        }
    }
    hart->waiting = 0;
    if (hart->debug != NULL) { // that was an instruction, too
        hart->budget--;
        hart->retired_base--;
    }
    return CRB_AGAIN;
}

crb_result crb_stopped(crb_hart *hart) {
    while (__atomic_load_n(&hart->hsm, __ATOMIC_SEQ_CST) == 1) {
        if (attend(hart)) return CRB_LEAVE;
        __atomic_store_n(&hart->running, 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&hart->sleeping, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&hart->attention, __ATOMIC_SEQ_CST) == 0)
            sleep_until(hart, UINT64_MAX);
        __atomic_store_n(&hart->sleeping, 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&hart->running, 1, __ATOMIC_SEQ_CST);
    }
    return attend(hart) ? CRB_LEAVE : CRB_AGAIN;
}

// Goes where another hart has started this one; that may have been before its thread came here.
static void take_start(crb_hart *hart) {
    if (__atomic_exchange_n(&hart->start, 0, __ATOMIC_SEQ_CST) == 0) return;
    hart->pc = hart->start_pc;
    hart->r[10] = hart->id;
    hart->r[11] = hart->start_arg;
}

// ---- Slices

crb_result crb_slice(crb_hart *hart) {
    if (CRB_UNLIKELY(hart->debug != NULL)) {
        if (crb_debug_between(hart)) return CRB_LEAVE;
    } else {
        hart->retired_base += SLICE;
        hart->budget += SLICE;
    }
    const uint64_t now = crb_now_ns();
    if (now >= hart->next_poll_ns) {
        hart->next_poll_ns = now + POLL_NS;
        crb_poll_calls(hart->machine);
    }
    if (hart->machine->mode == CRB_MODE_SYSTEM) crb_timer_changed(hart);
    crb_drop_stale(hart, false);
    if (meet(hart, crb_hart_instret(hart->machine, hart->id), 0)) return CRB_LEAVE;
    return attend(hart) ? CRB_LEAVE : CRB_AGAIN;
}

// ---- Running

static void finish_pending(crb_hart *hart) {
    const uint32_t pending = hart->pending;
    hart->pending = CRB_PENDING_NONE;
    if (pending == CRB_PENDING_LOAD) {
        crb_finish_load(hart, hart->pending_op, hart->pending_rd, hart->exit->data);
        hart->pc += hart->pending_length;
        hart->retired_base++;
    } else if (pending == CRB_PENDING_CONSOLE) {
        hart->r[10] = 0;
        hart->r[11] = hart->exit->data;
    }
}

static crb_result run(crb_hart *hart) {
    finish_pending(hart);
    if (attend(hart)) return CRB_LEAVE;
    if (__atomic_load_n(&hart->hsm, __ATOMIC_SEQ_CST) == 1 && crb_stopped(hart) == CRB_LEAVE)
        return CRB_LEAVE;
    take_start(hart);
    if (hart->idle) {
        crb_blocks_trim(hart);
        hart->busy_ns = crb_now_ns();
        hart->idle = false;
    }
    if (hart->waiting != 0 && crb_wfi(hart) == CRB_LEAVE) return CRB_LEAVE;
    crb_drop_stale(hart, false);
    return crb_interpret(hart);
}

int crb_hart_run(crb_machine *machine, uint32_t id, crb_exit *exit) {
    if (id >= machine->n_harts) return -EINVAL;
    crb_hart *hart = machine->harts[id];
    hart->exit = exit;
    __atomic_store_n(&hart->running, 1, __ATOMIC_SEQ_CST);
    const uint32_t host_fp = crb_fp_enter();
    run(hart);
    crb_fp_leave(host_fp, &hart->fflags);
    __atomic_store_n(&hart->running, 0, __ATOMIC_SEQ_CST);
    hart->exit = NULL;
    hart->counters.exits++;
    return 0;
}

// ---- State

int crb_hart_get_state(crb_machine *machine, uint32_t id, crb_hart_state *state) {
    if (id >= machine->n_harts) return -EINVAL;
    crb_hart *hart = machine->harts[id];
    take_start(hart);
    *state = (crb_hart_state){
        .pc = hart->pc,
        .fcsr = hart->frm << 5 | hart->fflags,
        .privilege = hart->privilege,
        .sstatus = hart->status,
        .sie = hart->sie,
        .sip = __atomic_load_n(&hart->irq, __ATOMIC_SEQ_CST) & CRB_SSIP,
        .stvec = hart->stvec,
        .sscratch = hart->sscratch,
        .sepc = hart->sepc,
        .scause = hart->scause,
        .stval = hart->stval,
        .satp = hart->satp,
        .scounteren = hart->scounteren,
        .senvcfg = hart->senvcfg,
        .stimecmp = hart->stimecmp,
        .instret = hart->retired_base - (uint64_t)hart->budget,
        .reservation = UINT64_MAX, // an SC after a snapshot fails, as it may
        .hsm = hart->hsm,
        .waiting = hart->waiting,
        .vtype = hart->vtype,
        .vl = hart->vl,
        .vstart = hart->vstart,
        .vcsr = hart->vcsr,
        .vlenb = machine->vlenb,
    };
    memcpy(state->v, hart->v, 32 * (size_t)machine->vlenb);
    memcpy(state->x, hart->r, sizeof state->x);
    memcpy(state->f, &hart->r[CRB_F(0)], sizeof state->f);
    return 0;
}

// Values that the hart could not have come to by itself are refused.
static bool valid_state(const crb_hart_state *state) {
    const uint64_t mode = state->satp >> 60;
    return state->x[0] == 0 && (state->pc & 1) == 0 && state->fcsr < 0x100 &&
           state->privilege <= 1 && (state->hsm <= 1 || state->hsm == 4) && state->waiting <= 1 &&
           (state->sstatus & ~(CRB_STATUS_WRITE | CRB_STATUS_UXL | CRB_STATUS_SD)) == 0 &&
           (state->sie & ~(uint64_t)(CRB_SSIP | CRB_STIP | CRB_SEIP)) == 0 &&
           (state->sip & ~(uint64_t)CRB_SSIP) == 0 && (state->stvec & 2) == 0 &&
           (state->sepc & 1) == 0 && (state->senvcfg & ~CRB_ENVCFG_WRITE) == 0 &&
           (mode == 0 ? state->satp == 0 : mode == 8 || mode == 9);
}

// A state of before there were vectors has no vlenb.
static bool valid_vectors(const crb_hart_state *state, uint32_t vlenb) {
    if (state->vlenb == 0) return state->vtype == 0 && state->vl == 0 && state->vstart == 0;
    return state->vlenb == vlenb && state->vcsr < 8 && state->vstart < 8 * (uint64_t)vlenb &&
           crb_vector_valid_type(state->vtype, state->vl, vlenb);
}

static void set_vectors(crb_hart *hart, const crb_hart_state *state) {
    hart->vtype = state->vlenb == 0 ? 1ull << 63 : state->vtype;
    hart->vl = (uint32_t)state->vl;
    hart->vstart = (uint32_t)state->vstart;
    hart->vcsr = (uint32_t)state->vcsr & 7;
    memset(hart->v, 0, sizeof hart->v);
    memcpy(hart->v, state->v, 32 * (size_t)hart->machine->vlenb);
}

int crb_hart_set_state(crb_machine *machine, uint32_t id, const crb_hart_state *state) {
    if (id >= machine->n_harts || !valid_state(state) || !valid_vectors(state, machine->vlenb))
        return -EINVAL;
    crb_hart *hart = machine->harts[id];
    memcpy(hart->r, state->x, sizeof state->x);
    memcpy(&hart->r[CRB_F(0)], state->f, sizeof state->f);
    hart->pc = state->pc;
    hart->fflags = state->fcsr & 31;
    hart->frm = state->fcsr >> 5;
    hart->privilege = state->privilege;
    hart->status = (state->sstatus & CRB_STATUS_WRITE) | CRB_STATUS_UXL;
    hart->sie = state->sie;
    hart->stvec = state->stvec;
    hart->sscratch = state->sscratch;
    hart->sepc = state->sepc;
    hart->scause = state->scause;
    hart->stval = state->stval;
    hart->satp = state->satp;
    hart->scounteren = state->scounteren & 7;
    hart->senvcfg = state->senvcfg;
    hart->stimecmp = state->stimecmp;
    hart->retired_base = state->instret + (uint64_t)hart->budget;
    hart->reserved = NULL;
    set_vectors(hart, state);
    hart->start = 0;
    hart->hsm = state->hsm == 1;
    hart->waiting = state->waiting;
    hart->pending = CRB_PENDING_NONE;
    if ((state->sip & CRB_SSIP) != 0)
        __atomic_or_fetch(&hart->irq, CRB_SSIP, __ATOMIC_SEQ_CST);
    else
        __atomic_and_fetch(&hart->irq, ~CRB_SSIP, __ATOMIC_SEQ_CST);
    crb_tlb_flush(hart);
    crb_status_changed(hart);
    return 0;
}

const char *crb_hart_fallback(crb_machine *machine, uint32_t id, uint32_t kind, uint64_t *called,
                              uint64_t *left) {
#define NAME(name) #name,
    static const char *const names[] = {CRB_OPS(NAME)};
#undef NAME
    if (id >= machine->n_harts || kind >= CRB_N_OPS) return NULL;
    *called = machine->harts[id]->jit_called[kind];
    *left = machine->harts[id]->jit_left[kind];
    return names[kind];
}

void crb_hart_get_counters(crb_machine *machine, uint32_t id, crb_hart_counters *counters) {
    *counters = (crb_hart_counters){0};
    if (id >= machine->n_harts) return;
    const crb_hart *hart = machine->harts[id];
    *counters = hart->counters;
    counters->instructions = hart->retired_base - (uint64_t)hart->budget;
}
