// Ethernet frames between a driver's rings and this process, a burst at a time (virtio 1.2
// section 5.1.6). From the driver: segments of one TCP stream that follow one another become one
// (as Linux' GRO). To it: a large segment is cut, and checksums are filled in, where the driver
// does neither.
//
// What a guest wrote is copied once and only then looked at. One thread at a time.
#ifndef CRUMBLE_FRAMES_H
#define CRUMBLE_FRAMES_H

#include "crumble/vring.h"

// Chains, and bytes, of one burst. A frame is at most 14 + 65535 + 40 bytes.
#define CRB_BURST_CHAINS 256
#define CRB_BURST_BYTES  327680
#define CRB_FRAME_MAX    65589
// In `flags` of a frame that was made of several: its IP header's length is 0 when it is beyond
// that.
#define CRB_FRAME_JOINED 0x80
// The largest segment for the driver; its IP header's length is 0 when it is more than a packet.
#define CRB_SEGMENT_MAX 1048576
// Pieces that a frame for the driver may lie in, and buffers that it may take.
#define CRB_FRAME_PIECES  4
#define CRB_FRAME_BUFFERS 1024

// One frame, and its virtio_net_hdr. DATA_VALID in `flags` means that the TCP checksum was verified
// here; of the guest's own only NEEDS_CSUM is kept. 32-bit members only, so that Python unpacks it
// in one call.
typedef struct crb_frame {
    uint32_t at; // in the area
    uint32_t size;
    uint32_t frames; // of the driver's, that it was made of
    uint32_t flags;
    uint32_t gso_type;
    uint32_t hdr_len;
    uint32_t gso_size;
    uint32_t csum_start;
    uint32_t csum_offset;
} crb_frame;

typedef struct crb_burst {
    uint32_t count;     // frames
    uint32_t chains;    // taken from the ring
    uint32_t bytes;     // of them
    uint32_t too_short; // chains that hold no header,
    uint32_t too_long;  // or more than a frame; both left out
    uint32_t end;       // of what is used of `area`
    crb_frame frames[CRB_BURST_CHAINS];
    crb_used used[CRB_BURST_CHAINS];
    crb_chain chain;
    uint8_t area[CRB_BURST_BYTES];
} crb_burst;

// Takes at most `limit` chains. Segments to `mac` are joined and their checksums verified; NULL: no
// segments. `left`: the driver may leave checksums to the device (VIRTIO_NET_F_CSUM). Returns how
// many chains were taken, or a crb_ring_error when there were none before it.
int crb_frames_take(crb_vring *ring, crb_burst *burst, uint32_t limit, const uint8_t *mac,
                    bool left);

// Gives the burst's chains back. 0, or -1 when one was not in flight.
int crb_frames_give(crb_vring *ring, const crb_burst *burst);

// A frame for the driver. The caller fills in the first part.
typedef struct crb_frame_out {
    bool merge; // it may take several buffers (VIRTIO_NET_F_MRG_RXBUF)
    bool cut;   // a large segment, of a gso_type that the driver does not take. One that is more
                // than a packet is cut into such as it takes
    bool fill;  // the driver wants checksums
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint32_t n_pieces;
    crb_segment pieces[CRB_FRAME_PIECES];
    uint32_t done; // payload bytes of a cut segment that have been put; 0 at first
    crb_used used[CRB_FRAME_BUFFERS];
    crb_chain chain;
    uint8_t scratch[CRB_FRAME_MAX];
} crb_frame_out;

// Puts it on the ring: 1; 0 when there are not enough buffers (call again with the same frame when
// there are more: nothing is held back but what `done` tells); 2 when it does not fit a buffer, or
// is not what its header says; or a crb_ring_error.
int crb_frames_put(crb_vring *ring, crb_frame_out *out);

#endif
