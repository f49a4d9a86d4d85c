// Doorbells: eventfds, and waiting for rings without paying for wake-ups.
//
// Waking an idle core costs tens of microseconds on both sides; looking at a ring's avail index
// costs nothing. So before a service sleeps in poll(2) it looks for a while, kicks turned off: a
// crb_spin's window says how long. It is never more than 100 us, and 0 on a thread that may use
// only one CPU.
//
// The window adapts. Work found while looking doubles it, up to its bound; a long sleep after
// looking in vain halves it, down to 0, where an idle service stays; a short sleep (work came soon
// after we stopped looking) doubles it if it was too short to see that work. But when work keeps
// coming just after a window that should have seen it, looking itself is what kept the other side
// from running (both share a CPU): then the spin rests for a number of sleeps, twice as many each
// time, and tries again.
#ifndef CRUMBLE_DOORBELL_H
#define CRUMBLE_DOORBELL_H

#include "crumble/vring.h"

#define CRB_SPIN_MAX_NS      100000
#define CRB_SPIN_FIRST_NS    5000
#define CRB_DOORBELL_MAX_FDS 64
// A look that was worth it pays for two that were not.
#define CRB_SPIN_SCORE    4
#define CRB_SPIN_REST     16
#define CRB_SPIN_REST_MAX 1024

typedef struct crb_spin {
    uint64_t max_ns;
    uint64_t window_ns;
    uint64_t hits;    // work came while looking
    uint64_t misses;  // it did not
    uint32_t score;   // 0: rest
    uint32_t resting; // short sleeps left before looking again
    uint32_t rest;    // how many the next time
    bool looked;      // since the last sleep, in vain
    uint64_t idle_ns; // when that began; 0: it is over
} crb_spin;

// `max_ns` is cut to CRB_SPIN_MAX_NS, and to 0 when this thread may use only one CPU.
void crb_spin_init(crb_spin *spin, uint64_t max_ns);

// Looks for at most the window until one of the rings is pending; true when one is.
bool crb_spin_wait(crb_spin *spin, crb_vring *const *rings, uint32_t n_rings);

// What looking gave, for a caller that looks at something else than rings, for at most window_ns
// and not while `resting`.
void crb_spin_looked(crb_spin *spin, bool found);

// What followed: a sleep of `ns` until there was work. Adapts the window.
void crb_spin_slept(crb_spin *spin, uint64_t ns);

// The same, of a sleep that somebody else sleeps: it begins; it is over, if one began.
void crb_spin_idle(crb_spin *spin);
void crb_spin_woken(crb_spin *spin);

// Waits until a ring is pending, one of `fds` (at most CRB_DOORBELL_MAX_FDS) is readable or hung
// up, or `timeout_ms` is over (-1: never): looks first, then asks the rings for kicks and sleeps in
// poll(2). Returns a bit for each fd that is ready, 0 for rings or time-out, or -errno (EINTR,
// too). Kicks are off on return, unless it timed out.
int64_t crb_doorbell_wait(crb_spin *spin, crb_vring *const *rings, uint32_t n_rings, const int *fds,
                          uint32_t n_fds, int timeout_ms);

// Adds 1 to an eventfd. One that is full is rung already; one that cannot be written is its owner's
// loss.
void crb_doorbell_ring(int fd);
// Empties a non-blocking eventfd; the number of rings since the last time, 0 when there were none.
uint64_t crb_doorbell_drain(int fd);

#endif
