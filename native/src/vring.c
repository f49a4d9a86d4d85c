// Split virtqueue, device side. See vring.h for the contract.
//
// Memory order. The driver publishes avail->idx after the descriptors: it is read with acquire, and
// all else after it. Used elements are published by a release store of used->idx. Where each side
// writes one word and then reads the other's (notification suppression, section 2.7.7 and 2.7.10) a
// full fence stands between.
#include "crumble/vring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "virtio 1.x is little endian");
_Static_assert(sizeof(crb_inflight) == 16 && sizeof(crb_inflight_entry) == 16, "wire layout");

#define DESC_SIZE          16u
#define USED_ELEM          8u
#define F_NEXT             1u
#define F_WRITE            2u
#define F_INDIRECT         4u
#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY     1u

typedef struct descriptor {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
} descriptor;

static uint16_t load16(const uint8_t *at) {
    return __atomic_load_n((const uint16_t *)at, __ATOMIC_RELAXED);
}

static uint16_t avail_idx(const crb_vring *ring) {
    return __atomic_load_n((const uint16_t *)(ring->avail + 2), __ATOMIC_ACQUIRE);
}

static uint16_t used_event(const crb_vring *ring) {
    return load16(ring->avail + 4 + 2u * ring->size);
}

// Where to write `offset` of the used ring: translated each time so that the page is marked dirty.
static uint8_t *used_for_write(crb_vring *ring, uint64_t offset, uint64_t length) {
    crb_translate(ring->memory, ring->used_gpa + offset, &length, true);
    return ring->used + offset;
}

// Ring parts are moved to the overlay at once, where a region is contiguous, so that one pointer
// serves for the ring's life. NULL when a part is not RAM or crosses two mappings.
static uint8_t *map_part(crb_memory *memory, uint64_t gpa, uint64_t length) {
    if (gpa + length < gpa || !crb_memory_has(memory, gpa, length)) return NULL;
    uint8_t *start = NULL;
    for (uint64_t done = 0; done < length;) {
        uint64_t run = length - done;
        uint8_t *at = crb_translate(memory, gpa + done, &run, true);
        if (start == NULL) start = at;
        if (at == NULL || at != start + done) return NULL;
        done += run;
    }
    return start;
}

static bool map_parts(crb_vring *ring, uint64_t desc, uint64_t avail, uint64_t used) {
    const uint64_t event = ring->event_idx ? 2 : 0;
    ring->desc = map_part(ring->memory, desc, (uint64_t)DESC_SIZE * ring->size);
    ring->avail = map_part(ring->memory, avail, 4 + 2 * (uint64_t)ring->size + event);
    ring->used = map_part(ring->memory, used, 4 + (uint64_t)USED_ELEM * ring->size + event);
    return ring->desc != NULL && ring->avail != NULL && ring->used != NULL;
}

crb_vring *crb_vring_new(crb_memory *memory, uint32_t size, uint64_t desc, uint64_t avail,
                         uint64_t used, uint16_t base, bool event_idx, bool indirect) {
    // Alignment: table of section 2.7.
    if (size == 0 || size > CRB_RING_MAX_SIZE || (size & (size - 1)) != 0 || (desc & 15) != 0 ||
        (avail & 1) != 0 || (used & 3) != 0) {
        errno = EINVAL;
        return NULL;
    }
    crb_vring *ring = calloc(1, sizeof *ring);
    if (ring == NULL) return NULL;
    *ring = (crb_vring){.memory = memory,
                        .size = (uint16_t)size,
                        .last_avail = base,
                        .shadow_avail = base,
                        .event_idx = event_idx,
                        .indirect = indirect,
                        .used_gpa = used};
    ring->busy = calloc((size + 63) / 64, sizeof *ring->busy);
    ring->resubmit = calloc(size, sizeof *ring->resubmit);
    if (ring->busy == NULL || ring->resubmit == NULL) {
        crb_vring_free(ring);
        errno = ENOMEM;
        return NULL;
    }
    if (!map_parts(ring, desc, avail, used)) {
        crb_vring_free(ring);
        errno = EFAULT;
        return NULL;
    }
    ring->used_idx = load16(ring->used + 2);
    ring->notified = ring->used_idx;
    // A ring taken over may hold used elements its former device never notified the driver of.
    ring->notified_valid = ring->used_idx == 0;
    return ring;
}

