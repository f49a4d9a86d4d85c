// Steady TCP flows. See flow.h for the contract; tcp/receive.py, acknowledge.py and transmit.py say
// the same, and more, in Python. RFC numbers are there.
#include "crumble/flow.h"

#include "segment.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define STAMPS      12u
#define MAX_SCALED  0xffffu
#define MAX_CWND    (16u << 20)
#define CREDIT_MAX  (2u << 20)
#define UNSENT_LOW  (256u << 10)
#define CREDIT_HIGH (512u << 10)
#define MIN_RTO     0.2
#define MAX_RTO     60.0
#define TICK        0.001
#define CUBIC       0.4
#define ALPHA       (3 * (1 - 0.7) / (1 + 0.7))
// Bursts in one go, when one comes after the other.
#define ROUNDS 16
#define HEAD   (ETH + IP6 + TCP + STAMPS)

static const uint8_t stamps_kind[4] = {1, 1, 8, 10};

// What is written down of a flow: the layout of ledger.py.
typedef struct numbers {
    uint64_t turn;
    double ts_recent_at;
    uint32_t ts_recent, snd_una, rcv_nxt, rcv_adv, rcv_limit, snd_wnd, max_snd_wnd;
} numbers;
_Static_assert(sizeof(numbers) <= CRB_FLOW_NUMBERS, "a record is too large");
_Static_assert(sizeof(crb_segment) == sizeof(struct iovec), "a segment is an iovec");

static int32_t distance(uint32_t from, uint32_t to) {
    return (int32_t)(to - from);
}

static uint32_t least(uint32_t one, uint32_t other) {
    return one < other ? one : other;
}

static uint32_t most(uint32_t one, uint32_t other) {
    return one > other ? one : other;
}

// ---- The table.

crb_flows *crb_flows_new(void) {
    return calloc(1, sizeof(crb_flows));
}

void crb_flows_free(crb_flows *table) {
    free(table);
}

static uint32_t key_size(bool six) {
    return six ? 36 : 12;
}

static uint16_t *bucket(crb_flows *t, const uint8_t *key, bool six) {
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < key_size(six); i++)
        hash = (hash ^ key[i]) * 16777619u;
    return &t->buckets[(hash ^ hash >> 15) % CRB_FLOW_BUCKETS];
}

static crb_flow *find(crb_flows *t, const uint8_t *key, bool six) {
    for (uint16_t at = *bucket(t, key, six); at != 0;) {
        crb_flow *flow = &t->flows[at - 1];
        if (flow->six == six && memcmp(flow->key, key, key_size(six)) == 0) return flow;
        at = flow->next;
    }
    return NULL;
}

// Whoever waits for the sockets knows of the flow, or forgets it.
static void own(crb_flows *t, const crb_flow *f, bool owned) {
    if (t->owners != NULL && f->fd < CRB_FLOW_FDS)
        t->owners[f->fd] = owned ? t->owner + (uint32_t)(f - t->flows) + 1 : 0;
}

void crb_flows_owned(crb_flows *t, uint32_t *owners, uint32_t owner) {
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; t->owners != NULL && i < CRB_FLOWS; i++)
            if (t->flows[i].live) own(t, &t->flows[i], pass != 0);
        if (pass == 0) {
            t->owners = owners;
            t->owner = owner;
        }
    }
}

bool crb_flow_lend(crb_flows *t, uint32_t index) {
    if (index >= CRB_FLOWS) return false;
    crb_flow *f = &t->flows[index];
    const uint32_t room = f->room;
    if (f->live || room == 0 || (room & (room - 1)) != 0 || room > CREDIT_MAX) return false;
    if (f->size > room || f->credit > CREDIT_MAX || f->mss == 0 || f->six > 1 || f->cwnd == 0)
        return false;
    if (f->snd_scale > 14 || f->rcv_scale > 14 || f->max_segment > CRB_SEGMENT_MAX) return false;
    const uint32_t flight = f->snd_nxt - f->snd_una;
    if (flight > f->size || find(t, f->key, f->six) != NULL) return false;
    uint16_t *first = bucket(t, f->key, f->six);
    f->next = *first;
    *first = (uint16_t)(index + 1);
    f->live = true;
    own(t, f, true);
    f->sent = f->received = 0;
    f->error = 0;
    f->why = 0;
    f->touched = f->ack_due = f->blocked = f->more = false;
    t->n_live++;
    return true;
}

