// Random instruction streams. They end: branches go forwards, but for loops over a register that
// nothing else writes. They touch the block's scratch buffer only, unless they are to trap, and
// read nothing that differs between CPUs.
#include "blocks.h"
#include "forms.h"

#define CTZW     0x6010101bu
#define CTZW_OPS 0x000f8f80u

// ---- Labels that are placed a few units later

typedef enum { TO_BRANCH, TO_JUMP, TO_SHORT_BRANCH, TO_SHORT_JUMP, TO_POINT, TO_SLOT } label_kind;

typedef struct label {
    label_kind kind;
    uint32_t at; // the instruction that leads there
    uint32_t left;
    uint32_t word; // SLOT: what is to be rewritten
} label;

#define MAX_LABELS 256
static label labels[MAX_LABELS];
static uint32_t n_labels;

static uint32_t word_at(uint32_t at) {
    return (uint32_t)code_at(at)[0] | (uint32_t)code_at(at)[1] << 16;
}

static void set_word(uint32_t at, uint32_t word) {
    code_at(at)[0] = (uint16_t)word;
    code_at(at)[1] = (uint16_t)(word >> 16);
}

static uint16_t short_branch(int32_t offset) {
    const uint32_t u = (uint32_t)offset;
    if (offset > 254) return 0;
    return (uint16_t)((u >> 8 & 1) << 12 | (u >> 3 & 3) << 10 | (u >> 6 & 3) << 5 |
                      (u >> 1 & 3) << 3 | (u >> 5 & 1) << 2);
}

static uint16_t short_jump(int32_t offset) {
    const uint32_t u = (uint32_t)offset;
    return (uint16_t)((u >> 11 & 1) << 12 | (u >> 4 & 1) << 11 | (u >> 8 & 3) << 9 |
                      (u >> 10 & 1) << 8 | (u >> 6 & 1) << 7 | (u >> 7 & 1) << 6 |
                      (u >> 1 & 7) << 3 | (u >> 5 & 1) << 2);
}

static void place(const label *l) {
    if (l->kind == TO_SLOT && (here() & 2) != 0) put16(C_NOP); // for atomics
    const uint32_t to = here();
    const int32_t offset = (int32_t)(to - l->at);
    switch (l->kind) {
    case TO_BRANCH:
        set_word(l->at, word_at(l->at) | branch_offset(offset));
        break;
    case TO_JUMP:
        set_word(l->at, word_at(l->at) | jump_offset(offset));
        break;
    case TO_SHORT_BRANCH:
        if (short_branch(offset) == 0)
            *code_at(l->at) = C_NOP;
        else
            *code_at(l->at) |= short_branch(offset);
        break;
    case TO_SHORT_JUMP:
        *code_at(l->at) |= short_jump(offset);
        break;
    case TO_POINT:
    case TO_SLOT:
        set_word(l->at, word_at(l->at) | (to + 0x800 & 0xfffff000));
        set_word(l->at + 4, word_at(l->at + 4) | (to & 0xfff) << 20);
        if (l->kind == TO_SLOT) put32(l->word);
        break;
    }
}

static void place_labels(bool everything) {
    uint32_t kept = 0;
    const uint32_t n = n_labels;
    for (uint32_t i = 0; i < n; i++) {
        label l = labels[i];
        if (everything || --l.left == 0)
            place(&l);
        else
            labels[kept++] = l;
    }
    n_labels = kept;
}

// What was just emitted at `at` leads to somewhere ahead.
static label *lead(label_kind kind, uint32_t at) {
    if (n_labels == MAX_LABELS) place_labels(true);
    labels[n_labels] = (label){.kind = kind, .at = at, .left = 1 + below(4)};
    return &labels[n_labels++];
}

// ---- Operands

static uint32_t source(void) {
    return below(32);
}

static uint32_t writable(const block *b) {
    return b->writable[below(b->n_writable)];
}

static uint32_t rd(const block *b) {
    return chance(97) ? writable(b) : 0;
}

static bool is_writable(const block *b, uint32_t x) {
    for (uint32_t i = 0; i < b->n_writable; i++)
        if (b->writable[i] == x) return true;
    return false;
}

static uint32_t rounding(void) {
    return chance(50) ? 7 : below(5);
}

static int32_t immediate12(void) {
    static const int32_t edges[] = {0, 1, -1, 2047, -2048};
    return chance(50) ? edges[below(5)] : (int32_t)below(4096) - 2048;
}

