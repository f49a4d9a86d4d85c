// UDP flows between a driver's rings and connected sockets of the host: datagrams with nothing
// special, a burst at a time, without Python. A frame that is anything else is left in the ring,
// and a datagram that needs fragments is handed over, for who looks at everything.
//
// A flow is lent to a table and taken back. There is no state but when it was last used and how
// much went by: Python may serve the same flow meanwhile. Nothing is allocated after
// crb_udp_flows_new. One thread at a time.
#ifndef CRUMBLE_UDP_FLOW_H
#define CRUMBLE_UDP_FLOW_H

#include "crumble/flow.h"

#define CRB_UDP_FLOWS   1024
#define CRB_UDP_BUCKETS 2048
// Pieces of memory that are sent to a socket at once: Linux' UIO_MAXIOV.
#define CRB_UDP_PIECES 1024
// Datagrams read from a socket in one call, and bytes of the largest.
#define CRB_UDP_READ 32
#define CRB_UDP_SIZE 65536

typedef struct crb_udp_flow {
    double last;   // when a datagram went either way
    uint64_t sent; // payload from the guest, and to it, since they were last looked at
    uint64_t received;
    uint32_t fd;
    int32_t error; // errno
    uint16_t next; // of its bucket, + 1
    bool six;
    bool live;
    bool cuts;                 // the host's kernel cuts what it is given (UDP_SEGMENT)
    uint8_t key[CRB_FLOW_KEY]; // addresses and ports, as in a datagram from the guest
} crb_udp_flow;

typedef struct crb_udp_flows {
    // The caller's. ends: MAC addresses as in a frame from the guest. left: the driver may leave
    // checksums to the device; fill: it wants them. mtu: of the guest.
    uint8_t ends[12];
    bool left;
    bool fill;
    uint32_t mtu;
    crb_frame_out *out;
    // For reading.
    uint32_t n_live;
    uint32_t n_events;
    int32_t broken; // the crb_ring_error of the driver's receive ring
    bool pushed;    // something was put on that
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t tx_frames;
    uint64_t tx_bytes;
    uint64_t too_large;
    uint16_t events[CRB_UDP_FLOWS]; // flows with an `error`
    // Datagrams of flow `reader` - 1 that were read: those from n_put on wait, for room in the
    // driver's ring or, when `odd`, to be taken by the caller.
    uint32_t reader;
    uint32_t n_read;
    uint32_t n_put;
    bool odd;
    uint32_t read_sizes[CRB_UDP_READ];
    // Not the caller's.
    uint32_t *owners; // of who waits for the sockets, by descriptor; NULL: somebody else does
    uint32_t owner;   // this table
    uint16_t identification;
    uint32_t batch; // the flow whose datagrams wait to be sent, + 1
    uint32_t n_messages;
    uint32_t n_pieces;
    uint32_t n_used;
    uint32_t firsts[CRB_BURST_CHAINS]; // of a datagram: its first piece, how many, its bytes
    uint32_t counts[CRB_BURST_CHAINS];
    uint32_t sizes[CRB_BURST_CHAINS];
    crb_used used[CRB_BURST_CHAINS];
    crb_segment pieces[CRB_UDP_PIECES];
    crb_chain chain;
    uint16_t buckets[CRB_UDP_BUCKETS];
    crb_udp_flow flows[CRB_UDP_FLOWS];
    uint8_t data[CRB_UDP_READ][CRB_UDP_SIZE];
} crb_udp_flows;

// NULL without memory.
crb_udp_flows *crb_udp_flows_new(void);
void crb_udp_flows_free(crb_udp_flows *table);

// Lends flow `index`, whose `key`, `six` and `fd` have been set. False when it cannot be: the index
// or the key is taken.
bool crb_udp_lend(crb_udp_flows *table, uint32_t index, double now);
// Takes it back; what waits of it is lost.
void crb_udp_recall(crb_udp_flows *table, uint32_t index);

// As crb_flows_owned.
void crb_udp_owned(crb_udp_flows *table, uint32_t *owners, uint32_t owner);

// Takes chains from the driver's ring as long as they hold datagrams of lent flows with nothing
// special, sends those and gives the chains back: how many, or a crb_ring_error when there were
// none before it. The first frame that is something else is left in the ring: `*left` then.
int crb_udp_burst(crb_udp_flows *table, crb_vring *from, double now, bool *left);

// Reads from a flow's socket, which is readable, onto the driver's ring. Not while there is a
// `reader`.
void crb_udp_read(crb_udp_flows *table, uint32_t index, crb_vring *to, double now);

// Puts those that wait on the driver's ring, from the next one on (an odd one has been taken).
void crb_udp_resume(crb_udp_flows *table, crb_vring *to);

#endif
