// Debuggers: breakpoints, watchpoints, single steps and the instruction trace. A hart that is
// debugged decodes blocks of one instruction and has a time slice of one, so that crb_slice() comes
// between any two of them; nothing of this costs anything while nobody debugs.
#include "rv64/hart.h"

#include <errno.h>
#include <stdlib.h>

struct crb_debugging {
    crb_debug wanted;
    bool watch_hit;
    uint64_t watch_va;
    uint32_t traced, next; // entries, and where the next goes
    crb_trace_entry trace[];
};

void crb_debug_free(crb_hart *hart) {
    free(hart->debug);
    hart->debug = NULL;
}

bool crb_debug_holds_interrupts(const crb_hart *hart) {
    return hart->debug != NULL && hart->debug->wanted.step != 0;
}

static bool overlaps(const crb_watchpoint *watch, uint64_t va, uint64_t size) {
    return va - watch->va < watch->size || watch->va - va < size;
}

void crb_debug_access(crb_hart *hart, uint64_t va, uint32_t size, uint32_t kind) {
    struct crb_debugging *debug = hart->debug;
    for (uint32_t i = 0; i < debug->wanted.n_watchpoints; i++) {
        const crb_watchpoint *watch = &debug->wanted.watchpoints[i];
        if ((watch->kind & kind) == 0 || !overlaps(watch, va, size)) continue;
        debug->watch_hit = true;
        debug->watch_va = watch->va;
    }
}

bool crb_debug_watches_page(const crb_hart *hart, uint64_t va) {
    const crb_debug *wanted = &hart->debug->wanted;
    for (uint32_t i = 0; i < wanted->n_watchpoints; i++)
        if (overlaps(&wanted->watchpoints[i], va & CRB_PAGE_MASK, CRB_PAGE_SIZE)) return true;
    return false;
}

static void remember(crb_hart *hart) {
    struct crb_debugging *debug = hart->debug;
    debug->trace[debug->next] = (crb_trace_entry){
        .pc = hart->pc, .insn = crb_fetch_word(hart, hart->pc), .privilege = hart->privilege};
    debug->next = (debug->next + 1) % debug->wanted.trace;
    if (debug->traced < debug->wanted.trace) debug->traced++;
}

static bool stop(crb_hart *hart, uint64_t why, uint64_t address) {
    *hart->exit = (crb_exit){.reason = CRB_EXIT_DEBUG, .data = why, .extra = address};
    return true;
}

// The next instruction's turn, not one that a trap or a fence has put off.
bool crb_debug_between(crb_hart *hart) {
    struct crb_debugging *debug = hart->debug;
    hart->retired_base -= (uint64_t)hart->budget;
    hart->budget = 0;
    if (debug->watch_hit) {
        debug->watch_hit = false;
        return stop(hart, CRB_STOP_WATCH, debug->watch_va);
    }
    if (debug->wanted.step != 0) return stop(hart, CRB_STOP_STEP, hart->pc);
    for (uint32_t i = 0; i < debug->wanted.n_breakpoints; i++)
        if (debug->wanted.breakpoints[i] == hart->pc) return stop(hart, CRB_STOP_BREAK, hart->pc);
    if (debug->wanted.trace != 0) remember(hart);
    return false;
}

static bool wants_nothing(const crb_debug *debug) {
    return debug == NULL || (debug->step == 0 && debug->n_breakpoints == 0 &&
                             debug->n_watchpoints == 0 && debug->trace == 0);
}

static bool valid(const crb_debug *debug) {
    if (debug->n_breakpoints > CRB_MAX_BREAKPOINTS || debug->n_watchpoints > CRB_MAX_WATCHPOINTS ||
        debug->trace > CRB_MAX_TRACE)
        return false;
    for (uint32_t i = 0; i < debug->n_watchpoints; i++)
        if (debug->watchpoints[i].size == 0 || debug->watchpoints[i].kind == 0 ||
            debug->watchpoints[i].kind > 3)
            return false;
    return true;
}

static int begin(crb_hart *hart, const crb_debug *wanted) {
    const struct crb_debugging *before = hart->debug;
    struct crb_debugging *debug = calloc(1, sizeof *debug + wanted->trace * sizeof debug->trace[0]);
    if (debug == NULL) return -ENOMEM;
    debug->wanted = *wanted;
    if (before != NULL && before->wanted.trace == wanted->trace) { // the trace goes on
        debug->traced = before->traced;
        debug->next = before->next;
        for (uint32_t i = 0; i < before->traced; i++)
            debug->trace[i] = before->trace[i];
    }
    crb_debug_free(hart);
    hart->debug = debug;
    return 0;
}

int crb_hart_set_debug(crb_machine *machine, uint32_t id, const crb_debug *wanted) {
    if (id >= machine->n_harts) return -EINVAL;
    crb_hart *hart = machine->harts[id];
    const bool was_on = hart->debug != NULL;
    if (wants_nothing(wanted)) {
        crb_debug_free(hart);
    } else {
        if (!valid(wanted)) return -EINVAL;
        const int status = begin(hart, wanted);
        if (status != 0) return status;
    }
    hart->retired_base -= (uint64_t)hart->budget;
    hart->budget = 0;
    if (was_on != (hart->debug != NULL)) crb_blocks_flush(hart);
    crb_tlb_flush(hart); // pages become watched, or are no more
    return 0;
}

uint32_t crb_hart_get_trace(crb_machine *machine, uint32_t id, crb_trace_entry *entries,
                            uint32_t max) {
    if (id >= machine->n_harts || machine->harts[id]->debug == NULL) return 0;
    const struct crb_debugging *debug = machine->harts[id]->debug;
    const uint32_t count = debug->traced < max ? debug->traced : max;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t back = count - i;
        const uint32_t at = (debug->next + debug->wanted.trace - back) % debug->wanted.trace;
        entries[i] = debug->trace[at];
    }
    return count;
}
