// Hot blocks as machine code of the host. What runs when: README.md, "The translator".
#ifndef CRUMBLE_RV64_JIT_H
#define CRUMBLE_RV64_JIT_H

#include "rv64/hart.h"

// How often a block is interpreted before it is translated: two thirds of a booting kernel's blocks
// never are.
#define CRB_JIT_HEAT 16

#define CRB_JIT_CODE  (24u << 20)
#define CRB_JIT_SITES (2u << 20)
// What one block's code may take, cold parts included.
#define CRB_JIT_BLOCK_MAX (64u << 10)
#define CRB_JIT_MAX_EXITS (1u << 20)

// A jump out of a block: by the page offset of its target, to another page when `site` is not 0.
typedef struct crb_jit_exit {
    uint32_t jump; // where its distance is, in the code
    uint32_t code_page;
    int32_t target;
    uint32_t site;
} crb_jit_exit;

// A jump to another page is direct while the target's virtual address and the generation are these.
typedef struct crb_jit_site {
    uint64_t pc;
    uint32_t gen;
    uint32_t unused;
} crb_jit_site;

struct crb_jit {
    uint8_t *rw;       // code, then sites, writable
    const uint8_t *rx; // the same, executable
    uint32_t heat;
    uint32_t used, first;
    uint32_t n_sites, n_exits;
    crb_jit_exit *exits;
    // Offsets of what crb_jit_stubs() made.
    uint32_t enter, slow, leave, link, jump, back;
    bool returns; // guest calls are calls of the host's
};

// Makes the parts of the code that blocks share. Only where CRB_JIT_HOST.
void crb_jit_stubs(struct crb_jit *jit);
// Translates a block whose first operation this is; its code's offset, 0 when it cannot be.
uint32_t crb_jit_translate(crb_hart *hart, crb_op *entry, uint32_t code_page);
bool crb_jit_host_able(void);

// Called by translated code. Where to go on: an address of code, NULL to leave with
// hart->jit_result.
const void *crb_jit_follow(crb_hart *hart, uint32_t exit);
const void *crb_jit_indirect(crb_hart *hart);
const void *crb_jit_back(crb_hart *hart, uint32_t exit);
// Does one operation out of line.
crb_result crb_jit_slow(crb_hart *hart, uint32_t op);

#endif