void crb_flow_recall(crb_flows *t, uint32_t index) {
    if (index >= CRB_FLOWS || !t->flows[index].live) return;
    crb_flow *f = &t->flows[index];
    uint16_t *at = bucket(t, f->key, f->six);
    while (*at != index + 1)
        at = &t->flows[*at - 1].next;
    *at = f->next;
    f->live = false;
    own(t, f, false);
    t->n_live--;
}

static void tell(crb_flows *t, crb_flow *f, uint32_t why) {
    if (f->why == 0 && t->n_events < CRB_FLOWS) t->events[t->n_events++] = (uint16_t)(f - t->flows);
    f->why |= why;
}

// ---- To the guest.

// The window field, as transmit.advertise; nothing is held.
static uint32_t advertise(crb_flow *f) {
    const uint32_t edge = f->rcv_nxt + f->rcv_limit;
    const int32_t grown = distance(f->rcv_adv, edge);
    if (grown >= (int32_t)least(f->rcv_limit / 2, f->rcv_mss)) f->rcv_adv = edge;
    const int32_t open = distance(f->rcv_nxt, f->rcv_adv);
    uint32_t window = open > 0 ? (uint32_t)open : 0;
    if (window >> f->rcv_scale > MAX_SCALED) window = MAX_SCALED << f->rcv_scale;
    f->rcv_adv = f->rcv_nxt + window;
    return window >> f->rcv_scale;
}

static void note(const crb_flow *f) {
    if (f->turns == NULL) return;
    const uint64_t turn = f->turns[1] + 1;
    const numbers now = {.turn = f->turns[0],
                         .ts_recent_at = f->ts_recent_at,
                         .ts_recent = f->ts_recent,
                         .snd_una = f->snd_una,
                         .rcv_nxt = f->rcv_nxt,
                         .rcv_adv = f->rcv_adv,
                         .rcv_limit = f->rcv_limit,
                         .snd_wnd = f->snd_wnd,
                         .max_snd_wnd = f->max_snd_wnd};
    memcpy(f->numbers + (turn & 1) * CRB_FLOW_NUMBERS, &now, sizeof now);
    __atomic_store_n(&f->turns[1], turn, __ATOMIC_RELEASE);
}

static uint32_t timestamp(const crb_flow *f, double now) {
    return (uint32_t)(uint64_t)(now * 1000) + f->ts_offset;
}

static void ip_head(crb_flows *t, const crb_flow *f, uint8_t *ip, uint32_t size) {
    if (f->six) {
        static const uint8_t fixed[8] = {0x60, 0, 0, 0, 0, 0, PROTO_TCP, 64};
        memcpy(ip, fixed, sizeof fixed);
        memcpy(ip + 8, f->key + 16, 16);
        memcpy(ip + 24, f->key, 16);
        set_length(ip, true, IP6 + size);
        return;
    }
    static const uint8_t fixed[12] = {0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, PROTO_TCP};
    memcpy(ip, fixed, sizeof fixed);
    put16(ip + 4, ++t->identification);
    memcpy(ip + 12, f->key + 4, 4);
    memcpy(ip + 16, f->key, 4);
    set_length(ip, false, IP4 + size);
    sum_ip4(ip, IP4);
}

// The headers of a segment with `count` bytes; their size.
static uint32_t head(crb_flows *t, crb_flow *f, uint8_t *to, uint32_t seq, uint32_t count,
                     uint32_t flags, double now) {
    const uint32_t tcp_size = TCP + (f->ts_ok ? STAMPS : 0), ip_size = f->six ? IP6 : IP4;
    const uint32_t addresses = key_size(f->six) - 4;
    uint8_t *ip = to + ETH, *tcp = ip + ip_size;
    memcpy(to, t->ends + 6, 6);
    memcpy(to + 6, t->ends, 6);
    put16(to + 12, f->six ? 0x86dd : 0x0800);
    ip_head(t, f, ip, tcp_size + count);
    memcpy(tcp, f->key + addresses + 2, 2);
    memcpy(tcp + 2, f->key + addresses, 2);
    put32(tcp + 4, seq);
    put32(tcp + 8, f->rcv_nxt);
    tcp[12] = (uint8_t)(tcp_size << 2);
    tcp[13] = (uint8_t)flags;
    put16(tcp + 14, advertise(f));
    put32(tcp + 16, 0);
    if (f->ts_ok) {
        memcpy(tcp + TCP, stamps_kind, 4);
        put32(tcp + TCP + 4, timestamp(f, now));
        put32(tcp + TCP + 8, f->ts_recent);
    }
    uint32_t sum = crb_checksum_sum(f->key, addresses, PROTO_TCP) + tcp_size + count;
    while (sum > 0xffff)
        sum = (sum & 0xffff) + (sum >> 16);
    put16(tcp + 16, sum);
    return ETH + ip_size + tcp_size;
}

