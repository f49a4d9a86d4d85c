// Waiting for lent flows. See flow_wait.h.
#include "crumble/flow_wait.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>

// In `owners`: whose side, + 1, above; below a flow, + 1, a UDP flow, + 1, or which kick.
#define SIDE_SHIFT 16
#define KICK_TX    0u
#define KICK_RX    0xffffu
#define UDP        0x8000u

_Static_assert(CRB_FLOWS < UDP && CRB_UDP_FLOWS < KICK_RX - UDP, "an index looks like another");

static double clock_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

crb_waiter *crb_waiter_new(int epoll) {
    crb_waiter *w = calloc(1, sizeof *w);
    if (w != NULL) w->epoll = epoll;
    return w;
}

void crb_waiter_free(crb_waiter *w) {
    free(w);
}

static bool known(int32_t fd) {
    return fd >= 0 && fd < CRB_FLOW_FDS;
}

int crb_waiter_add(crb_waiter *w, const crb_wait_side *side) {
    uint32_t at = 0;
    while (at < CRB_WAIT_SIDES && w->sides[at].flows != NULL)
        at++;
    // A ring without a kick is somebody else's to look at.
    if (at == CRB_WAIT_SIDES || !known(side->kick_tx) || !known(side->kick_rx)) return -1;
    w->sides[at] = *side;
    w->sides[at].busy = w->sides[at].told = false;
    const uint32_t owner = (at + 1) << SIDE_SHIFT;
    w->owners[side->kick_tx] = owner | KICK_TX;
    w->owners[side->kick_rx] = owner | KICK_RX;
    crb_flows_owned(side->flows, w->owners, owner);
    if (side->udp != NULL) crb_udp_owned(side->udp, w->owners, owner | UDP);
    if (at == w->n_sides) w->n_sides++;
    return (int)at;
}

void crb_waiter_remove(crb_waiter *w, uint32_t at) {
    if (at >= CRB_WAIT_SIDES || w->sides[at].flows == NULL) return;
    crb_wait_side *s = &w->sides[at];
    w->owners[s->kick_tx] = w->owners[s->kick_rx] = 0;
    crb_flows_owned(s->flows, NULL, 0);
    if (s->udp != NULL) crb_udp_owned(s->udp, NULL, 0);
    *s = (crb_wait_side){.flows = NULL};
}

static void give(crb_waiter *w, int32_t fd, uint32_t mask) {
    w->events[w->n_events++] = (crb_wait_event){fd, mask};
}

// The caller is to look at a side. Nothing is done for it until then.
static void tell(crb_waiter *w, crb_wait_side *s) {
    s->busy = false;
    if (s->told) return;
    s->told = true;
    give(w, s->kick_tx, CRB_WAIT_READ);
}

static bool udp_live(const crb_wait_side *s) {
    return s->udp != NULL && s->udp->n_live != 0;
}

static bool lent(const crb_wait_side *s) {
    return s->flows != NULL && (s->flows->n_live != 0 || udp_live(s));
}

// The same for datagrams. Those that do not fit the driver's ring, or a packet, are the caller's.
static void after_udp(crb_waiter *w, crb_wait_side *s) {
    crb_udp_flows *t = s->udp;
    if (t->broken != 0 || t->n_events != 0 || t->reader != 0) tell(w, s);
    if (t->broken != 0 || !t->pushed) return;
    t->pushed = false;
    if (crb_vring_should_notify(s->rx)) crb_doorbell_ring(s->call_rx);
}

// What frames on the driver's ring lead to.
static void after(crb_waiter *w, crb_wait_side *s, double now) {
    crb_flows *t = s->flows;
    for (int i = 0; t->n_blocked != 0 && t->broken == 0 && crb_vring_want_more(s->rx); i++) {
        crb_flows_unblock(t, s->rx, now);
        if (i == CRB_WAIT_ROUNDS) {
            tell(w, s);
            break;
        }
    }
    if (t->broken != 0 || t->n_events != 0) tell(w, s);
    if (t->broken != 0 || !t->pushed) return;
    t->pushed = false;
    if (crb_vring_should_notify(s->rx)) crb_doorbell_ring(s->call_rx);
}

// A burst of the driver's: how many chains, or a crb_ring_error; *left: the next frame is
// neither's.
static int burst(crb_wait_side *s, double now, bool *left) {
    int count = 0, datagrams = 0;
    *left = s->flows->n_live == 0;
    if (!*left) count = crb_flows_burst(s->flows, s->tx, s->rx, now, left);
    if (count < 0 || !*left || !udp_live(s)) return count;
    datagrams = crb_udp_burst(s->udp, s->tx, now, left);
    // What comes behind datagrams may be the other's.
    if (datagrams > 0 && s->flows->n_live != 0) *left = false;
    return count == 0 || datagrams > 0 ? count + datagrams : count;
}

