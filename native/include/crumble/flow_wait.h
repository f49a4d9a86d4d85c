// Waiting for a service's descriptors, and serving lent flows (crumble/flow.h, udp_flow.h)
// meanwhile: a kick of a driver's ring goes to the sockets, bytes in a socket go to the ring, and
// only what is something else is returned. The descriptors are those of the caller's epoll(7) set,
// level-triggered, each with itself as data.
//
// A guest's two rings are a side. One that wants to be looked at (a frame that is not plain, a
// flow's event, a broken ring, a ring that never ends) is returned as its kick, whether or not that
// is readable: then whoever serves it takes the next burst, looks at the flows' events and asks for
// kicks. One thread; signals are let in only while it sleeps, so none waits for the next event.
#ifndef CRUMBLE_FLOW_WAIT_H
#define CRUMBLE_FLOW_WAIT_H

#include "crumble/doorbell.h"
#include "crumble/flow.h"
#include "crumble/udp_flow.h"

#define CRB_WAIT_SIDES 256
// Events that are returned at once, and taken from epoll.
#define CRB_WAIT_EVENTS 64
// Wake-ups, and nanoseconds of work without a sleep, until the caller gets its turn.
#define CRB_WAIT_TURNS   256
#define CRB_WAIT_TURN_NS 4000000
// Bursts of one side, and rounds of those that had no room, until others get their turn.
#define CRB_WAIT_BURSTS 4
#define CRB_WAIT_ROUNDS 16

#define CRB_WAIT_READ  1
#define CRB_WAIT_WRITE 2

// kick_rx, kick_tx: of the rings that the driver receives by and sends by. call: to interrupt it.
typedef struct crb_wait_side {
    crb_flows *flows;   // NULL: nobody
    crb_udp_flows *udp; // NULL: none of these
    crb_vring *rx;
    crb_vring *tx;
    crb_spin *spin;
    int32_t kick_rx;
    int32_t kick_tx;
    int32_t call_rx;
    int32_t call_tx;
    bool busy; // was kicked, and its kicks are not asked for yet
    bool told; // is among what is returned
} crb_wait_side;

typedef struct crb_wait_event {
    int32_t fd;
    uint32_t mask; // CRB_WAIT_…, both when it is hung up or broken
} crb_wait_event;

typedef struct crb_waiter {
    // For reading.
    uint64_t chains; // taken here
    uint32_t n_events;
    crb_wait_event events[CRB_WAIT_EVENTS + CRB_WAIT_SIDES];
    // Not the caller's.
    int32_t epoll;
    uint32_t n_sides; // that have been used
    crb_wait_side sides[CRB_WAIT_SIDES];
    uint32_t owners[CRB_FLOW_FDS];
} crb_waiter;

// NULL without memory.
crb_waiter *crb_waiter_new(int epoll);
void crb_waiter_free(crb_waiter *waiter);

// Serves a side's flows from now on: its number, or -1 when there are too many, or a descriptor is
// too large. All of it must live until it is removed, which is done before a descriptor is closed.
int crb_waiter_add(crb_waiter *waiter, const crb_wait_side *side);
void crb_waiter_remove(crb_waiter *waiter, uint32_t side);

// Waits at most `seconds` (below 0: for ever) for something that is the caller's. Returns how many
// `events` there are: none when time is over, a signal came, or it is the caller's turn; or -errno.
// now: the time in seconds; 0: that of CLOCK_MONOTONIC, which goes on meanwhile.
int crb_waiter_wait(crb_waiter *waiter, double seconds, double now);

#endif