static void payload(crb_flow *f, crb_frame_out *out, uint32_t seq, uint32_t count) {
    const uint32_t at = seq & (f->room - 1), first = least(count, f->room - at);
    if (first != 0) out->pieces[out->n_pieces++] = (crb_segment){f->ring + at, first};
    if (first < count) out->pieces[out->n_pieces++] = (crb_segment){f->ring, count - first};
}

// Puts a segment on the driver's ring: `*done` of its bytes. False without room for all of it.
static bool put(crb_flows *t, crb_flow *f, crb_vring *to, uint32_t seq, uint32_t count,
                uint32_t flags, double now, uint32_t *done) {
    uint8_t heads[HEAD];
    crb_frame_out *out = t->out;
    const uint32_t size = head(t, f, heads, seq, count, flags, now);
    const bool large = count > f->mss;
    out->cut = large && (f->six ? t->cut6 : t->cut4);
    out->fill = t->fill;
    out->flags = NEEDS_CSUM;
    out->gso_type = large ? (f->six ? GSO_TCPV6 : GSO_TCPV4) : 0;
    out->hdr_len = (uint16_t)size;
    out->gso_size = large ? (uint16_t)f->mss : 0;
    out->csum_start = (uint16_t)(ETH + (f->six ? IP6 : IP4));
    out->csum_offset = 16;
    out->pieces[0] = (crb_segment){heads, size};
    out->n_pieces = 1;
    out->done = 0;
    payload(f, out, seq, count);
    const int result = crb_frames_put(to, out);
    *done = result > 0 ? count : out->done;
    out->done = 0;
    if (result < 0) t->broken = result;
    if (result == 2) t->too_large++;
    t->pushed |= result > 0 || *done != 0;
    if (result <= 0 && *done == 0) return false;
    t->tx_frames++;
    t->tx_bytes += size + *done;
    f->ack_due = false;
    f->last_ack_sent = f->rcv_nxt;
    f->last_sent = now;
    return result > 0;
}

// How much of the ring may be sent now in one segment: transmit._new_data.
static uint32_t sendable(const crb_flow *f) {
    const uint32_t flight = f->snd_nxt - f->snd_una, waiting = f->size - flight;
    if (f->snd_wnd <= flight) return 0;
    uint32_t count = least(least(waiting, f->snd_wnd - flight), most(f->mss, f->max_segment));
    const uint32_t budget = f->cwnd > flight ? f->cwnd - flight : 0;
    if (count > budget) {
        if (budget < f->mss && flight != 0) return 0;
        count = least(count, most(budget, f->mss));
    }
    if (count > f->mss && count < waiting) count -= count % f->mss;
    // A silly window: wait for a better one.
    return count < f->mss && count < waiting && count < f->max_snd_wnd / 2 ? 0 : count;
}

// Sends what windows allow; false when the driver's ring has no room.
static bool push(crb_flows *t, crb_flow *f, crb_vring *to, double now) {
    uint32_t count, done = 0;
    bool all = true;
    if (f->snd_una == f->snd_nxt && f->last_sent != 0 && now - f->last_sent > f->rto)
        f->cwnd = least(f->cwnd, 10 * f->mss);
    while (all && (count = sendable(f)) != 0) {
        const uint32_t flight = f->snd_nxt - f->snd_una;
        const uint32_t flags = ACK | (flight + count == f->size ? PSH : 0);
        all = put(t, f, to, f->snd_nxt, count, flags, now, &done);
        if (done == 0) break;
        f->snd_nxt += done;
        if (!f->ts_ok && f->timed_at == 0) {
            f->timed_seq = f->snd_nxt;
            f->timed_at = now;
        }
        if (f->rtx_at == 0) f->rtx_at = now + f->rto;
        f->persist_at = 0;
    }
    if (f->snd_una != f->snd_nxt || f->size == 0)
        f->persist_at = 0;
    else if (f->persist_at == 0)
        f->persist_at = now + f->rto;
    return all;
}