// rd and immediates as they come; only rd of x registers is chosen with care.
static uint32_t with_operands(const block *b, const form *f) {
    uint32_t any = (uint32_t)random64();
    const uint32_t m = f->operands;
    if (!f->float_rd && (m & 0xf80) != 0) any = (any & ~0xf80u) | rd(b) << 7;
    if ((m & 0x7000) != 0 && (m & 0xfff00000) != 0xfff00000)
        any = (any & ~0x7000u) | rounding() << 12;
    if ((m & 0xfff07000) == 0xfff00000) any = (any & 0xfffff) | (uint32_t)immediate12() << 20;
    return f->match | (any & m);
}

static const form *choose(uint32_t set) {
    const form *f;
    do
        f = &forms[first_form[set] + below(first_form[set + 1] - first_form[set])];
    while (f->level > wanted->level);
    return f;
}

// ---- Units

static void integer(const block *b) {
    uint32_t word = with_operands(b, choose(SET_INTEGER));
    if ((word & ~CTZW_OPS) == CTZW && wanted->level < 2) {
        // QEMU before 8.0 counts on into the upper half: it is given an empty one.
        const uint32_t to = word >> 7 & 31;
        put32(encode_r(ADD_UW, to, word >> 15 & 31, 0));
        word = encode_r(CTZW, to, to, 0);
    }
    put32(word);
}

static void constant(const block *b) {
    put_li(writable(b), (int64_t)integer_value());
}

static void floating(const block *b) {
    const form *f = choose(SET_FLOATING);
    const uint32_t word = with_operands(b, f);
    const uint32_t opcode = word & 0x7f;
    const bool from_integer = opcode == 0x53 && ((word >> 27) == 0x1a || (word >> 27) == 0x1e);
    if (chance(60) && !from_integer) {
        const uint32_t pointer = writable(b);
        put_point(pointer, POOL + 8 * below(POOL_WORDS - 256));
        for (int shift = 15; shift <= (opcode == 0x53 ? 20 : 27); shift += shift == 15 ? 5 : 7)
            if ((f->operands >> shift & 31) != 0)
                put32(encode_i(FLD, word >> shift & 31, pointer, 8 * (int32_t)below(255)));
    }
    put32(word);
    if (chance(40)) put32(encode_i(CSRRWI, rd(b), 0, CSR_FFLAGS));
}

// A load to, or a store of, any register.
static void access(const block *b, uint32_t set, uint32_t base, int32_t offset) {
    const form *f = choose(set);
    if (set == SET_STORE)
        put32(encode_s(f->match, source(), base, offset));
    else
        put32(encode_i(f->match, f->float_rd ? source() : rd(b), base, offset));
}

static uint32_t load_or_store(void) {
    return chance(50) ? SET_LOAD : SET_STORE;
}

static void memory(const block *b) {
    const uint32_t set = load_or_store();
    if (chance(50)) {
        const int32_t offset = chance(40) ? (int32_t[]){0, 2047, -2048}[below(3)] : immediate12();
        const uint32_t base = writable(b);
        put_point(base, b->scratch + below(SCRATCH_SIZE - 7) - (uint32_t)offset);
        access(b, set, base, offset);
        return;
    }
    const uint32_t which = below(3);
    const int32_t low = (int32_t[]){-256, -512, 0}[which];
    const uint32_t base = (uint32_t[]){b->near, b->rough, 2}[which];
    access(b, set, base, low + (int32_t)below((uint32_t)(256 - low)));
}

// By another pointer of those that programs like most.
static void elsewhere(const block *b) {
    const uint32_t other = b->near_writable[below(b->n_near_writable)];
    put_point(other, b->scratch + below(SCRATCH_SIZE - 8));
    access(b, load_or_store(), other, 0);
}

// By one pointer, as of a structure or a stack frame, others in between.
static void structure(const block *b) {
    const uint32_t base = chance(50) ? 2 : b->near;
    const uint32_t set = load_or_store();
    for (uint32_t n = 2 + below(6); n > 0; n--) {
        access(b, set, base, (int32_t)below(300) - 100);
        if (chance(30)) integer(b);
        if (chance(20)) floating(b);
        if (chance(30)) elsewhere(b);
    }
}

static uint32_t atomic_address(const block *b) {
    const uint32_t base = writable(b);
    put32(encode_i(ADDI, base, b->near, 8 * ((int32_t)below(64) - 32)));
    return base;
}

