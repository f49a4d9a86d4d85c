// A split virtqueue, device side (virtio 1.2 section 2.7), over guest memory.
//
// Everything in a ring is written by the guest and is hostile: each field is read once into a
// local, checked, and only then used. A ring that breaks a rule is broken for good: every later pop
// returns the same error until the driver resets the device and a new crb_vring is made.
//
// One thread at a time. The driver's side may run concurrently on any number of CPUs.
#ifndef CRUMBLE_VRING_H
#define CRUMBLE_VRING_H

#include "crumble/memory.h"

// Section 2.7.1: at most 32768 entries, a power of two.
#define CRB_RING_MAX_SIZE 32768
// Descriptors in one chain, indirect ones counted. Section 2.7.5.3.1 forbids more than the queue
// size; Linux and Windows drivers keep to it except for indirect tables of queues smaller than
// 1024, and QEMU's own cap is 1024, so no working driver goes beyond it.
#define CRB_CHAIN_MAX_DESCRIPTORS 1024
// Host pieces of one chain. In layered memory a piece ends at a page's end unless the next page is
// in the same layer: 4096 pieces are 16 MiB in the worst case, four times the largest request any
// Linux driver makes (virtio-fs with 1024 pages).
#define CRB_CHAIN_MAX_SEGMENTS 4096

// What is wrong with a ring; the text is in crumble_native.vring.
enum crb_ring_error {
    CRB_RING_AVAIL_JUMP = -1,   // avail index is more than a queue ahead
    CRB_RING_HEAD = -2,         // head index outside the table
    CRB_RING_BUSY_HEAD = -3,    // head made available again before it was used
    CRB_RING_NEXT = -4,         // next index outside the table
    CRB_RING_LOOP = -5,         // more descriptors than the table holds
    CRB_RING_TOO_LONG = -6,     // more than CRB_CHAIN_MAX_DESCRIPTORS or _SEGMENTS, or 4 GiB
    CRB_RING_ORDER = -7,        // a readable buffer after a writable one
    CRB_RING_EMPTY_BUFFER = -8, // a buffer of no bytes
    CRB_RING_ADDRESS = -9,      // a buffer or indirect table outside guest memory
    CRB_RING_INDIRECT = -10,    // indirect descriptor, not negotiated
    CRB_RING_INDIRECT_NESTED = -11,
    CRB_RING_INDIRECT_NEXT = -12, // indirect descriptor with NEXT
    CRB_RING_INDIRECT_SIZE = -13, // table empty, not a multiple of 16, or too long
};

// The same layout as struct iovec.
typedef struct crb_segment {
    uint8_t *at;
    uint64_t length;
} crb_segment;

// One descriptor chain as host memory: readable pieces first, then writable ones. Adjacent pieces
// are merged; how a driver cuts its buffers means nothing (section 2.6.4). 64-bit members only, so
// that Python unpacks it in one call.
typedef struct crb_chain {
    uint64_t head;
    uint64_t n_readable;
    uint64_t n_writable;
    uint64_t readable_length;
    uint64_t writable_length;
    crb_segment segments[CRB_CHAIN_MAX_SEGMENTS];
} crb_chain;

// A chain that is given back: the same layout as virtq_used_elem.
typedef struct crb_used {
    uint32_t head;
    uint32_t written;
} crb_used;

// vhost-user's in-flight region of one split ring ("Inflight I/O tracking" of the vhost-user
// protocol). Written by this process, kept by the front end; hostile when it comes back.
typedef struct crb_inflight_entry {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;
    uint64_t counter;
} crb_inflight_entry;

typedef struct crb_inflight {
    uint64_t features;
    uint16_t version;
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    crb_inflight_entry desc[];
} crb_inflight;

// Members are for reading; the functions below change them.
typedef struct crb_vring {
    crb_memory *memory;
    uint16_t size;
    uint16_t last_avail;   // next avail index to pop
    uint16_t shadow_avail; // avail index last seen
    uint16_t used_idx;     // next used index to fill
    uint16_t notified;     // used_idx when the driver was last asked about a notification
    uint16_t in_flight;    // chains popped and not pushed
    int16_t broken;        // 0 or the crb_ring_error that broke it
    bool event_idx;
    bool indirect;
    bool notified_valid;
    const uint8_t *desc;
    uint8_t *avail;
    uint8_t *used;
    uint64_t used_gpa;
    uint64_t *busy;         // a bit a head: popped and not pushed
    crb_inflight *inflight; // NULL without in-flight tracking
    uint64_t counter;       // of the next in-flight record
    uint16_t *resubmit;     // heads that a predecessor popped and never pushed, oldest first
    uint16_t n_resubmit;
    uint16_t next_resubmit;
} crb_vring;

// A ring of `size` entries at the guest-physical addresses given, its avail index starting at
// `base` and its used index read from the ring. NULL with errno EINVAL (size not a power of two ≤
// 32768, misaligned part), EFAULT (a part outside guest memory or not contiguous on the host) or
// ENOMEM. `memory` must live as long as the ring.
crb_vring *crb_vring_new(crb_memory *memory, uint32_t size, uint64_t desc, uint64_t avail,
                         uint64_t used, uint16_t base, bool event_idx, bool indirect);
void crb_vring_free(crb_vring *ring);

// Takes the next chain. Returns the number of segments (> 0), 0 when the ring is empty, or a
// crb_ring_error, upon which nothing was taken. The chain is in flight until pushed. Writable pages
// are marked dirty and stale here, before the device writes them: no sane guest executes or
// snapshots a buffer it has lent.
int crb_vring_pop(crb_vring *ring, crb_chain *chain);

// Gives the chain of `head` back with `written` bytes written at the start of its writable part.
// 0, or -1 when `head` is not in flight.
int crb_vring_push(crb_vring *ring, uint16_t head, uint32_t written);

// Gives several chains back at once: the driver sees all of them or none, also when this process is
// killed. Each head once.
int crb_vring_push_batch(crb_vring *ring, const crb_used *used, uint32_t count);

// What a ring has been popped of, for who may not keep what is popped next.
typedef struct crb_vring_mark {
    uint16_t last_avail;
    uint16_t next_resubmit;
} crb_vring_mark;
crb_vring_mark crb_vring_mark_of(const crb_vring *ring);

// Undoes all pops since the mark, none of whose `count` chains has been pushed: they come again.
void crb_vring_untake(crb_vring *ring, const crb_vring_mark *mark, const crb_used *taken,
                      uint32_t count);

// True when the driver wants a notification for what was pushed since the last call.
bool crb_vring_should_notify(crb_vring *ring);

// Asks the driver for kicks; true when chains are already there, so that a kick may never come.
bool crb_vring_enable_kicks(crb_vring *ring);
// Asks for a kick when there is more than there was at the last pop, taken or not; true when there
// is already.
bool crb_vring_want_more(crb_vring *ring);
// Asks for no kicks (a hint: with EVENT_IDX one more may come).
void crb_vring_disable_kicks(crb_vring *ring);

// True when pop would not return 0. One shared load; for polling.
bool crb_vring_pending(const crb_vring *ring);

// Bytes of a split ring's in-flight region, 0 when `size` is not a valid queue size.
uint64_t crb_inflight_size(uint32_t size);

// Tracks in-flight chains in `region` (crb_inflight_size(size) bytes, 8-byte aligned, zeroed when
// new) and queues what it says was left undone for resubmission: pop returns those chains first.
// Before the first pop. 0, or -1 with errno EINVAL when the region belongs to another kind of ring.
int crb_vring_track(crb_vring *ring, uint8_t *region);

#endif
