// UDP flows in C. See udp_flow.h for the contract; layers/udp.py and layers/ip.py say the same, and
// more, in Python.
#include "crumble/udp_flow.h"

#include "segment.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define UDP       8u
#define PROTO_UDP 17u
#define SUM_AT    6u
// Datagrams of one size that are worth a segmented send, the most of those that every kernel with
// UDP_SEGMENT takes at once, and bytes: of one IP packet.
#define WORTH    4u
#define SEGMENTS 64u
#define TOGETHER 65000u
// Reads of one socket until others get their turn.
#define ROUNDS 8

_Static_assert(sizeof(crb_segment) == sizeof(struct iovec), "a segment is an iovec");

// ---- The table.

crb_udp_flows *crb_udp_flows_new(void) {
    return calloc(1, sizeof(crb_udp_flows));
}

void crb_udp_flows_free(crb_udp_flows *table) {
    free(table);
}

static uint32_t key_size(bool six) {
    return six ? 36 : 12;
}

static uint16_t *bucket(crb_udp_flows *t, const uint8_t *key, bool six) {
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < key_size(six); i++)
        hash = (hash ^ key[i]) * 16777619u;
    return &t->buckets[(hash ^ hash >> 15) % CRB_UDP_BUCKETS];
}

static crb_udp_flow *find(crb_udp_flows *t, const uint8_t *key, bool six) {
    for (uint16_t at = *bucket(t, key, six); at != 0;) {
        crb_udp_flow *flow = &t->flows[at - 1];
        if (flow->six == six && memcmp(flow->key, key, key_size(six)) == 0) return flow;
        at = flow->next;
    }
    return NULL;
}

// Whoever waits for the sockets knows of the flow, or forgets it.
static void own(crb_udp_flows *t, const crb_udp_flow *f, bool owned) {
    if (t->owners != NULL && f->fd < CRB_FLOW_FDS)
        t->owners[f->fd] = owned ? t->owner + (uint32_t)(f - t->flows) + 1 : 0;
}

void crb_udp_owned(crb_udp_flows *t, uint32_t *owners, uint32_t owner) {
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; t->owners != NULL && i < CRB_UDP_FLOWS; i++)
            if (t->flows[i].live) own(t, &t->flows[i], pass != 0);
        if (pass == 0) {
            t->owners = owners;
            t->owner = owner;
        }
    }
}

bool crb_udp_lend(crb_udp_flows *t, uint32_t index, double now) {
    if (index >= CRB_UDP_FLOWS) return false;
    crb_udp_flow *f = &t->flows[index];
    if (f->live || find(t, f->key, f->six) != NULL) return false;
    uint16_t *first = bucket(t, f->key, f->six);
    f->next = *first;
    *first = (uint16_t)(index + 1);
    f->live = f->cuts = true;
    f->last = now;
    f->sent = f->received = 0;
    f->error = 0;
    own(t, f, true);
    t->n_live++;
    return true;
}

void crb_udp_recall(crb_udp_flows *t, uint32_t index) {
    if (index >= CRB_UDP_FLOWS || !t->flows[index].live) return;
    crb_udp_flow *f = &t->flows[index];
    uint16_t *at = bucket(t, f->key, f->six);
    while (*at != index + 1)
        at = &t->flows[*at - 1].next;
    *at = f->next;
    f->live = false;
    own(t, f, false);
    t->n_live--;
    if (t->reader == index + 1) {
        t->reader = 0;
        t->odd = false;
    }
}

static void tell(crb_udp_flows *t, crb_udp_flow *f, int32_t error) {
    if (f->error == 0 && t->n_events < CRB_UDP_FLOWS)
        t->events[t->n_events++] = (uint16_t)(f - t->flows);
    f->error = error;
}

// ---- From the guest.

// Whether a datagram is lost without its flow being any worse for it.
static bool is_loss(int error) {
    return error == EAGAIN || error == EMSGSIZE || error == ENOBUFS;
}