// What the driver sent. Asks for kicks again when there is no more.
static void serve(crb_waiter *w, crb_wait_side *s, double now) {
    bool left = false;
    for (int i = 0; i < CRB_WAIT_BURSTS; i++) {
        const int count = burst(s, now, &left);
        if (count > 0) {
            w->chains += (uint32_t)count;
            if (crb_vring_should_notify(s->tx)) crb_doorbell_ring(s->call_tx);
        }
        after(w, s, now);
        if (udp_live(s)) after_udp(w, s);
        if (count < 0 || left) tell(w, s);
        if (s->told) return;
        if (!crb_spin_wait(s->spin, &s->tx, 1) && !crb_vring_enable_kicks(s->tx)) {
            s->busy = false;
            crb_spin_idle(s->spin);
            return;
        }
    }
}

static void kicked(crb_wait_side *s) {
    crb_doorbell_drain(s->kick_tx);
    crb_spin_woken(s->spin);
    crb_vring_disable_kicks(s->tx);
    s->busy = true;
}

static void refilled(crb_waiter *w, crb_wait_side *s, double now) {
    crb_doorbell_drain(s->kick_rx);
    crb_vring_disable_kicks(s->rx);
    crb_flows_unblock(s->flows, s->rx, now);
    after(w, s, now);
}

// One descriptor is ready: it is served here, or the caller's.
static void ready(crb_waiter *w, const struct epoll_event *event, double now) {
    const int32_t fd = event->data.fd;
    const uint32_t owner = known(fd) ? w->owners[fd] : 0;
    crb_wait_side *s = owner == 0 ? NULL : &w->sides[(owner >> SIDE_SHIFT) - 1];
    const uint32_t what = owner & 0xffffu;
    // Datagrams wait for room: the others are left in their sockets.
    const bool full = s != NULL && what > UDP && what != KICK_RX && s->udp->reader != 0;
    if (s != NULL && lent(s) && !s->told && !full) {
        if (what == KICK_RX)
            refilled(w, s, now);
        else if (what == KICK_TX)
            kicked(s);
        else if ((what & UDP) != 0) {
            crb_udp_read(s->udp, (what & ~UDP) - 1, s->rx, now);
            after_udp(w, s);
        } else {
            crb_flow_read(s->flows, what - 1, s->rx, now);
            after(w, s, now);
        }
        return;
    }
    if (s != NULL && what == KICK_TX) {
        tell(w, s);
        return;
    }
    const uint32_t found = event->events;
    give(w, fd,
         ((found & ~(uint32_t)EPOLLOUT) != 0 ? CRB_WAIT_READ : 0u) |
             ((found & ~(uint32_t)EPOLLIN) != 0 ? CRB_WAIT_WRITE : 0u));
}

// What a call has come to.
typedef struct progress {
    double now;    // the caller's; 0: it goes on
    double worked; // seconds, in all
    int timeout;
    int error;
    bool busy; // a side has more
    bool over;
} progress;

// One wake-up.
static void turn(crb_waiter *w, const sigset_t *signals, progress *p) {
    struct epoll_event got[CRB_WAIT_EVENTS];
    const int count = epoll_pwait(w->epoll, got, CRB_WAIT_EVENTS, p->timeout, signals);
    if (count < 0) {
        p->error = errno == EINTR ? 0 : -errno;
        p->over = true;
        return;
    }
    const double begun = clock_now(), now = p->now == 0 ? begun : p->now;
    for (int i = 0; i < count; i++)
        ready(w, &got[i], now);
    p->busy = false;
    for (uint32_t i = 0; i < w->n_sides; i++) {
        if (w->sides[i].busy) serve(w, &w->sides[i], now);
        p->busy |= w->sides[i].busy;
    }
    p->worked += clock_now() - begun;
    p->over = w->n_events != 0 || p->worked > CRB_WAIT_TURN_NS / 1e9;
}

// Rounded up: a timer's moment has come then.
static int milliseconds(double seconds) {
    return seconds * 1e3 >= INT_MAX ? INT_MAX : (int)ceil(seconds * 1e3);
}

// Those that still have something go to the caller.
static void give_up(crb_waiter *w) {
    for (uint32_t i = 0; i < w->n_sides; i++)
        if (w->sides[i].busy) tell(w, &w->sides[i]);
}

// Whether anything may be served here.
static bool any_lent(const crb_waiter *w) {
    for (uint32_t i = 0; i < w->n_sides; i++)
        if (lent(&w->sides[i])) return true;
    return false;
}

int crb_waiter_wait(crb_waiter *w, double seconds, double now) {
    const double begun = clock_now();
    const bool lends = any_lent(w);
    progress p = {.now = now};
    sigset_t all, before;
    sigfillset(&all);
    if (lends) pthread_sigmask(SIG_BLOCK, &all, &before); // else there is no second turn
    w->n_events = 0;
    for (uint32_t i = 0; i < w->n_sides; i++)
        w->sides[i].told = false;
    for (int i = 0; i < (lends ? CRB_WAIT_TURNS : 1) && !p.over; i++) {
        const double left = seconds < 0 ? -1 : seconds - (i == 0 ? 0 : clock_now() - begun);
        if (seconds >= 0 && left <= 0 && i != 0 && !p.busy) break;
        p.timeout = p.busy ? 0 : seconds < 0 ? -1 : milliseconds(left);
        turn(w, lends ? &before : NULL, &p);
    }
    give_up(w);
    if (lends) pthread_sigmask(SIG_SETMASK, &before, NULL);
    return p.error != 0 ? p.error : (int)w->n_events;
}