// Reads as much as may be; where it belongs. True when there may be more.
static bool receive(crb_flows *t, crb_flow *f) {
    const uint32_t wanted = least(f->credit, CRB_FLOW_READ),
                   at = (f->snd_una + f->size) & (f->room - 1);
    if (wanted == 0) return true;
    if (wanted > f->room - f->size) { // it is to grow
        tell(t, f, CRB_FLOW_RECALL);
        return false;
    }
    const uint32_t first = least(wanted, f->room - at);
    struct iovec into[2] = {{f->ring + at, first}, {f->ring, wanted - first}};
    struct msghdr message = {.msg_iov = into, .msg_iovlen = first < wanted ? 2 : 1};
    const ssize_t got = recvmsg((int)f->fd, &message, MSG_DONTWAIT);
    if (got > 0) {
        f->size += (uint32_t)got;
        f->credit -= (uint32_t)got;
        f->received += (uint64_t)got;
        return (uint32_t)got == wanted;
    }
    if (got == 0) {
        tell(t, f, CRB_FLOW_RECALL); // its end, to be found again
    } else if (errno != EAGAIN && errno != EINTR) {
        f->error = errno;
        tell(t, f, CRB_FLOW_ERROR);
    }
    return false;
}

static double deadline(const crb_flow *f) {
    const double at[3] = {f->rtx_at, f->persist_at, f->keepalive_at};
    double first = 0;
    for (int i = 0; i < 3; i++)
        if (at[i] != 0 && (first == 0 || at[i] < first)) first = at[i];
    return first;
}

static void block(crb_flows *t, crb_flow *f) {
    f->blocked = true;
    if (f->listed) return;
    f->listed = true;
    t->blocked[t->n_blocked++] = (uint16_t)(f - t->flows);
}

// The end of a burst for a flow: written down, then told.
static void serve(crb_flows *t, crb_flow *f, crb_vring *to, double now) {
    if (t->broken) return;
    advertise(f);
    note(f);
    f->blocked = false;
    uint32_t done;
    if (!push(t, f, to, now) || (f->ack_due && !put(t, f, to, f->snd_nxt, 0, ACK, now, &done)))
        block(t, f);
    const double due = deadline(f);
    if (due != 0 && (f->armed_at == 0 || due < f->armed_at)) tell(t, f, CRB_FLOW_TIMER);
    const bool wanted = f->credit != 0 && !f->more;
    if (wanted != (f->watched != 0)) tell(t, f, CRB_FLOW_WATCH);
}

void crb_flow_read(crb_flows *t, uint32_t index, crb_vring *to, double now) {
    if (index >= CRB_FLOWS || !t->flows[index].live) return;
    crb_flow *f = &t->flows[index];
    f->more = receive(t, f);
    serve(t, f, to, now);
}

void crb_flow_push(crb_flows *t, uint32_t index, crb_vring *to, double now) {
    if (index < CRB_FLOWS && t->flows[index].live) serve(t, &t->flows[index], to, now);
}

void crb_flows_unblock(crb_flows *t, crb_vring *to, double now) {
    const uint32_t count = t->n_blocked;
    t->n_blocked = 0;
    for (uint32_t i = 0; i < count; i++) {
        crb_flow *f = &t->flows[t->blocked[i]];
        f->listed = false;
        if (f->live && f->blocked) serve(t, f, to, now);
    }
}

// ---- From the guest.

// A segment that may be served here.
typedef struct arrival {
    crb_flow *flow;
    segment at;
    uint32_t seq, ack, window, size;
    uint32_t value, echo; // of its timestamps
} arrival;

// Whether the checksum of the segment in the chain is right.
static bool sums_up(const crb_chain *chain, const uint8_t *heads, const segment *at) {
    const uint32_t start = pseudo(heads + ETH, at->six, at->end - at->tcp);
    const uint32_t sum = crb_checksum_sum(heads + at->tcp, at->data - at->tcp, start);
    return chain_sum(chain, NET_HDR + at->data, at->end - at->data, sum) == 0xffff;
}