void crb_vring_free(crb_vring *ring) {
    if (ring == NULL) return;
    free(ring->busy);
    free(ring->resubmit);
    free(ring);
}

static bool is_busy(const crb_vring *ring, uint16_t head) {
    return (ring->busy[head / 64] >> (head % 64) & 1) != 0;
}

// One copy, then a compiler barrier: no field can be fetched again from memory the guest can write.
static descriptor load_descriptor(const uint8_t *at) {
    descriptor found;
    memcpy(&found, at, sizeof found);
    __asm__ volatile("" ::: "memory");
    return found;
}

// The table a walk is in: the ring's own, or one indirect one.
typedef struct table {
    const uint8_t *host; // NULL: not contiguous on the host; read through `gpa`
    uint64_t gpa;
    uint32_t count;
    bool indirect;
} table;

static descriptor table_get(crb_vring *ring, const table *from, uint16_t index) {
    const uint64_t offset = (uint64_t)DESC_SIZE * index;
    if (from->host != NULL) return load_descriptor(from->host + offset);
    descriptor found = {0};
    crb_memory_read(ring->memory, from->gpa + offset, &found, sizeof found);
    return found;
}

// Section 2.7.5.3.
static int enter_indirect(crb_vring *ring, table *at, const descriptor *desc) {
    if (at->indirect) return CRB_RING_INDIRECT_NESTED;
    if (!ring->indirect) return CRB_RING_INDIRECT;
    if ((desc->flags & F_NEXT) != 0) return CRB_RING_INDIRECT_NEXT;
    if (desc->len == 0 || desc->len % DESC_SIZE != 0 ||
        desc->len / DESC_SIZE > CRB_CHAIN_MAX_DESCRIPTORS)
        return CRB_RING_INDIRECT_SIZE;
    if (desc->addr + desc->len < desc->addr || !crb_memory_has(ring->memory, desc->addr, desc->len))
        return CRB_RING_ADDRESS;
    uint64_t run = desc->len;
    const uint8_t *host = crb_translate(ring->memory, desc->addr, &run, false);
    *at = (table){.host = run == desc->len ? host : NULL,
                  .gpa = desc->addr,
                  .count = desc->len / DESC_SIZE,
                  .indirect = true};
    return 0;
}

static int add_piece(crb_chain *chain, uint8_t *at, uint64_t length, bool write) {
    const uint64_t n = chain->n_readable + chain->n_writable;
    const bool first = write ? chain->n_writable == 0 : chain->n_readable == 0;
    if (!first && chain->segments[n - 1].at + chain->segments[n - 1].length == at) {
        chain->segments[n - 1].length += length;
        return 0;
    }
    if (n == CRB_CHAIN_MAX_SEGMENTS) return CRB_RING_TOO_LONG;
    chain->segments[n] = (crb_segment){.at = at, .length = length};
    if (write)
        chain->n_writable++;
    else
        chain->n_readable++;
    return 0;
}