// Sends `count` datagrams from the one at `from` on. One that cannot be sent is lost.
static void send_each(crb_udp_flows *t, crb_udp_flow *f, uint32_t from, uint32_t count) {
    struct mmsghdr messages[CRB_BURST_CHAINS];
    memset(messages, 0, count * sizeof messages[0]);
    for (uint32_t i = 0; i < count; i++) {
        struct msghdr *message = &messages[i].msg_hdr;
        message->msg_iov = (struct iovec *)&t->pieces[t->firsts[from + i]];
        message->msg_iovlen = t->counts[from + i];
    }
    for (uint32_t done = 0; done < count;) {
        const int sent = sendmmsg((int)f->fd, messages + done, count - done, MSG_DONTWAIT);
        if (sent <= 0 && errno == EAGAIN) return;
        if (sent <= 0 && !is_loss(errno)) tell(t, f, errno);
        done += sent > 0 ? (uint32_t)sent : 1;
    }
}

// The same for datagrams of one size, in one piece that the host's kernel cuts.
static void send_run(crb_udp_flows *t, crb_udp_flow *f, uint32_t from, uint32_t count) {
    union {
        struct cmsghdr head;
        uint8_t room[CMSG_SPACE(sizeof(uint16_t))];
    } control = {0};
    const uint32_t last = from + count - 1, first = t->firsts[from];
    const uint16_t size = (uint16_t)t->sizes[from];
    struct msghdr message = {.msg_iov = (struct iovec *)&t->pieces[first],
                             .msg_iovlen = t->firsts[last] + t->counts[last] - first,
                             .msg_control = &control,
                             .msg_controllen = sizeof control.room};
    control.head.cmsg_level = SOL_UDP;
    control.head.cmsg_type = UDP_SEGMENT;
    control.head.cmsg_len = CMSG_LEN(sizeof size);
    memcpy(CMSG_DATA(&control.head), &size, sizeof size);
    if (sendmsg((int)f->fd, &message, MSG_DONTWAIT) >= 0) return;
    // Not on this path (no checksum offload, or a larger size than its MTU)?
    if (errno == EINVAL || errno == EIO || errno == EMSGSIZE || errno == EOPNOTSUPP)
        f->cuts = false;
    else if (!is_loss(errno))
        tell(t, f, errno);
    send_each(t, f, from, count);
}

// How many datagrams from the one at `from` on have its size, and go together.
static uint32_t alike(const crb_udp_flows *t, uint32_t from) {
    const uint32_t size = t->sizes[from];
    uint32_t count = 1;
    while (from + count < t->n_messages && t->sizes[from + count] == size && count < SEGMENTS &&
           (count + 1) * size <= TOGETHER)
        count++;
    return size != 0 ? count : 1;
}

// Sends what waits to be.
static void flush(crb_udp_flows *t) {
    if (t->batch == 0) return;
    crb_udp_flow *f = &t->flows[t->batch - 1];
    uint32_t from = 0, at = 0;
    while (at < t->n_messages) {
        const uint32_t run = alike(t, at);
        if (f->cuts && run >= WORTH) {
            send_each(t, f, from, at - from);
            send_run(t, f, at, run);
            from = at + run;
        }
        at += run;
    }
    send_each(t, f, from, at - from);
    t->batch = t->n_messages = t->n_pieces = 0;
}

// The datagram in a frame whose headers are `heads`, with nothing special: no fragment, no options,
// as long as its packet.
static bool is_datagram(const uint8_t *heads, uint32_t size, segment *found) {
    if (!is_packet(heads, size, PROTO_UDP, UDP, found)) return false;
    found->data = found->tcp + UDP;
    return be16(heads + found->tcp + 4) == found->end - found->tcp;
}

static bool sums_up(const crb_chain *chain, const uint8_t *heads, const segment *at) {
    const uint32_t addresses = at->six ? 32 : 8;
    const uint8_t *ip = heads + ETH;
    if (be16(heads + at->tcp + SUM_AT) == 0) return !at->six; // RFC 768: none was made
    uint32_t sum = crb_checksum_sum(ip + (at->six ? 8 : 12), addresses, PROTO_UDP);
    sum += at->end - at->tcp;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = crb_checksum_sum(heads + at->tcp, UDP, sum);
    return chain_sum(chain, NET_HDR + at->data, at->end - at->data, sum) == 0xffff;
}

