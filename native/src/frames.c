// Frames from and to a driver's rings. See frames.h for the contract.
#include "crumble/frames.h"

#include "segment.h"

// ---- From the driver.

static bool same(const uint8_t *one, const uint8_t *other, uint32_t from, uint32_t to) {
    return memcmp(one + from, other + from, to - from) == 0;
}

// Of one stream, and told apart only by what joining takes care of.
static bool same_stream(const uint8_t *one, const uint8_t *other, const segment *at) {
    const uint32_t tcp = at->tcp;
    if (!same(one, other, 0, ETH) || !same(one, other, tcp, tcp + 4)) return false;
    if (one[tcp + 12] != other[tcp + 12] || !same(one, other, tcp + 18, tcp + TCP)) return false;
    if (at->six) return same(one, other, ETH, ETH + 4) && same(one, other, ETH + 6, ETH + IP6);
    return same(one, other, ETH, ETH + 2) && same(one, other, ETH + 6, ETH + 10) &&
           same(one, other, ETH + 12, ETH + IP4);
}

// The last frame of a burst, while something may be joined to it.
typedef struct stream {
    crb_frame *frame; // NULL: nothing may
    segment at;
    bool left; // its checksum was left to us
} stream;

static bool follows(const uint8_t *last, const stream *open, const uint8_t *next,
                    const segment *at) {
    const uint32_t tcp = at->tcp, size = open->at.end - open->at.data;
    return size != 0 && at->end != at->data &&
           be32(next + tcp + 4) == be32(last + tcp + 4) + size &&
           same(last, next, tcp + 8, tcp + 12) && same(last, next, tcp + 14, tcp + 16) &&
           same(last, next, tcp + TCP, at->data);
}

// An ACK, and nothing else, that says more than the last one: only that is passed on. Options other
// than timestamps may say something of their own.
static bool supersedes(const uint8_t *last, const stream *open, const uint8_t *next,
                       const segment *at) {
    static const uint8_t stamps[4] = {1, 1, 8, 10};
    const uint32_t tcp = at->tcp, options = at->data - tcp - TCP;
    if (open->at.end != open->at.data || at->end != at->data) return false;
    if (last[tcp + 13] != ACK || next[tcp + 13] != ACK) return false;
    if (!same(last, next, tcp + 4, tcp + 8)) return false;
    if ((int32_t)(be32(next + tcp + 8) - be32(last + tcp + 8)) <= 0) return false;
    if (options == 0) return true;
    const uint8_t *one = last + tcp + TCP, *other = next + tcp + TCP;
    return options == 12 && memcmp(one, stamps, 4) == 0 && memcmp(other, stamps, 4) == 0 &&
           (int32_t)(be32(other + 4) - be32(one + 4)) >= 0;
}

static bool sums_up(const uint8_t *heads, const segment *at, const uint8_t *data) {
    const uint32_t start = pseudo(heads + ETH, at->six, at->end - at->tcp);
    const uint32_t head = crb_checksum_sum(heads + at->tcp, at->data - at->tcp, start);
    return crb_checksum_sum(data, at->end - at->data, head) == 0xffff;
}

// The header of the frame that has grown by `size` bytes.
static void grow(uint8_t *last, stream *open, uint32_t size, bool push) {
    open->at.end += size;
    open->frame->size += size;
    open->frame->flags |= CRB_FRAME_JOINED;
    if (push) last[open->at.tcp + 13] |= PSH;
    set_length(last + ETH, open->at.six, open->at.end - ETH);
}

// Whether the frame in the chain became part of the last one.
static bool join(crb_burst *burst, stream *open, const uint8_t *heads, const segment *at,
                 bool left) {
    if (open->frame == NULL || open->at.six != at->six || open->left != left) return false;
    uint8_t *last = burst->area + open->frame->at;
    if (!same_stream(last, heads, at)) return false;
    const uint32_t size = at->end - at->data;
    if (supersedes(last, open, heads, at)) {
        if (!left && !sums_up(heads, at, heads)) return false;
        memcpy(last, heads, at->end);
    } else if (follows(last, open, heads, at)) {
        uint8_t *to = burst->area + burst->end;
        chain_read(&burst->chain, NET_HDR + at->data, to, size);
        if (!left && !sums_up(heads, at, to)) return false;
        grow(last, open, size, (heads[at->tcp + 13] & PSH) != 0);
        burst->end += size;
    } else {
        return false;
    }
    open->frame->frames++;
    return true;
}