static int add_buffer(crb_vring *ring, crb_chain *chain, const descriptor *desc) {
    const bool write = (desc->flags & F_WRITE) != 0;
    if (desc->len == 0) return CRB_RING_EMPTY_BUFFER;
    if (!write && chain->writable_length != 0) return CRB_RING_ORDER;
    if (desc->addr + desc->len < desc->addr) return CRB_RING_ADDRESS;
    // Section 2.7.5.2: no more than 2^32 bytes in a chain; `written` must fit a used element.
    if (chain->readable_length + chain->writable_length + desc->len > UINT32_MAX)
        return CRB_RING_TOO_LONG;
    for (uint64_t done = 0; done < desc->len;) {
        uint64_t run = desc->len - done;
        uint8_t *at = crb_translate(ring->memory, desc->addr + done, &run, write);
        if (at == NULL) return CRB_RING_ADDRESS;
        const int error = add_piece(chain, at, run, write);
        if (error != 0) return error;
        done += run;
    }
    if (write)
        chain->writable_length += desc->len;
    else
        chain->readable_length += desc->len;
    return 0;
}

// Walks the chain from `head` (already checked). `left` bounds all descriptors, `seen` those of the
// present table, so a loop ends after at most one round of it.
static int walk(crb_vring *ring, crb_chain *chain, uint16_t head) {
    table at = {.host = ring->desc, .count = ring->size};
    uint32_t left = CRB_CHAIN_MAX_DESCRIPTORS;
    uint32_t seen = 0;
    uint16_t index = head;
    for (;;) {
        if (index >= at.count) return CRB_RING_NEXT;
        if (++seen > at.count) return CRB_RING_LOOP;
        if (left-- == 0) return CRB_RING_TOO_LONG;
        const descriptor desc = table_get(ring, &at, index);
        if ((desc.flags & F_INDIRECT) != 0) {
            const int error = enter_indirect(ring, &at, &desc);
            if (error != 0) return error;
            seen = 0;
            index = 0;
            continue;
        }
        const int error = add_buffer(ring, chain, &desc);
        if (error != 0) return error;
        if ((desc.flags & F_NEXT) == 0) return 0;
        index = desc.next;
    }
}

// The head to serve next: 1 and `*head`, 0 when there is none, or an error.
static int next_head(crb_vring *ring, uint16_t *head) {
    if (ring->next_resubmit < ring->n_resubmit) {
        *head = ring->resubmit[ring->next_resubmit];
        return 1;
    }
    if (ring->last_avail == ring->shadow_avail) {
        const uint16_t idx = avail_idx(ring);
        const uint16_t ready = (uint16_t)(idx - ring->last_avail);
        if (ready == 0) return 0;
        if (ready > ring->size) return CRB_RING_AVAIL_JUMP;
        ring->shadow_avail = idx;
    }
    *head = load16(ring->avail + 4 + 2u * (ring->last_avail & (ring->size - 1u)));
    if (*head >= ring->size) return CRB_RING_HEAD;
    return is_busy(ring, *head) ? CRB_RING_BUSY_HEAD : 1;
}

static void take(crb_vring *ring, uint16_t head) {
    ring->in_flight++;
    if (ring->next_resubmit < ring->n_resubmit) {
        ring->next_resubmit++;
        return; // its bit and its in-flight record are already set
    }
    ring->busy[head / 64] |= UINT64_C(1) << (head % 64);
    if (ring->inflight != NULL) {
        ring->inflight->desc[head].counter = ring->counter++;
        __atomic_store_n(&ring->inflight->desc[head].inflight, 1, __ATOMIC_RELEASE);
    }
    ring->last_avail++;
}

int crb_vring_pop(crb_vring *ring, crb_chain *chain) {
    if (ring->broken != 0) return ring->broken;
    uint16_t head = 0;
    int result = next_head(ring, &head);
    if (result == 0) return 0;
    chain->head = head;
    chain->n_readable = chain->n_writable = 0;
    chain->readable_length = chain->writable_length = 0;
    if (result == 1) result = walk(ring, chain, head);
    if (result < 0) {
        ring->broken = (int16_t)result;
        return result;
    }
    take(ring, head);
    return (int)(chain->n_readable + chain->n_writable);
}