// Whether the chain holds a segment of a lent flow, from the right guest, its checksum left to us
// or right.
static bool is_flow(crb_flows *t, const uint8_t *heads, arrival *found) {
    const crb_chain *chain = &t->chain;
    uint8_t header[NET_HDR];
    if (chain->readable_length < NET_HDR + ETH + IP4 + TCP) return false;
    if (chain->readable_length > NET_HDR + CRB_FRAME_MAX) return false;
    const uint32_t size = (uint32_t)chain->readable_length - NET_HDR;
    segment *at = &found->at;
    if (memcmp(heads, t->ends, 12) != 0 || !is_segment(heads, size, at)) return false;
    found->flow = find(t, heads + ETH + (at->six ? 8 : 12), at->six);
    if (found->flow == NULL || at->data > HEADS) return false;
    chain_read(chain, 0, header, NET_HDR);
    if ((header[0] & NEEDS_CSUM) == 0) return header[1] == 0 && sums_up(chain, heads, at);
    if (!t->left || le16(header + 6) != at->tcp || le16(header + 8) != 16) return false;
    if (header[1] == 0) return true;
    return at->six ? header[1] == GSO_TCPV6 && t->gso6 : header[1] == GSO_TCPV4 && t->gso4;
}

// Its numbers; false when they, or its options, are not what everybody expects next.
static bool is_next(const crb_flows *t, const uint8_t *heads, arrival *found) {
    const crb_flow *f = found->flow;
    const segment *at = &found->at;
    const uint8_t *tcp = heads + at->tcp;
    const bool waits = t->batch != 0 && &t->flows[t->batch - 1] == f;
    const uint32_t ahead = waits ? t->batch_bytes : 0;
    found->seq = be32(tcp + 4);
    found->ack = be32(tcp + 8);
    found->window = be16(tcp + 14) << f->snd_scale;
    found->size = at->end - at->data;
    if (found->seq != f->rcv_nxt + ahead || f->why & (CRB_FLOW_RECALL | CRB_FLOW_ERROR))
        return false;
    const int32_t open = distance(f->rcv_nxt, f->rcv_adv);
    if (found->size != 0 && (int64_t)ahead + found->size > open) return false;
    if (f->grows_in && f->taken + ahead + found->size >= f->rcv_limit) return false;
    if (!f->ts_ok) return at->data - at->tcp == TCP;
    if (at->data - at->tcp != TCP + STAMPS || memcmp(tcp + TCP, stamps_kind, 4) != 0) return false;
    found->value = be32(tcp + TCP + 4);
    found->echo = be32(tcp + TCP + 8);
    return distance(f->ts_recent, found->value) >= 0;
}

// Whether what it acknowledges is plain: something new, or nothing.
static bool is_plain_ack(const arrival *a) {
    const crb_flow *f = a->flow;
    const uint32_t fresh = a->ack - f->snd_una, flight = f->snd_nxt - f->snd_una;
    if (fresh > flight) return false;
    if (fresh == 0) return flight == 0 || a->size != 0 || a->window != f->snd_wnd;
    return f->grows_at == 0 || f->freed + fresh < f->grows_at;
}

static void sample(crb_flow *f, double measured) {
    if (measured < 0) measured = 0;
    if (f->srtt == 0) {
        f->srtt = measured != 0 ? measured : TICK;
        f->rttvar = measured / 2;
    } else {
        const double error = f->srtt > measured ? f->srtt - measured : measured - f->srtt;
        f->rttvar += (error - f->rttvar) / 4;
        f->srtt += (measured - f->srtt) / 8;
    }
    const double slack = 4 * f->rttvar > TICK ? 4 * f->rttvar : TICK, rto = f->srtt + slack;
    f->rto = rto < MIN_RTO ? MIN_RTO : rto > MAX_RTO ? MAX_RTO : rto;
}

static void measure(crb_flow *f, const arrival *a, double now) {
    if (f->ts_ok && a->echo != 0) {
        const uint32_t elapsed = timestamp(f, now) - a->echo;
        if (elapsed < 1u << 20) sample(f, elapsed / 1000.0);
    } else if (f->timed_at != 0 && distance(f->timed_seq, a->ack) >= 0) {
        sample(f, now - f->timed_at);
        f->timed_at = 0;
    }
}

