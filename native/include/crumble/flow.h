// Steady TCP flows between a driver's rings and sockets of the host: the way of a segment that is
// in order and has nothing special, without Python. What is not steady is left where it is (a frame
// in the ring, a byte in the socket) for who looks at everything.
//
// A flow is lent to a table and taken back; in between its numbers are here. What a guest is told
// is written down before (services/netd/README.md, "Failures"). Nothing is allocated after
// crb_flows_new. One thread at a time; no frames may wait elsewhere for the driver's ring.
#ifndef CRUMBLE_FLOW_H
#define CRUMBLE_FLOW_H

#include "crumble/frames.h"

#define CRB_FLOWS        2048
#define CRB_FLOW_BUCKETS 4096
#define CRB_FLOW_KEY     36
// Pieces of memory that are written to a socket at once.
#define CRB_FLOW_PIECES 512
// Bytes taken from a ring in one go, and read from a socket: until others get their turn.
#define CRB_FLOW_BURST 1048576
#define CRB_FLOW_READ  1048576
// Descriptors that are found by number; sockets above are read by who waits for them.
#define CRB_FLOW_FDS 65536
// From one record of a flow's numbers to the other.
#define CRB_FLOW_NUMBERS 128

// Why a flow wants to be looked at.
#define CRB_FLOW_TIMER  1 // its deadline is before `armed_at`
#define CRB_FLOW_WATCH  2 // its socket is to be watched, or not: when `credit` and not `more`
#define CRB_FLOW_RECALL 4 // it is to be taken back, and its socket to be read
#define CRB_FLOW_ERROR  8 // its socket broke: `error`

// A connection in ESTABLISHED, with nothing lost, out of order or waiting for the host. Names and
// units are those of tcp/control_block.py; first times, then 32-bit words, so that Python packs all
// in one call.
typedef struct crb_flow {
    double ts_recent_at;
    double srtt;
    double rttvar;
    double rto;
    double timed_at;
    double rtx_at;
    double persist_at;
    double keepalive_at;
    double last_sent;
    double last_received;
    double w_max;
    double w_est;
    double k;
    double epoch_start;
    double keepalive_idle;
    double armed_at;
    uint32_t snd_una;
    uint32_t snd_nxt;
    uint32_t snd_wnd;
    uint32_t snd_wl1;
    uint32_t snd_wl2;
    uint32_t max_snd_wnd;
    uint32_t cwnd;
    uint32_t rcv_nxt;
    uint32_t rcv_adv;
    uint32_t taken;
    uint32_t ts_recent;
    uint32_t last_ack_sent;
    uint32_t timed_seq;
    uint32_t freed;  // since `grant` grew
    uint32_t credit; // bytes that may be read from the socket
    uint32_t size;   // of what is in the ring, from snd_una on
    // What does not change while it is lent.
    uint32_t ssthresh;
    uint32_t mss;
    uint32_t snd_scale;
    uint32_t rcv_scale;
    uint32_t rcv_limit;
    uint32_t rcv_mss;
    uint32_t ts_ok;
    uint32_t ts_offset;
    uint32_t max_segment;
    uint32_t grows_in; // rcv_limit may grow
    uint32_t grows_at; // `freed` at which more is granted; 0: never
    uint32_t room;     // of the ring
    uint32_t fd;
    uint32_t watched; // the caller waits for the socket
    uint32_t six;
    uint8_t key[CRB_FLOW_KEY]; // addresses and ports, as in a segment from the guest
    uint8_t *ring;             // what was read and not acknowledged, by sequence number
    uint64_t *turns;           // where its numbers are written down; NULL: nowhere
    uint8_t *numbers;
    uint64_t sent; // bytes written to the socket, and read from it
    uint64_t received;
    int32_t error; // errno
    uint32_t why;
    uint16_t next; // of its bucket, + 1
    bool live;
    bool touched;
    bool listed; // in `blocked`
    bool ack_due;
    bool blocked; // there was no room in the driver's ring
    bool more;    // there may be more in the socket
} crb_flow;

typedef struct crb_flows {
    // The caller's; `ends`: MAC addresses as in a frame from the guest. left: the driver may leave
    // checksums to the device; gso4, gso6: and send large segments. cut4, cut6, fill: as in
    // crb_frame_out.
    uint8_t ends[12];
    bool left;
    bool gso4;
    bool gso6;
    bool cut4;
    bool cut6;
    bool fill;
    crb_frame_out *out;
    // For reading.
    uint32_t n_live;
    uint32_t n_events;
    uint32_t n_blocked;
    int32_t broken; // the crb_ring_error of the driver's receive ring
    bool pushed;    // something was put on that
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t tx_frames;
    uint64_t tx_bytes;
    uint64_t too_large;
    // Not the caller's.
    uint32_t *owners; // of who waits for the sockets, by descriptor; NULL: somebody else does
    uint32_t owner;   // this table
    uint16_t identification;
    uint16_t n_touched;
    uint16_t n_used;
    uint16_t batch;    // the flow whose bytes wait to be written, + 1
    uint16_t batch_at; // its first chain
    uint32_t batch_bytes;
    uint32_t n_pieces;
    uint16_t events[CRB_FLOWS];
    uint16_t blocked[CRB_FLOWS];
    uint16_t touched[CRB_BURST_CHAINS];
    uint32_t sizes[CRB_BURST_CHAINS]; // payload of a chain that waits to be written
    uint32_t frame_sizes[CRB_BURST_CHAINS];
    crb_vring_mark marks[CRB_BURST_CHAINS];
    crb_used used[CRB_BURST_CHAINS];
    crb_segment pieces[CRB_FLOW_PIECES];
    crb_chain chain;
    uint16_t buckets[CRB_FLOW_BUCKETS];
    crb_flow flows[CRB_FLOWS];
} crb_flows;

// NULL without memory.
crb_flows *crb_flows_new(void);
void crb_flows_free(crb_flows *table);

// Lends flow `index`, all of whose members up to `numbers` have been set, the rest 0. False when it
// cannot be: the index is taken, or a member is impossible.
bool crb_flow_lend(crb_flows *table, uint32_t index);
// Takes it back; its members stay as they are until it is lent again.
void crb_flow_recall(crb_flows *table, uint32_t index);

// From now on `owners[fd]` is `owner` plus a flow's index + 1 for the sockets of lent flows, and 0
// when they are taken back; NULL ends that.
void crb_flows_owned(crb_flows *table, uint32_t *owners, uint32_t owner);

// Takes chains from the driver's ring, and those that come meanwhile, as long as they hold segments
// of lent flows with nothing special; serves those flows; gives the chains back. How many, or a
// crb_ring_error when there were none before it. The first frame that is something else is left in
// the ring: `*left` then.
int crb_flows_burst(crb_flows *table, crb_vring *from, crb_vring *to, double now, bool *left);

// Reads from a flow's socket, which is readable, and serves it.
void crb_flow_read(crb_flows *table, uint32_t index, crb_vring *to, double now);

// Serves a flow, which may have something to send.
void crb_flow_push(crb_flows *table, uint32_t index, crb_vring *to, double now);

// Serves flows for which there was no room in the driver's ring.
void crb_flows_unblock(crb_flows *table, crb_vring *to, double now);

#endif