// The order below is the one the vhost-user protocol prescribes, so that a successor can tell
// whether the used index was published for the batch that ends in last_batch_head.
int crb_vring_push_batch(crb_vring *ring, const crb_used *used, uint32_t count) {
    if (count > ring->in_flight) return -1;
    for (uint32_t i = 0; i < count; i++)
        if (used[i].head >= ring->size || !is_busy(ring, (uint16_t)used[i].head)) return -1;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t slot = (uint16_t)(ring->used_idx + i) & (ring->size - 1u);
        const uint32_t element[2] = {used[i].head, used[i].written};
        memcpy(used_for_write(ring, 4 + USED_ELEM * slot, USED_ELEM), element, USED_ELEM);
    }
    const uint16_t first = ring->inflight == NULL ? 0 : ring->inflight->last_batch_head;
    for (uint32_t i = 0; ring->inflight != NULL && i < count; i++)
        ring->inflight->desc[used[i].head].next = i == 0 ? first : (uint16_t)used[i - 1].head;
    if (ring->inflight != NULL && count != 0)
        __atomic_store_n(&ring->inflight->last_batch_head, (uint16_t)used[count - 1].head,
                         __ATOMIC_RELEASE);
    ring->used_idx = (uint16_t)(ring->used_idx + count);
    __atomic_store_n((uint16_t *)used_for_write(ring, 2, 2), ring->used_idx, __ATOMIC_RELEASE);
    for (uint32_t i = 0; i < count; i++) {
        const uint16_t head = (uint16_t)used[i].head;
        if (ring->inflight != NULL)
            __atomic_store_n(&ring->inflight->desc[head].inflight, 0, __ATOMIC_RELEASE);
        ring->busy[head / 64] &= ~(UINT64_C(1) << (head % 64));
    }
    if (ring->inflight != NULL)
        __atomic_store_n(&ring->inflight->used_idx, ring->used_idx, __ATOMIC_RELEASE);
    ring->in_flight = (uint16_t)(ring->in_flight - count);
    return 0;
}

int crb_vring_push(crb_vring *ring, uint16_t head, uint32_t written) {
    const crb_used used = {.head = head, .written = written};
    return crb_vring_push_batch(ring, &used, 1);
}

crb_vring_mark crb_vring_mark_of(const crb_vring *ring) {
    return (crb_vring_mark){.last_avail = ring->last_avail, .next_resubmit = ring->next_resubmit};
}

void crb_vring_untake(crb_vring *ring, const crb_vring_mark *mark, const crb_used *taken,
                      uint32_t count) {
    // A predecessor's come first, and stay marked. From the last on: whoever is killed meanwhile leaves marked what
    // comes first on the ring, from which a successor counts.
    const uint32_t first = (uint16_t)(ring->next_resubmit - mark->next_resubmit);
    for (uint32_t i = count; i-- > first;) {
        const uint32_t head = taken[i].head;
        if (ring->inflight != NULL)
            __atomic_store_n(&ring->inflight->desc[head].inflight, 0, __ATOMIC_RELEASE);
        ring->busy[head / 64] &= ~(UINT64_C(1) << (head % 64));
    }
    ring->last_avail = mark->last_avail;
    ring->next_resubmit = mark->next_resubmit;
    ring->in_flight = (uint16_t)(ring->in_flight - count);
}

// Section 2.7.7.2 and 2.7.10: with EVENT_IDX, notify when the used index passed used_event.
bool crb_vring_should_notify(crb_vring *ring) {
    const uint16_t before = ring->notified;
    const uint16_t now = ring->used_idx;
    const bool known = ring->notified_valid;
    if (before == now && known) return false;
    ring->notified = now;
    ring->notified_valid = true;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!ring->event_idx) return (load16(ring->avail) & AVAIL_NO_INTERRUPT) == 0;
    return !known || (uint16_t)(now - used_event(ring) - 1) < (uint16_t)(now - before);
}

bool crb_vring_pending(const crb_vring *ring) {
    return ring->next_resubmit < ring->n_resubmit || ring->broken != 0 ||
           avail_idx(ring) != ring->last_avail;
}