// The chain's flow, if it is a datagram of one, from the right guest, its checksum left to us or
// right.
static crb_udp_flow *flow_of(crb_udp_flows *t, segment *at) {
    const crb_chain *chain = &t->chain;
    uint8_t header[NET_HDR], heads[HEADS];
    const uint64_t length = chain->readable_length;
    if (length < NET_HDR + ETH + IP4 + UDP || length > NET_HDR + CRB_FRAME_MAX) return NULL;
    const uint32_t size = (uint32_t)length - NET_HDR;
    chain_read(chain, NET_HDR, heads, size < HEADS ? size : HEADS);
    if (memcmp(heads, t->ends, 12) != 0 || !is_datagram(heads, size, at)) return NULL;
    crb_udp_flow *f = find(t, heads + ETH + (at->six ? 8 : 12), at->six);
    if (f == NULL) return NULL;
    chain_read(chain, 0, header, NET_HDR);
    if (header[1] != 0) return NULL;
    if ((header[0] & NEEDS_CSUM) == 0) return sums_up(chain, heads, at) ? f : NULL;
    const bool usual = le16(header + 6) == at->tcp && le16(header + 8) == SUM_AT;
    return t->left && usual ? f : NULL;
}

// The chain taken last: it waits to be sent, or is left.
static bool take(crb_udp_flows *t, double now) {
    segment at;
    crb_udp_flow *f = flow_of(t, &at);
    if (f == NULL) return false;
    const uint32_t batch = (uint32_t)(f - t->flows) + 1, size = at.end - at.data;
    if (t->batch != batch || t->n_pieces > CRB_UDP_PIECES / 2) flush(t);
    const uint32_t room = CRB_UDP_PIECES - t->n_pieces;
    crb_segment *pieces = &t->pieces[t->n_pieces];
    const uint32_t count = chain_pieces(&t->chain, NET_HDR + at.data, size, pieces, room);
    if (count > room) return false;
    t->firsts[t->n_messages] = t->n_pieces;
    t->counts[t->n_messages] = count;
    t->sizes[t->n_messages++] = size;
    t->n_pieces += count;
    t->batch = batch;
    f->sent += size;
    f->last = now;
    t->rx_frames++;
    t->rx_bytes += t->chain.readable_length - NET_HDR;
    return true;
}

int crb_udp_burst(crb_udp_flows *t, crb_vring *from, double now, bool *left) {
    int result = 0;
    t->n_used = 0;
    *left = false;
    while (t->n_used < CRB_BURST_CHAINS && !*left) {
        const crb_vring_mark mark = crb_vring_mark_of(from);
        result = crb_vring_pop(from, &t->chain);
        if (result <= 0) break; // a broken ring says so again next time
        crb_used *used = &t->used[t->n_used];
        *used = (crb_used){.head = (uint32_t)t->chain.head};
        *left = !take(t, now);
        if (*left)
            crb_vring_untake(from, &mark, used, 1);
        else
            t->n_used++;
    }
    flush(t);
    if (t->n_used != 0) crb_vring_push_batch(from, t->used, t->n_used);
    return t->n_used == 0 && !*left && result < 0 ? result : (int)t->n_used;
}

// ---- To the guest.