// The window grows as CUBIC says: congestion.py.
static void grow(crb_flow *f, uint32_t count, double now) {
    if (f->cwnd < f->ssthresh) {
        const uint32_t step = least(count, f->ssthresh - f->cwnd);
        f->cwnd = least(f->cwnd + step, MAX_CWND);
        count -= step;
    }
    if (count == 0) return;
    double cwnd = (double)f->cwnd / f->mss;
    const double part = (double)count / f->mss / cwnd;
    if (f->epoch_start == 0) {
        f->epoch_start = now;
        f->w_max = fmax(f->w_max, cwnd);
        f->k = cbrt((f->w_max - cwnd) / CUBIC);
        f->w_est = cwnd;
    }
    const double t = now - f->epoch_start + f->srtt - f->k;
    const double target = fmin(fmax(CUBIC * t * t * t + f->w_max, cwnd), 1.5 * cwnd);
    f->w_est += ALPHA * part;
    cwnd = f->w_est > cwnd && f->w_est > target ? f->w_est : cwnd + (target - cwnd) * part;
    f->cwnd = (uint32_t)fmin(cwnd * f->mss, MAX_CWND);
}

// Something new was acknowledged.
static void advance(crb_flow *f, const arrival *a, double now) {
    const uint32_t fresh = a->ack - f->snd_una, flight = f->snd_nxt - f->snd_una;
    f->snd_una = a->ack;
    f->size -= fresh;
    measure(f, a, now);
    f->freed += fresh;
    f->credit += fresh;
    f->rtx_at = f->snd_una != f->snd_nxt ? now + f->rto : 0;
    const uint32_t used = f->cwnd < f->ssthresh ? 2 * flight - 1 : flight + (1u << 16);
    if (f->cwnd <= used) grow(f, fresh, now);
}

static void acknowledged(crb_flow *f, const arrival *a, double now) {
    if (f->ts_ok && a->seq == f->last_ack_sent) {
        f->ts_recent = a->value;
        f->ts_recent_at = now;
    }
    f->last_received = now;
    if (a->ack != f->snd_una) advance(f, a, now);
    const int32_t newer = distance(f->snd_wl1, a->seq);
    if (newer > 0 || (newer == 0 && distance(f->snd_wl2, a->ack) >= 0)) {
        if (a->window > f->snd_wnd) f->persist_at = 0;
        f->snd_wnd = a->window;
        f->max_snd_wnd = most(f->max_snd_wnd, a->window);
        f->snd_wl1 = a->seq;
        f->snd_wl2 = a->ack;
    }
    if (f->keepalive_at != 0) f->keepalive_at = now + f->keepalive_idle;
}

// Leaves the pieces of a segment's bytes to be written; false when there are too many.
static bool gather(crb_flows *t, const segment *at) {
    const uint32_t room = CRB_FLOW_PIECES - t->n_pieces;
    const uint32_t count = chain_pieces(&t->chain, NET_HDR + at->data, at->end - at->data,
                                        t->pieces + t->n_pieces, room);
    if (count > room) return false;
    t->n_pieces += count;
    return true;
}

// Chains from `first` on come again.
static void untake(crb_flows *t, crb_vring *from, uint32_t first) {
    crb_vring_untake(from, &t->marks[first], t->used + first, t->n_used - first);
    t->n_used = (uint16_t)first;
}