static crb_frame *add(crb_burst *burst, const uint8_t *header, uint32_t size) {
    crb_frame *frame = &burst->frames[burst->count++];
    *frame = (crb_frame){.at = burst->end,
                         .size = size,
                         .frames = 1,
                         .flags = header[0] & NEEDS_CSUM,
                         .gso_type = header[1],
                         .hdr_len = le16(header + 2),
                         .gso_size = le16(header + 4),
                         .csum_start = le16(header + 6),
                         .csum_offset = le16(header + 8)};
    chain_read(&burst->chain, NET_HDR, burst->area + burst->end, size);
    burst->end += size;
    return frame;
}

static void take_frame(crb_burst *burst, stream *open, const uint8_t *mac, bool may_leave) {
    const uint32_t size = (uint32_t)burst->chain.readable_length - NET_HDR;
    uint8_t header[NET_HDR], heads[HEADS];
    segment at;
    chain_read(&burst->chain, 0, header, NET_HDR);
    const uint32_t have = size < HEADS ? size : HEADS;
    chain_read(&burst->chain, NET_HDR, heads, have);
    const bool left = (header[0] & NEEDS_CSUM) != 0;
    bool joins = mac != NULL && is_segment(heads, size, &at) && memcmp(heads, mac, 6) == 0;
    if (header[1] != 0) joins = joins && left && header[1] == (at.six ? GSO_TCPV6 : GSO_TCPV4);
    if (left) joins = joins && may_leave && le16(header + 6) == at.tcp && le16(header + 8) == 16;
    if (joins && join(burst, open, heads, &at, left)) return;
    crb_frame *frame = add(burst, header, size);
    open->frame = NULL;
    if (!joins) return;
    // The copy is what counts: the driver may have written something else since.
    const uint8_t *copy = burst->area + frame->at;
    if (!is_segment(copy, size, &at) || memcmp(copy, mac, 6) != 0) return;
    if (!left && !sums_up(copy, &at, copy + at.data)) return;
    burst->end -= frame->size - at.end;
    frame->size = at.end;
    if (!left) frame->flags |= DATA_VALID;
    *open = (stream){.frame = frame, .at = at, .left = left};
}

int crb_frames_take(crb_vring *ring, crb_burst *burst, uint32_t limit, const uint8_t *mac,
                    bool left) {
    stream open = {.frame = NULL};
    burst->count = burst->chains = burst->bytes = burst->too_short = burst->too_long = 0;
    burst->end = 0;
    if (limit > CRB_BURST_CHAINS) limit = CRB_BURST_CHAINS;
    while (burst->chains < limit && CRB_BURST_BYTES - burst->end >= CRB_FRAME_MAX) {
        const int n = crb_vring_pop(ring, &burst->chain);
        // A broken ring says so again next time.
        if (n <= 0) return burst->chains != 0 ? (int)burst->chains : n;
        burst->used[burst->chains++] = (crb_used){.head = (uint32_t)burst->chain.head};
        burst->bytes += (uint32_t)burst->chain.readable_length;
        if (burst->chain.readable_length < NET_HDR)
            burst->too_short++;
        else if (burst->chain.readable_length > NET_HDR + CRB_FRAME_MAX)
            burst->too_long++;
        else
            take_frame(burst, &open, mac, left);
    }
    return (int)burst->chains;
}

int crb_frames_give(crb_vring *ring, const crb_burst *burst) {
    return crb_vring_push_batch(ring, burst->used, burst->chains);
}

// ---- To the driver.

// Buffers of the ring that are being filled.
typedef struct sink {
    crb_vring *ring;
    crb_frame_out *out;
    uint32_t n;
    uint64_t piece; // of the chain
    uint64_t at;    // in that
    uint8_t *last;  // the last byte written
} sink;

// The next buffer: as crb_frames_put.
static int next_buffer(sink *to) {
    if (to->n == CRB_FRAME_BUFFERS || (to->n != 0 && !to->out->merge)) return 2;
    const int n = crb_vring_pop(to->ring, &to->out->chain);
    if (n <= 0) return n;
    to->out->used[to->n++] = (crb_used){.head = (uint32_t)to->out->chain.head};
    to->piece = to->out->chain.n_readable;
    to->at = 0;
    return 1;
}