static void atomic(const block *b) {
    const form *f = choose(SET_AMO);
    const uint32_t base = atomic_address(b);
    put32(encode_r(f->match, rd(b), base, source()) | below(4) << 25);
}

static uint32_t writable_but(const block *b, uint32_t x) {
    uint32_t found;
    do
        found = writable(b);
    while (found == x);
    return found;
}

// lr, a few instructions without memory, sc: it succeeds. A second sc fails.
static void reservation(const block *b) {
    const uint32_t wide = below(2) << 12;
    const uint32_t base = atomic_address(b);
    put32(encode_r(0x1000202f | wide, writable_but(b, base), base, 0) | below(4) << 25);
    for (uint32_t n = below(3); n > 0; n--)
        put32(encode_r(ADD, writable_but(b, base), source(), source()));
    for (uint32_t n = chance(30) ? 2 : 1; n > 0; n--)
        put32(encode_r(0x1800202f | wide, writable_but(b, base), base, source()));
}

static void branch(const block *b) {
    const uint32_t at = here();
    if (chance(25)) {
        put16((uint16_t)((chance(50) ? 0xc001 : 0xe001) | below(8) << 7));
        lead(TO_SHORT_BRANCH, at);
    } else {
        put32(encode_r(choose(SET_BRANCH)->match, 0, source(), source()));
        lead(TO_BRANCH, at);
    }
}

static void jump(const block *b) {
    const uint32_t at = here();
    const uint32_t which = below(5);
    if (which == 0) {
        put32(JAL | rd(b) << 7);
        lead(TO_JUMP, at);
    } else if (which == 1) {
        put16(0xa001);
        lead(TO_SHORT_JUMP, at);
    } else {
        const uint32_t pointer = writable(b);
        put32(LUI | pointer << 7);
        put32(encode_r(ADDIW, pointer, pointer, 0));
        lead(TO_POINT, at);
        if (which == 2)
            put32(encode_i(JALR, rd(b), pointer, (int32_t)below(2))); // bit 0 is cleared
        else
            put16((uint16_t)((which == 3 && is_writable(b, 1) ? 0x9002 : 0x8002) | pointer << 7));
    }
}

// To a function that comes back: as compilers call, or through a register.
static void call(const block *b) {
    const uint32_t function = below(LEAVES);
    const uint32_t to = leaves[function];
    const uint32_t link = function % 2 == 0 ? 1 : 5;
    if (!is_writable(b, link)) return;
    const uint32_t at = here();
    if (chance(40) && at - to < 1 << 20) {
        put32(JAL | link << 7 | jump_offset((int32_t)(to - at)));
    } else if (chance(50)) {
        const uint32_t distance = to - at;
        put32(AUIPC | link << 7 | (distance + 0x800 & 0xfffff000));
        put32(encode_i(JALR, link, link, (int32_t)distance));
    } else {
        const uint32_t pointer = writable(b);
        put_point(pointer, to);
        put32(encode_i(JALR, link, pointer, 0));
    }
}

static void control_register(const block *b) {
    static const uint32_t flags_by_register[] = {CSRRW, CSRRS, CSRRC};
    const uint32_t value = writable(b);
    switch (below(8)) {
    case 0:
        // What no rounding mode is, too, where that may trap.
        put32(encode_i(CSRRWI, rd(b), below(b->traps && chance(20) ? 8 : 5), CSR_FRM));
        break;
    case 1:
        put_li(value, below(5) << 5 | below(32));
        put32(encode_i(CSRRW, rd(b), value, CSR_FCSR));
        break;
    case 2:
        put32(encode_i(CSRRS, rd(b), 0, 1 + (int32_t)below(3)));
        break;
    case 3:
        put32(encode_i(flags_by_register[below(3)], rd(b), source(), CSR_FFLAGS));
        break;
    case 4:
        put32(encode_i(flags_by_register[below(3)] | 0x4000, rd(b), source(), CSR_FFLAGS));
        break;
    case 5:
        put32(encode_i(CSRRC | below(2) << 14, rd(b), source(), CSR_FRM));
        break;
    default:
        put32(chance(70) ? FENCE : FENCE_I);
    }
}

