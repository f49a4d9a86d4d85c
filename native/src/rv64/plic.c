// The platform-level interrupt controller (RISC-V PLIC specification 1.0), S-mode contexts only:
// context number = hart. Every source is level-sensitive.
#include "rv64/plic.h"

#include <errno.h>
#include <string.h>

#define PENDING_BASE   0x1000
#define ENABLE_BASE    0x2000
#define ENABLE_STRIDE  0x80
#define CONTEXT_BASE   0x200000
#define CONTEXT_STRIDE 0x1000
#define PRIORITY_MASK  7u

static bool get_bit(const uint32_t *bits, uint32_t source) {
    return (bits[source / 32] >> (source % 32) & 1) != 0;
}

static void put_bit(uint32_t *bits, uint32_t source, bool value) {
    const uint32_t bit = 1u << (source % 32);
    bits[source / 32] = value ? bits[source / 32] | bit : bits[source / 32] & ~bit;
}

// The best pending source for a context, 0 none. Ties go to the lowest number.
static uint32_t best(const crb_plic *plic, uint32_t context) {
    uint32_t found = 0;
    uint32_t priority = plic->threshold[context];
    for (uint32_t word = 0; word < CRB_PLIC_WORDS; word++) {
        uint32_t bits = plic->pending[word] & plic->enable[context][word];
        while (bits != 0) {
            const uint32_t source = word * 32 + (uint32_t)__builtin_ctz(bits);
            bits &= bits - 1;
            if (plic->priority[source] <= priority) continue;
            priority = plic->priority[source];
            found = source;
        }
    }
    return found;
}

static void update_context(crb_plic *plic, uint32_t context) {
    plic->drive(plic->owner, context, best(plic, context) != 0);
}

static void update(crb_plic *plic) {
    for (uint32_t context = 0; context < plic->n_contexts; context++)
        update_context(plic, context);
}

// The gateway: a high level makes one request, and another after completion if it is still high.
static void gateway(crb_plic *plic, uint32_t source) {
    if (get_bit(plic->level, source) && !get_bit(plic->claimed, source))
        put_bit(plic->pending, source, true);
}

void crb_plic_set_level(crb_plic *plic, uint32_t source, bool level) {
    if (source == 0 || source >= CRB_PLIC_SOURCES) return;
    put_bit(plic->level, source, level);
    // A device that lowers its line before anyone claimed it takes its request back, as QEMU does.
    if (!level) put_bit(plic->pending, source, false);
    gateway(plic, source);
    update(plic);
}

static uint32_t claim(crb_plic *plic, uint32_t context) {
    const uint32_t source = best(plic, context);
    if (source != 0) {
        put_bit(plic->pending, source, false);
        put_bit(plic->claimed, source, true);
        update(plic);
    }
    return source;
}

static void complete(crb_plic *plic, uint32_t context, uint32_t source) {
    if (source == 0 || source >= CRB_PLIC_SOURCES) return;
    if (!get_bit(plic->enable[context], source)) return;
    put_bit(plic->claimed, source, false);
    gateway(plic, source);
    update(plic);
}

uint32_t crb_plic_read(crb_plic *plic, uint64_t offset) {
    if (offset < CRB_PLIC_SOURCES * 4) return plic->priority[offset / 4];
    if (offset - PENDING_BASE < CRB_PLIC_WORDS * 4)
        return plic->pending[(offset - PENDING_BASE) / 4];
    if (offset - ENABLE_BASE < plic->n_contexts * (uint64_t)ENABLE_STRIDE) {
        const uint64_t context = (offset - ENABLE_BASE) / ENABLE_STRIDE;
        const uint64_t word = (offset - ENABLE_BASE) % ENABLE_STRIDE / 4;
        return word < CRB_PLIC_WORDS ? plic->enable[context][word] : 0;
    }
    if (offset - CONTEXT_BASE < plic->n_contexts * (uint64_t)CONTEXT_STRIDE) {
        const uint32_t context = (uint32_t)((offset - CONTEXT_BASE) / CONTEXT_STRIDE);
        const uint64_t reg = (offset - CONTEXT_BASE) % CONTEXT_STRIDE;
        if (reg == 0) return plic->threshold[context];
        if (reg == 4) return claim(plic, context);
    }
    return 0;
}