// Asks for a kick when `index` has been made available.
static void ask_for_kick(crb_vring *ring, uint16_t index) {
    if (ring->event_idx) {
        const uint64_t offset = 4 + (uint64_t)USED_ELEM * ring->size;
        uint8_t *at = used_for_write(ring, offset, 2);
        __atomic_store_n((uint16_t *)at, index, __ATOMIC_RELAXED);
    } else {
        __atomic_store_n((uint16_t *)used_for_write(ring, 0, 2), 0, __ATOMIC_RELAXED);
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

bool crb_vring_enable_kicks(crb_vring *ring) {
    ask_for_kick(ring, ring->last_avail);
    return crb_vring_pending(ring);
}

bool crb_vring_want_more(crb_vring *ring) {
    ask_for_kick(ring, ring->shadow_avail);
    return avail_idx(ring) != ring->shadow_avail;
}

// With EVENT_IDX an avail_event left behind suppresses kicks by itself.
void crb_vring_disable_kicks(crb_vring *ring) {
    if (ring->event_idx) return;
    __atomic_store_n((uint16_t *)used_for_write(ring, 0, 2), USED_NO_NOTIFY, __ATOMIC_RELAXED);
}

uint64_t crb_inflight_size(uint32_t size) {
    if (size == 0 || size > CRB_RING_MAX_SIZE || (size & (size - 1)) != 0) return 0;
    return sizeof(crb_inflight) + (uint64_t)size * sizeof(crb_inflight_entry);
}

typedef struct undone {
    uint64_t counter;
    uint16_t head;
} undone;

static int by_counter(const void *left, const void *right) {
    const uint64_t a = ((const undone *)left)->counter;
    const uint64_t b = ((const undone *)right)->counter;
    return a < b ? -1 : a > b;
}

// A predecessor that died between publishing used->idx and clearing its records has given the last
// batch back: the records from last_batch_head on. False when they lead outside the table.
static bool finish_batch(const crb_vring *ring, crb_inflight *region) {
    uint16_t left = (uint16_t)(ring->used_idx - region->used_idx);
    uint16_t head = region->last_batch_head;
    if (left > ring->size) return false;
    for (; left > 0; left--) {
        if (head >= ring->size) return false;
        region->desc[head].inflight = 0;
        head = region->desc[head].next;
    }
    region->used_idx = ring->used_idx;
    return true;
}

// What is still marked is resubmitted in the order it was popped.
static int recover(crb_vring *ring, crb_inflight *region) {
    if (!finish_batch(ring, region)) return -1;
    undone *list = calloc(ring->size, sizeof *list);
    if (list == NULL) return -1;
    uint16_t n = 0;
    for (uint32_t head = 0; head < ring->size; head++) {
        if (region->desc[head].inflight != 1) continue;
        list[n++] = (undone){.counter = region->desc[head].counter, .head = (uint16_t)head};
    }
    qsort(list, n, sizeof *list, by_counter);
    for (uint16_t i = 0; i < n; i++) {
        ring->resubmit[i] = list[i].head;
        ring->busy[list[i].head / 64] |= UINT64_C(1) << (list[i].head % 64);
    }
    ring->n_resubmit = n;
    ring->counter = n == 0 ? 0 : list[n - 1].counter + 1;
    ring->last_avail = ring->shadow_avail = (uint16_t)(ring->used_idx + n);
    free(list);
    return 0;
}

int crb_vring_track(crb_vring *ring, uint8_t *region) {
    crb_inflight *inflight = (crb_inflight *)region;
    if (inflight->version == 0) {
        inflight->version = 1;
        inflight->desc_num = ring->size;
        inflight->used_idx = ring->used_idx;
    } else if (inflight->version != 1 || inflight->desc_num != ring->size ||
               recover(ring, inflight) != 0) {
        errno = EINVAL;
        return -1;
    }
    ring->inflight = inflight;
    return 0;
}