static int sink_write(sink *to, const uint8_t *data, uint64_t size) {
    const crb_chain *chain = &to->out->chain;
    while (size != 0) {
        if (to->n == 0 || to->piece == chain->n_readable + chain->n_writable) {
            const int result = next_buffer(to);
            if (result != 1) return result;
            continue;
        }
        const crb_segment piece = chain->segments[to->piece];
        const uint64_t run = piece.length - to->at < size ? piece.length - to->at : size;
        memcpy(piece.at + to->at, data, run);
        to->last = piece.at + to->at + run - 1;
        to->out->used[to->n - 1].written += (uint32_t)run;
        to->at += run;
        data += run;
        size -= run;
        if (to->at == piece.length) {
            to->piece++;
            to->at = 0;
        }
    }
    return 1;
}

static int write_all(sink *to, const uint8_t *header, const crb_segment *pieces, uint32_t count) {
    uint8_t *n_buffers[2] = {NULL, NULL};
    int result = sink_write(to, header, NET_HDR - 2);
    for (uint32_t i = 0; i < 2 && result == 1; i++) {
        result = sink_write(to, header + NET_HDR - 2 + i, 1);
        n_buffers[i] = to->last;
    }
    for (uint32_t i = 0; i < count && result == 1; i++)
        result = sink_write(to, pieces[i].at, pieces[i].length);
    if (n_buffers[1] != NULL) {
        *n_buffers[0] = (uint8_t)to->n;
        *n_buffers[1] = (uint8_t)(to->n >> 8);
    }
    return result;
}

// One frame, as it is to be seen: all of it or, without room, nothing.
static int put_frame(crb_vring *ring, crb_frame_out *out, const uint8_t *header,
                     const crb_segment *pieces, uint32_t count) {
    const crb_vring_mark mark = crb_vring_mark_of(ring);
    sink to = {.ring = ring, .out = out};
    const int result = write_all(&to, header, pieces, count);
    if (result <= 0)
        crb_vring_untake(ring, &mark, out->used, to.n);
    else
        crb_vring_push_batch(ring, out->used, to.n);
    return result;
}

// Copies [from, from + size) of the frame; it has so many bytes.
static void gather(const crb_frame_out *out, uint64_t from, uint8_t *to, uint64_t size) {
    for (uint32_t i = 0; i < out->n_pieces && size != 0; i++) {
        const crb_segment piece = out->pieces[i];
        if (from >= piece.length) {
            from -= piece.length;
            continue;
        }
        const uint64_t run = piece.length - from < size ? piece.length - from : size;
        memcpy(to, piece.at + from, run);
        to += run;
        size -= run;
        from = 0;
    }
}

static uint64_t total(const crb_frame_out *out) {
    uint64_t size = 0;
    for (uint32_t i = 0; i < out->n_pieces; i++)
        size += out->pieces[i].length;
    return size;
}

static int put_filled(crb_vring *ring, crb_frame_out *out) {
    const uint64_t size = total(out);
    const uint32_t start = out->csum_start, at = start + out->csum_offset;
    static const uint8_t header[NET_HDR];
    if (size > CRB_FRAME_MAX || start > size || at + 2 > size) return 2;
    gather(out, 0, out->scratch, size);
    // The field holds the pseudo-header's sum.
    const uint32_t sum = crb_checksum_sum(out->scratch + start, size - start, 0) ^ 0xffff;
    put16(out->scratch + at, sum != 0 ? sum : 0xffff);
    const crb_segment whole = {.at = out->scratch, .length = size};
    return put_frame(ring, out, header, &whole, 1);
}

// The frame's virtio_net_hdr. small: it is no large segment (any more).
static void net_header(const crb_frame_out *out, bool small, uint8_t *header) {
    const uint16_t fields[4] = {out->hdr_len, small ? 0 : out->gso_size, out->csum_start,
                                out->csum_offset};
    header[0] = out->flags;
    header[1] = small ? 0 : out->gso_type;
    memcpy(header + 2, fields, sizeof fields);
}

static int put_whole(crb_vring *ring, crb_frame_out *out) {
    uint8_t header[NET_HDR];
    if (total(out) > CRB_FRAME_MAX) return 2;
    net_header(out, out->gso_type == 0, header);
    return put_frame(ring, out, header, out->pieces, out->n_pieces);
}

// What the bytes [from, from + size) of the frame lie in; how many pieces.
static uint32_t slice(const crb_frame_out *out, uint64_t from, uint64_t size, crb_segment *found) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < out->n_pieces && size != 0; i++) {
        const crb_segment piece = out->pieces[i];
        if (from >= piece.length) {
            from -= piece.length;
            continue;
        }
        const uint64_t run = piece.length - from < size ? piece.length - from : size;
        found[n++] = (crb_segment){.at = piece.at + from, .length = run};
        size -= run;
        from = 0;
    }
    return n;
}