static void compressed(const block *b) {
    const short_form *f;
    do
        f = &short_forms[below(N_SHORT_FORMS)];
    while (f->level > wanted->level);
    uint32_t half = f->match | ((uint32_t)random64() & f->immediate);
    if (f->nonzero && (half & f->immediate) == 0) half |= f->immediate & -f->immediate;
    for (int i = 0; f->registers[i] != 0; i++) {
        const bool base = f->memory && !f->sp && i == 1;
        const bool target = i == 0 && !f->store;
        switch (f->registers[i]) {
        case 'p':
        case 'q':
            half |= (base                   ? b->near - 8
                     : target && !f->floats ? b->near_writable[below(b->n_near_writable)] - 8
                                            : below(8))
                    << (f->registers[i] == 'p' ? 7 : 2);
            break;
        case 's':
        case 'S':
            half |= (f->registers[i] == 'S' ? 1 + below(31) : source()) << 2;
            break;
        default:
            half |= (f->floats ? source() : writable(b)) << 7;
        }
    }
    put16((uint16_t)half);
}

// c.addi16sp forth and back, and a store in between.
static void move_sp(const block *b) {
    const uint32_t amount = 16 * (1 + below(15));
    const uint32_t both[] = {amount, -amount};
    for (int i = 0; i < 2; i++) {
        const uint32_t u = both[i];
        put16((uint16_t)(0x6101 | (u >> 9 & 1) << 12 | (u >> 4 & 1) << 6 | (u >> 6 & 1) << 5 |
                         (u >> 7 & 3) << 3 | (u >> 5 & 1) << 2));
        if (i == 0) put16((uint16_t)(0xc002 | below(16) << 9 | source() << 2));
    }
}

// ---- Code that rewrites itself

// Stores a word, part of it, or by an atomic, at an address in `pointer`.
static void store_code(uint32_t pointer, uint32_t value, uint32_t word) {
    const uint32_t f = source();
    switch (below(5)) {
    case 0:
        put_li(value, (int16_t)(word >> 16));
        put32(encode_s(SH, value, pointer, 2)); // the immediate
        break;
    case 1:
        put_li(value, (int8_t)(word >> 24));
        put32(encode_s(SB, value, pointer, 3));
        break;
    case 2:
        put_li(value, (int32_t)word);
        put32(encode_r(AMOSWAP_W, 0, pointer, value));
        break;
    case 3:
        put_li(value, (int32_t)word);
        put32(encode_r(FMV_W_X, f, value, 0));
        put32(encode_s(FSW, f, pointer, 0));
        break;
    default:
        put_li(value, (int32_t)word);
        put32(encode_s(SW, value, pointer, 0));
    }
    put32(FENCE_I);
}

// Another immediate for an instruction ahead; perhaps in one round only.
static void rewrite(const block *b) {
    static const uint32_t kinds[] = {ADDI, 0x4013, 0x2013, ADDIW, 0x7013};
    const uint32_t pointer = writable(b);
    const uint32_t value = writable_but(b, pointer);
    const uint32_t to = writable(b);
    const uint32_t kind = kinds[below(5)];
    const uint32_t test = here();
    if (wanted->rounds > 1) {
        put32(LUI | value << 7 | DATA_BASE);
        put32(encode_i(LW, value, value, 8 * CONTROL_ROUND));
        put32(encode_i(ADDI, value, value, -(int32_t)below(wanted->rounds)));
        put32(encode_r(BNE, 0, value, 0));
    }
    const uint32_t at = here();
    put32(LUI | pointer << 7);
    put32(encode_r(ADDIW, pointer, pointer, 0));
    store_code(pointer, value, encode_i(kind, to, to, immediate12()));
    if (wanted->rounds > 1)
        set_word(test + 12, word_at(test + 12) | branch_offset((int32_t)(here() - test - 12)));
    label *slot = lead(TO_SLOT, at);
    slot->word = encode_i(kind, to, to, immediate12());
    slot->left += below(6);
}

// ---- What traps

static void bad_access(const block *b) {
    const int64_t places[] = {HOLE, HOLE + below(4096), 0, 8, DATA_BASE - 8, 1ll << 36};
    const uint32_t base = writable(b);
    put_li(base, places[below(6)]);
    if (chance(25))
        put32(encode_r(choose(SET_AMO)->match, rd(b), base, source()));
    else
        access(b, load_or_store(), base, 0);
}

// Some bytes behind the last page.
static void bad_crossing(const block *b) {
    const uint32_t base = writable(b);
    put32(LUI | base << 7 | DATA_BASE);
    put32(encode_i(LD, base, base, 8 * CONTROL_END));
    access(b, load_or_store(), base, -(int32_t)below(8));
}

static void bad_atomic(const block *b) {
    const uint32_t base = writable(b);
    put32(encode_i(ADDI, base, b->near, 1 + (int32_t)below(3)));
    put32(encode_r(choose(SET_AMO)->match | below(2) << 12, rd(b), base, source()));
}

