// Random riscv64 programs for two CPUs to run and to be compared by; see ../rv64_fuzz.py.
#ifndef RV64_BLOCKS_H
#define RV64_BLOCKS_H

#include <stdbool.h>
#include <stdint.h>

// ---- Where things are. rv64_fuzz.py knows the first page's words too.

#define DATA_BASE    0x40000000u
#define CODE_BASE    0x50000000u
#define HOLE         0x30000000u // nothing is mapped here, nor behind the data
#define RECORD_WORDS 68u         // x1 to x31, f0 to f31, fcsr, then these:
#define RECORD_SIZE  (RECORD_WORDS * 8u)
#define WORD_START   64u // record: where the block begins; result: the pc it trapped at, or 0
#define WORD_ENTER                                                                                 \
    65u // record: how it is entered; result: why it trapped, as Linux numbers signals
#define SCRATCH_SIZE 1024u
#define POOL_WORDS   512u

// Words of the first page.
enum { CONTROL_RECORD, CONTROL_RESULT, CONTROL_ROUND, CONTROL_NEXT, CONTROL_END, CONTROL_RESULTS };

#define POOL  (DATA_BASE + 0x1000u)
#define STACK (DATA_BASE + 0x8000u) // of signal handlers, grows downwards
#define DATA  (DATA_BASE + 0x8000u) // records, results, scratch buffers

typedef struct options {
    uint64_t seed;
    uint32_t blocks, units, rounds;
    uint32_t level; // of instructions: 1 what QEMU 7.2 knows, 2 all
    // Of a hundred blocks, how many may trap, how many rewrite themselves.
    uint32_t traps, rewrites;
} options;

// ---- values.c

uint64_t random64(void);
void random_seed(uint64_t seed);
static inline uint32_t below(uint32_t n) {
    return (uint32_t)((random64() >> 32) * n >> 32);
}
static inline bool chance(uint32_t percent) {
    return below(100) < percent;
}
// Patterns that find mistakes: edges of the integers, every kind of float.
uint64_t integer_value(void);
uint64_t float_value(void);

// ---- Instructions. forms.h is made from the assembler's tables.

enum { SET_INTEGER, SET_FLOATING, SET_LOAD, SET_STORE, SET_BRANCH, SET_AMO, SETS };

typedef struct form {
    uint32_t match;
    uint32_t operands; // the bits that are operands
    uint8_t set, level;
    bool float_rd;
} form;

// Compressed ones: which register is where, the bits of the immediate.
typedef struct short_form {
    uint16_t match, immediate;
    uint8_t level;
    bool memory, store, floats, sp, nonzero;
    char registers[3];
} short_form;

static inline uint32_t encode_r(uint32_t match, uint32_t rd, uint32_t rs1, uint32_t rs2) {
    return match | rd << 7 | rs1 << 15 | rs2 << 20;
}
static inline uint32_t encode_i(uint32_t match, uint32_t rd, uint32_t rs1, int32_t imm) {
    return match | rd << 7 | rs1 << 15 | (uint32_t)imm << 20;
}
static inline uint32_t encode_s(uint32_t match, uint32_t rs2, uint32_t rs1, int32_t imm) {
    const uint32_t u = (uint32_t)imm;
    return match | (u & 31) << 7 | rs1 << 15 | rs2 << 20 | (u >> 5 & 127) << 25;
}
static inline uint32_t branch_offset(int32_t imm) {
    const uint32_t u = (uint32_t)imm;
    return (u >> 12 & 1) << 31 | (u >> 5 & 63) << 25 | (u >> 1 & 15) << 8 | (u >> 11 & 1) << 7;
}
static inline uint32_t jump_offset(int32_t imm) {
    const uint32_t u = (uint32_t)imm;
    return (u >> 20 & 1) << 31 | (u >> 1 & 0x3ff) << 21 | (u >> 11 & 1) << 20 |
           (u >> 12 & 0xff) << 12;
}

enum {
    LUI = 0x37,
    AUIPC = 0x17,
    ADDI = 0x13,
    ADDIW = 0x1b,
    ADD = 0x33,
    ADD_UW = 0x0800003b,
    LD = 0x3003,
    LW = 0x2003,
    LWU = 0x6003,
    SD = 0x3023,
    SW = 0x2023,
    SH = 0x1023,
    SB = 0x23,
    FLD = 0x3007,
    FSD = 0x3027,
    FSW = 0x2027,
    BEQ = 0x63,
    BNE = 0x1063,
    JAL = 0x6f,
    JALR = 0x67,
    CSRRW = 0x1073,
    CSRRS = 0x2073,
    CSRRC = 0x3073,
    CSRRWI = 0x5073,
    ECALL = 0x73,
    EBREAK = 0x100073,
    FENCE = 0x0ff0000f,
    FENCE_I = 0x100f,
    AMOSWAP_W = 0x0800202f,
    FMV_W_X = 0xf0000053,
    C_NOP = 0x0001,
};

#define CSR_FFLAGS 1
#define CSR_FRM    2
#define CSR_FCSR   3

// ---- Code being made (program.c)

extern const options *wanted;
uint32_t here(void);
void put16(uint32_t half);
void put32(uint32_t word);
uint16_t *code_at(uint32_t address);
// A register's value, in one to eight instructions; an address below 2 GiB, in two.
void put_li(uint32_t rd, int64_t value);
void put_point(uint32_t rd, uint32_t address);

// Functions that blocks call: they write x1, x5 to x7 and x28 only.
#define LEAVES 64
extern uint32_t leaves[LEAVES];

// ---- stream.c

typedef struct block {
    uint32_t base;    // how it is entered and left: writable in between
    uint32_t counter; // of loops
    uint32_t rough;   // a pointer into the scratch buffer
    uint32_t near;    // one aligned to 8, that compressed instructions reach
    uint32_t writable[32], n_writable;
    uint32_t near_writable[8], n_near_writable;
    uint32_t scratch;
    bool traps;
} block;

void block_begin(block *b, uint32_t base, uint32_t scratch);
void block_stream(block *b, uint32_t units);
// Some operations on the registers that functions may write.
void leaf_operations(uint32_t link);

#endif