// Writes what waits to be; false when the host's kernel has no room for all of it, and then the
// first chain that it does not have all of, and those after it, are left in the ring.
static bool write_batch(crb_flows *t, crb_vring *from) {
    if (t->batch == 0) return true;
    crb_flow *f = &t->flows[t->batch - 1];
    struct msghdr message = {.msg_iov = (struct iovec *)t->pieces, .msg_iovlen = t->n_pieces};
    ssize_t took = sendmsg((int)f->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (took < 0) took = 0; // whoever tries again hears why
    const bool all = (uint32_t)took == t->batch_bytes;
    f->rcv_nxt += (uint32_t)took;
    f->sent += (uint64_t)took;
    f->taken += (uint32_t)took;
    if (f->taken >= f->rcv_limit) f->taken = 0;
    if (took != 0) f->ack_due = true;
    t->batch = 0;
    t->batch_bytes = t->n_pieces = 0;
    if (all) return true;
    uint32_t i = t->batch_at;
    for (uint32_t rest = (uint32_t)took; t->sizes[i] <= rest; i++)
        rest -= t->sizes[i];
    untake(t, from, i);
    return false;
}

static void touch(crb_flows *t, crb_flow *f) {
    if (f->touched) return;
    f->touched = true;
    t->touched[t->n_touched++] = (uint16_t)(f - t->flows);
}

enum { TAKEN, LEFT, SHORT };

// The chain taken last.
static int take(crb_flows *t, crb_vring *from, double now) {
    const crb_chain *chain = &t->chain;
    uint8_t heads[HEADS];
    arrival a = {.flow = NULL};
    const uint64_t length = chain->readable_length;
    if (length < NET_HDR + ETH + IP4 + TCP) return LEFT;
    chain_read(chain, NET_HDR, heads,
               length - NET_HDR < HEADS ? (uint32_t)length - NET_HDR : HEADS);
    if (!is_flow(t, heads, &a) || !is_next(t, heads, &a) || !is_plain_ack(&a)) return LEFT;
    crb_flow *f = a.flow;
    const uint32_t index = (uint32_t)(f - t->flows), last = t->n_used - 1u;
    // What others sent, and what an acknowledgement follows, goes first.
    const bool apart = t->batch != index + 1 || a.size == 0 || t->n_pieces > CRB_FLOW_PIECES / 2;
    if (apart && !write_batch(t, from)) return SHORT;
    if (a.size != 0) {
        if (!gather(t, &a.at)) return LEFT;
        if (t->batch == 0) t->batch_at = (uint16_t)last;
        t->batch = (uint16_t)(index + 1);
        t->batch_bytes += a.size;
    }
    t->sizes[last] = a.size;
    t->frame_sizes[last] = (uint32_t)length - NET_HDR;
    touch(t, f);
    acknowledged(f, &a, now);
    return TAKEN;
}

// Whether it is time to read on: a little at a time costs the kernel more.
static bool runs_low(const crb_flow *f) {
    const uint32_t unsent = f->size - (f->snd_nxt - f->snd_una);
    return f->credit != 0 && (unsent < UNSENT_LOW || f->credit >= CREDIT_HIGH);
}

static void serve_touched(crb_flows *t, crb_vring *to, double now) {
    for (uint32_t i = 0; i < t->n_touched; i++) {
        crb_flow *f = &t->flows[t->touched[i]];
        f->touched = false;
        if (f->more && runs_low(f)) f->more = receive(t, f);
        serve(t, f, to, now);
    }
    t->n_touched = 0;
}

static int burst(crb_flows *t, crb_vring *from, crb_vring *to, double now, bool *left) {
    int result = TAKEN;
    uint64_t bytes = 0;
    t->n_used = 0;
    *left = false;
    while (t->n_used < CRB_BURST_CHAINS && bytes < CRB_FLOW_BURST) {
        t->marks[t->n_used] = crb_vring_mark_of(from);
        result = crb_vring_pop(from, &t->chain);
        if (result <= 0) break; // a broken ring says so again next time
        bytes += t->chain.readable_length;
        t->used[t->n_used++] = (crb_used){.head = (uint32_t)t->chain.head};
        result = take(t, from, now);
        *left = result != TAKEN;
        if (result == LEFT) untake(t, from, t->n_used - 1u);
        if (*left) break;
    }
    if (!write_batch(t, from)) *left = true;
    serve_touched(t, to, now);
    for (uint32_t i = 0; i < t->n_used; i++)
        t->rx_bytes += t->frame_sizes[i];
    t->rx_frames += t->n_used;
    if (t->n_used != 0) crb_vring_push_batch(from, t->used, t->n_used);
    return t->n_used == 0 && !*left && result < 0 ? result : t->n_used;
}

int crb_flows_burst(crb_flows *t, crb_vring *from, crb_vring *to, double now, bool *left) {
    int count = 0;
    for (int i = 0; i < ROUNDS; i++) {
        const int result = burst(t, from, to, now, left);
        if (result <= 0) return count != 0 ? count : result;
        count += result;
        if (*left || !crb_vring_pending(from)) break;
    }
    return count;
}