// Lengths, numbers and flags of a piece of a large segment: of its headers, which are at `frame`.
static void number(uint8_t *frame, const segment *at, uint32_t from, uint32_t index, bool last) {
    uint8_t *ip = frame + ETH, *tcp = frame + at->tcp;
    put32(tcp + 4, be32(tcp + 4) + from);
    if (!last) tcp[13] &= (uint8_t)~(FIN | PSH);
    if (from != 0) tcp[13] &= (uint8_t)~CWR; // of the first only: RFC 3168 section 6.1.2
    if (!at->six) put16(ip + 4, be16(ip + 4) + index);
    set_length(ip, at->six, at->end - ETH);
    // What is left to the driver is the pseudo-header's sum.
    put16(tcp + 16, pseudo(ip, at->six, at->end - at->tcp));
}

// Where the parts of a large segment are; false when it is none.
static bool large(const crb_frame_out *out, segment *at, uint64_t size) {
    uint8_t heads[HEADS];
    if (out->hdr_len > HEADS || out->hdr_len > size || out->gso_size == 0) return false;
    gather(out, 0, heads, out->hdr_len);
    *at = (segment){.six = (out->gso_type & ~GSO_ECN) == GSO_TCPV6,
                    .tcp = out->csum_start,
                    .data = out->hdr_len};
    if (at->tcp < ETH + (at->six ? IP6 : IP4) || at->tcp + TCP > at->data) return false;
    const uint32_t length = be16(heads + ETH + (at->six ? 4 : 2));
    at->end = length == 0 ? (uint32_t)size : ETH + length + (at->six ? IP6 : 0);
    return at->end >= at->data && at->end <= size && size <= CRB_SEGMENT_MAX;
}

// The checksum of a piece of a large segment: its headers are the first, and of an even size.
static void fill_sum(const segment *at, crb_segment *pieces, uint32_t count) {
    uint8_t *tcp = pieces[0].at + at->tcp;
    uint32_t sum = crb_checksum_sum(tcp, at->data - at->tcp, 0);
    bool odd = false;
    for (uint32_t i = 1; i < count; i++) {
        const uint32_t part = crb_checksum_sum(pieces[i].at, pieces[i].length, 0);
        sum += odd ? swapped(part) : part;
        sum = (sum & 0xffff) + (sum >> 16);
        odd ^= (pieces[i].length & 1) != 0;
    }
    put16(tcp + 16, sum ^ 0xffff);
}

// A piece of a large segment: small and with its checksum, or as large as the driver takes it.
static int put_piece(crb_vring *ring, crb_frame_out *out, const segment *at, uint32_t from) {
    crb_segment pieces[1 + CRB_FRAME_PIECES] = {{.at = out->scratch, .length = at->data}};
    const uint32_t size = at->end - at->data;
    const uint32_t n = 1 + slice(out, at->data + from, size, pieces + 1);
    uint8_t header[NET_HDR] = {0};
    if (out->cut)
        fill_sum(at, pieces, n);
    else
        net_header(out, size <= out->gso_size, header);
    return put_frame(ring, out, header, pieces, n);
}

static int put_cut(crb_vring *ring, crb_frame_out *out) {
    segment at;
    if (!large(out, &at, total(out))) return 2;
    const uint32_t payload = at.end - at.data;
    uint32_t step = out->gso_size < LARGEST ? out->gso_size : LARGEST;
    if (!out->cut) step = LARGEST - LARGEST % step;
    int result = 1;
    do {
        const uint32_t from = out->done, left = payload - from;
        const uint32_t run = left < step ? left : step;
        gather(out, 0, out->scratch, at.data);
        at.end = at.data + run;
        number(out->scratch, &at, from, from / out->gso_size, from + run == payload);
        result = put_piece(ring, out, &at, from);
        if (result > 0) out->done = from + run;
    } while (result > 0 && out->done < payload);
    return result;
}

int crb_frames_put(crb_vring *ring, crb_frame_out *out) {
    // An IPv4 header's length counts the header, an IPv6 one's does not.
    const bool six = (out->gso_type & ~GSO_ECN) == GSO_TCPV6;
    const uint64_t most = six ? CRB_FRAME_MAX : CRB_FRAME_MAX - IP6;
    if (out->cut || (out->gso_type != 0 && total(out) > most)) return put_cut(ring, out);
    return out->fill ? put_filled(ring, out) : put_whole(ring, out);
}
