// TCP segments, and datagrams, in Ethernet frames: what frames.c, flow.c and udp_flow.c have in
// common.
#ifndef CRUMBLE_SEGMENT_H
#define CRUMBLE_SEGMENT_H

#include "crumble/checksum.h"
#include "crumble/vring.h"

#include <string.h>

#define NET_HDR 12u // struct virtio_net_hdr with num_buffers
#define ETH     14u
#define TCP     20u
#define IP4     20u
#define IP6     40u
#define HEADS   134u // Ethernet's, and the longest of IPv4 and TCP
// The most payload of one IP packet, whatever its headers.
#define LARGEST    65415u
#define PROTO_TCP  6u
#define FIN        0x01u
#define PSH        0x08u
#define ACK        0x10u
#define CWR        0x80u
#define NEEDS_CSUM 1u
#define DATA_VALID 2u
#define GSO_TCPV4  1u
#define GSO_TCPV6  4u
#define GSO_ECN    0x80u

static inline uint32_t be16(const uint8_t *at) {
    return (uint32_t)at[0] << 8 | at[1];
}

static inline uint32_t be32(const uint8_t *at) {
    return be16(at) << 16 | be16(at + 2);
}

static inline uint32_t le16(const uint8_t *at) {
    return at[0] | (uint32_t)at[1] << 8;
}

static inline void put16(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void put32(uint8_t *at, uint32_t value) {
    put16(at, value >> 16);
    put16(at + 2, value & 0xffff);
}

// A folded sum of bytes that begin at an odd place.
static inline uint32_t swapped(uint32_t sum) {
    return (sum & 0xff) << 8 | sum >> 8;
}

// The sum of a TCP pseudo-header: RFC 9293 section 3.1, RFC 8200 section 8.1.
static inline uint32_t pseudo(const uint8_t *ip, bool six, uint32_t length) {
    const uint8_t *addresses = six ? ip + 8 : ip + 12;
    const uint32_t sum = crb_checksum_sum(addresses, six ? 32 : 8, PROTO_TCP) + length;
    return (sum & 0xffff) + (sum >> 16);
}

static inline void sum_ip4(uint8_t *ip, uint32_t size) {
    put16(ip + 10, 0);
    put16(ip + 10, crb_checksum_sum(ip, size, 0) ^ 0xffff);
}

// Where the parts of a TCP segment, or of a datagram, are, from the frame's start.
typedef struct segment {
    bool six;
    uint32_t tcp;
    uint32_t data;
    uint32_t end; // of the IP packet; what follows is padding
} segment;

static inline bool ip4_head(const uint8_t *frame, uint32_t size, uint32_t protocol, uint32_t least,
                            segment *found) {
    const uint8_t *ip = frame + ETH;
    const uint32_t length = be16(ip + 2);
    if (ip[0] != 0x45 || (be16(ip + 6) & 0x3fff) != 0 || ip[9] != protocol) return false;
    if (length < IP4 + least || ETH + length > size) return false;
    if (crb_checksum_sum(ip, IP4, 0) != 0xffff) return false;
    *found = (segment){.six = false, .tcp = ETH + IP4, .end = ETH + length};
    return true;
}

static inline bool ip6_head(const uint8_t *frame, uint32_t size, uint32_t protocol, uint32_t least,
                            segment *found) {
    const uint8_t *ip = frame + ETH;
    const uint32_t length = be16(ip + 4);
    if (ip[0] >> 4 != 6 || ip[6] != protocol || length < least) return false;
    if (ETH + IP6 + length > size) return false;
    *found = (segment){.six = true, .tcp = ETH + IP6, .end = ETH + IP6 + length};
    return true;
}

// Whether a frame, of which `heads` holds what headers may take, is a packet of a protocol with at
// least so many bytes: no fragment, no IP options.
static inline bool is_packet(const uint8_t *heads, uint32_t size, uint32_t protocol, uint32_t least,
                             segment *found) {
    if (size < ETH + IP4 + least) return false;
    const uint32_t kind = be16(heads + 12);
    if (kind == 0x86dd)
        return size >= ETH + IP6 + least && ip6_head(heads, size, protocol, least, found);
    return kind == 0x0800 && ip4_head(heads, size, protocol, least, found);
}

// Whether it is a segment with nothing special: ACK and perhaps PSH set and nothing else.
static inline bool is_segment(const uint8_t *heads, uint32_t size, segment *found) {
    if (!is_packet(heads, size, PROTO_TCP, TCP, found)) return false;
    const uint8_t *tcp = heads + found->tcp;
    found->data = found->tcp + (tcp[12] >> 4) * 4u;
    if (tcp[12] >> 4 < 5 || found->data > found->end || (tcp[12] & 0x0f) != 0) return false;
    return (tcp[13] & ~PSH) == ACK && be16(tcp) != 0 && be16(tcp + 2) != 0;
}

// Bytes [skip, skip + size) of what the driver lets us read, which has so many.
typedef struct chain_walk {
    const crb_chain *chain;
    uint32_t skip;
    uint32_t size; // left
    uint32_t at;   // the next segment
} chain_walk;

// The next run of them; false at the end.
static inline bool chain_next(chain_walk *walk, crb_segment *run) {
    while (walk->size != 0) {
        const crb_segment piece = walk->chain->segments[walk->at++];
        if (walk->skip >= piece.length) {
            walk->skip -= (uint32_t)piece.length;
            continue;
        }
        const uint64_t rest = piece.length - walk->skip;
        *run = (crb_segment){piece.at + walk->skip, rest < walk->size ? rest : walk->size};
        walk->size -= (uint32_t)run->length;
        walk->skip = 0;
        return true;
    }
    return false;
}

// A copy of them.
static inline void chain_read(const crb_chain *chain, uint32_t skip, uint8_t *to, uint32_t size) {
    chain_walk walk = {chain, skip, size, 0};
    for (crb_segment run; chain_next(&walk, &run); to += run.length)
        memcpy(to, run.at, run.length);
}

// What they lie in: how many pieces; more than `room` when that is too little.
static inline uint32_t chain_pieces(const crb_chain *chain, uint32_t skip, uint32_t size,
                                    crb_segment *found, uint32_t room) {
    chain_walk walk = {chain, skip, size, 0};
    uint32_t n = 0;
    for (crb_segment run; chain_next(&walk, &run); found[n++] = run)
        if (n == room) return room + 1;
    return n;
}

// `sum` and that of them.
static inline uint32_t chain_sum(const crb_chain *chain, uint32_t skip, uint32_t size,
                                 uint32_t sum) {
    chain_walk walk = {chain, skip, size, 0};
    bool odd = false;
    for (crb_segment run; chain_next(&walk, &run); odd ^= (run.length & 1) != 0) {
        const uint32_t part = crb_checksum_sum(run.at, run.length, 0);
        sum += odd ? swapped(part) : part;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

// The length field of an IP header: 0 when it cannot say it, as in Linux' BIG TCP.
static inline void set_length(uint8_t *ip, bool six, uint32_t length) {
    if (six) {
        put16(ip + 4, length - IP6 > 65535 ? 0 : length - IP6);
    } else {
        put16(ip + 2, length > 65535 ? 0 : length);
        sum_ip4(ip, (ip[0] & 15u) * 4);
    }
}

#endif