// The headers of a datagram of `size` bytes, its checksum left to be filled in; their size.
static uint32_t head(crb_udp_flows *t, const crb_udp_flow *f, uint8_t *to, uint32_t size) {
    const uint32_t ip_size = f->six ? IP6 : IP4, addresses = key_size(f->six) - 4;
    uint8_t *ip = to + ETH, *udp = ip + ip_size;
    memcpy(to, t->ends + 6, 6);
    memcpy(to + 6, t->ends, 6);
    put16(to + 12, f->six ? 0x86dd : 0x0800);
    memset(ip, 0, ip_size);
    ip[0] = f->six ? 0x60 : 0x45;
    ip[f->six ? 7 : 8] = 64; // hops
    ip[f->six ? 6 : 9] = PROTO_UDP;
    if (!f->six) put16(ip + 4, ++t->identification);
    memcpy(ip + (f->six ? 8 : 12), f->key + addresses / 2, addresses / 2);
    memcpy(ip + (f->six ? 24 : 16), f->key, addresses / 2);
    set_length(ip, f->six, ip_size + UDP + size);
    memcpy(udp, f->key + addresses + 2, 2);
    memcpy(udp + 2, f->key + addresses, 2);
    put16(udp + 4, UDP + size);
    uint32_t sum = crb_checksum_sum(f->key, addresses, PROTO_UDP) + UDP + size;
    sum = (sum & 0xffff) + (sum >> 16);
    put16(udp + SUM_AT, sum);
    return ETH + ip_size + UDP;
}

// As crb_frames_put.
static int put(crb_udp_flows *t, const crb_udp_flow *f, crb_vring *to, uint8_t *data,
               uint32_t size) {
    uint8_t heads[ETH + IP6 + UDP];
    crb_frame_out *out = t->out;
    const uint32_t head_size = head(t, f, heads, size);
    out->cut = false;
    out->fill = t->fill;
    out->flags = NEEDS_CSUM;
    out->gso_type = 0;
    out->gso_size = 0;
    out->hdr_len = (uint16_t)head_size;
    out->csum_start = (uint16_t)(head_size - UDP);
    out->csum_offset = SUM_AT;
    out->pieces[0] = (crb_segment){heads, head_size};
    out->pieces[1] = (crb_segment){data, size};
    out->n_pieces = size != 0 ? 2 : 1;
    out->done = 0;
    const int result = crb_frames_put(to, out);
    if (result == 2) t->too_large++;
    if (result > 0) {
        t->pushed = true;
        t->tx_frames++;
        t->tx_bytes += head_size + size;
    }
    return result;
}

void crb_udp_resume(crb_udp_flows *t, crb_vring *to) {
    t->odd = false;
    if (t->reader == 0) return;
    crb_udp_flow *f = &t->flows[t->reader - 1];
    const uint32_t most = t->mtu - UDP - (f->six ? IP6 : IP4);
    for (; t->n_put < t->n_read; t->n_put++) {
        const uint32_t size = t->read_sizes[t->n_put];
        t->odd = size > most;
        if (t->odd) {
            t->n_put++; // the caller's
            return;
        }
        const int result = put(t, f, to, t->data[t->n_put], size);
        if (result == 0) return;
        if (result < 0) {
            t->broken = result;
            break;
        }
        f->received += size != 0 ? size : 1;
    }
    t->reader = 0;
}

// How many datagrams there were.
static uint32_t receive(crb_udp_flows *t, crb_udp_flow *f, double now) {
    struct mmsghdr messages[CRB_UDP_READ];
    struct iovec into[CRB_UDP_READ];
    memset(messages, 0, sizeof messages);
    for (uint32_t i = 0; i < CRB_UDP_READ; i++) {
        into[i] = (struct iovec){t->data[i], CRB_UDP_SIZE};
        messages[i].msg_hdr.msg_iov = &into[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    const int count = recvmmsg((int)f->fd, messages, CRB_UDP_READ, MSG_DONTWAIT, NULL);
    if (count < 0) {
        if (errno != EAGAIN && errno != EINTR) tell(t, f, errno);
        return 0;
    }
    for (int i = 0; i < count; i++)
        t->read_sizes[i] = messages[i].msg_len;
    f->last = now;
    t->n_read = (uint32_t)count;
    t->n_put = 0;
    return (uint32_t)count;
}

void crb_udp_read(crb_udp_flows *t, uint32_t index, crb_vring *to, double now) {
    if (index >= CRB_UDP_FLOWS || !t->flows[index].live || t->broken != 0) return;
    for (int i = 0; i < ROUNDS && t->reader == 0; i++) {
        const uint32_t count = receive(t, &t->flows[index], now);
        if (count == 0) return;
        t->reader = index + 1;
        crb_udp_resume(t, to);
        if (count < CRB_UDP_READ) return;
    }
}