void crb_plic_write(crb_plic *plic, uint64_t offset, uint32_t value) {
    if (offset < CRB_PLIC_SOURCES * 4) {
        if (offset != 0) plic->priority[offset / 4] = value & PRIORITY_MASK;
        update(plic);
    } else if (offset - ENABLE_BASE < plic->n_contexts * (uint64_t)ENABLE_STRIDE) {
        const uint64_t context = (offset - ENABLE_BASE) / ENABLE_STRIDE;
        const uint64_t word = (offset - ENABLE_BASE) % ENABLE_STRIDE / 4;
        if (word >= CRB_PLIC_WORDS) return;
        plic->enable[context][word] = word == 0 ? value & ~1u : value;
        update_context(plic, (uint32_t)context);
    } else if (offset - CONTEXT_BASE < plic->n_contexts * (uint64_t)CONTEXT_STRIDE) {
        const uint32_t context = (uint32_t)((offset - CONTEXT_BASE) / CONTEXT_STRIDE);
        const uint64_t reg = (offset - CONTEXT_BASE) % CONTEXT_STRIDE;
        if (reg == 0) plic->threshold[context] = value & PRIORITY_MASK;
        if (reg == 4) complete(plic, context, value);
        update_context(plic, context);
    }
}

// ---- Snapshots

typedef struct plic_image {
    uint32_t version;
    uint32_t sources;
    uint32_t priority[CRB_PLIC_SOURCES];
    uint32_t pending[CRB_PLIC_WORDS];
    uint32_t claimed[CRB_PLIC_WORDS];
    uint32_t enable[CRB_MAX_HARTS][CRB_PLIC_WORDS];
    uint32_t threshold[CRB_MAX_HARTS];
} plic_image;
_Static_assert(sizeof(plic_image) <= CRB_PLIC_STATE_SIZE, "the PLIC's state fits");
#define PLIC_VERSION 1

void crb_plic_get_state(const crb_plic *plic, uint8_t *state) {
    plic_image image = {.version = PLIC_VERSION, .sources = CRB_PLIC_SOURCES};
    memcpy(image.priority, plic->priority, sizeof image.priority);
    memcpy(image.pending, plic->pending, sizeof image.pending);
    memcpy(image.claimed, plic->claimed, sizeof image.claimed);
    memcpy(image.enable, plic->enable, sizeof image.enable);
    memcpy(image.threshold, plic->threshold, sizeof image.threshold);
    memset(state, 0, CRB_PLIC_STATE_SIZE);
    memcpy(state, &image, sizeof image);
}

static bool valid_image(const plic_image *image) {
    if (image->version != PLIC_VERSION || image->sources != CRB_PLIC_SOURCES) return false;
    uint32_t over = 0;
    for (uint32_t i = 0; i < CRB_PLIC_SOURCES; i++)
        over |= image->priority[i] & ~7u;
    for (uint32_t i = 0; i < CRB_MAX_HARTS; i++)
        over |= (image->threshold[i] & ~7u) | (image->enable[i][0] & 1);
    return over == 0 && ((image->pending[0] | image->claimed[0]) & 1) == 0;
}

int crb_plic_set_state(crb_plic *plic, const uint8_t *state) {
    plic_image image;
    memcpy(&image, state, sizeof image);
    if (!valid_image(&image)) return -EINVAL;
    memcpy(plic->priority, image.priority, sizeof image.priority);
    memcpy(plic->pending, image.pending, sizeof image.pending);
    memcpy(plic->claimed, image.claimed, sizeof image.claimed);
    memcpy(plic->enable, image.enable, sizeof image.enable);
    memcpy(plic->threshold, image.threshold, sizeof image.threshold);
    update(plic);
    return 0;
}