static void bad_csr(const block *b) {
    static const int32_t numbers[] = {0x100, 0x105, 0x180, 0x141, 0x300,
                                      0x341, 0x7b0, 0x5ff, 0x800};
    if (chance(30))
        put32(encode_i(CSRRW, rd(b), source(), 0xc00)); // cycle can be read only
    else
        put32(encode_i(chance(50) ? CSRRS : CSRRW, rd(b), source(), numbers[below(9)]));
}

static void bad_rounding(void) {
    put32(encode_r(0x02000053, source(), source(), source()) | (5 + below(2)) << 12);
}

static void trap(const block *b) {
    const uint32_t pointer = writable(b);
    switch (below(10)) {
    case 0:
        put16(0);
        break;
    case 1:
        put32(0xffffffff);
        break;
    case 2:
        if (chance(50))
            put16(0x9002);
        else
            put32(EBREAK);
        break;
    case 3:
        bad_csr(b);
        break;
    case 4:
        bad_rounding();
        break;
    case 5:
        put_point(pointer, HOLE + 2 * below(4096));
        put32(encode_i(JALR, rd(b), pointer, 0));
        break;
    case 6:
        bad_atomic(b);
        break;
    case 7:
        bad_crossing(b);
        break;
    default:
        bad_access(b);
    }
}

// ---- Streams

static void loop(const block *b);

typedef struct weighted {
    void (*make)(const block *b);
    uint32_t weight;
} weighted;

static const weighted makers[] = {
    {integer, 24},         {compressed, 19}, {move_sp, 1}, {floating, 24}, {memory, 12},
    {structure, 4},        {atomic, 5},      {branch, 8},  {jump, 3},      {reservation, 1},
    {control_register, 3}, {constant, 6},    {call, 3},    {loop, 2},
};
#define MAKERS (sizeof makers / sizeof *makers)

static void unit(const block *b, uint32_t n_makers) {
    uint32_t total = 0;
    for (uint32_t i = 0; i < n_makers; i++)
        total += makers[i].weight;
    uint32_t at = below(total);
    for (uint32_t i = 0; i < n_makers; i++) {
        if (at < makers[i].weight) {
            makers[i].make(b);
            break;
        }
        at -= makers[i].weight;
    }
    place_labels(false);
}

static void loop(const block *b) {
    place_labels(true);
    put32(encode_i(ADDI, b->counter, 0, 1 + (int32_t)below(4)));
    const uint32_t again = here();
    for (uint32_t n = 1 + below(5); n > 0; n--)
        unit(b, MAKERS - 1);
    place_labels(true);
    put32(encode_i(ADDI, b->counter, b->counter, -1));
    put32(encode_r(BNE, 0, b->counter, 0) | branch_offset((int32_t)(again - here())));
}

void block_begin(block *b, uint32_t base, uint32_t scratch) {
    static const uint32_t nears[] = {8, 9, 11, 12, 13, 14, 15};
    *b = (block){.base = base, .scratch = scratch, .traps = chance(wanted->traps)};
    b->near = nears[below(7)];
    b->counter = 16 + below(12);
    b->rough = b->counter == 27 ? 16 : b->counter + 1;
    for (uint32_t x = 1; x < 32; x++)
        if (x != 2 && x != b->near && x != b->counter && x != b->rough)
            b->writable[b->n_writable++] = x;
    for (uint32_t x = 8; x < 16; x++)
        if (x != b->near) b->near_writable[b->n_near_writable++] = x;
}

void block_stream(block *b, uint32_t units) {
    const bool rewrites = chance(wanted->rewrites);
    for (uint32_t i = 0; i < units; i++) {
        unit(b, MAKERS);
        if (rewrites && chance(20)) rewrite(b);
        if (b->traps && chance(2 + 100 / units)) trap(b);
    }
    place_labels(true);
}

void leaf_operations(uint32_t link) {
    static const uint32_t may[] = {6, 7, 28};
    block b = {.n_writable = 3, .n_near_writable = 1};
    for (int i = 0; i < 3; i++)
        b.writable[i] = may[i];
    for (uint32_t n = below(4); n > 0; n--)
        integer(&b);
    if (chance(30)) floating(&b);
    if (chance(20)) branch(&b);
    if (chance(50)) integer(&b);
    place_labels(true);
    put32(encode_i(JALR, 0, link, 0));
}
