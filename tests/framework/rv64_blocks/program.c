// A program of random blocks as an ELF file: generate SEED BLOCKS UNITS ROUNDS LEVEL TRAPS REWRITES FILE
//
// Each block starts from a record of all registers and ends in a result of them; so a difference is
// found in the block where it happened. Blocks run one after the other, all of them ROUNDS times.
// Under Linux a signal's handler notes what the trap did; a CPU without Linux does that by itself
// and goes on at CONTROL_NEXT. At its end the program calls write(1, results) and exit(0).
#include "blocks.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_CODE (48u << 20)

const options *wanted;
uint32_t leaves[LEAVES];

static uint8_t *code;
static uint32_t used;
static uint64_t *data;

uint32_t here(void) {
    return CODE_BASE + used;
}

uint16_t *code_at(uint32_t address) {
    return (uint16_t *)(void *)(code + (address - CODE_BASE));
}

void put16(uint32_t half) {
    if (used + 4096 > MAX_CODE) {
        fputs("too much code\n", stderr);
        exit(1);
    }
    *code_at(here()) = (uint16_t)half;
    used += 2;
}

void put32(uint32_t word) {
    put16(word & 0xffff);
    put16(word >> 16);
}

void put_point(uint32_t rd, uint32_t address) {
    put32(LUI | rd << 7 | (address + 0x800 & 0xfffff000));
    put32(encode_i(ADDIW, rd, rd, (int32_t)address));
}

void put_li(uint32_t rd, int64_t value) {
    const int64_t low = (int64_t)((uint64_t)value << 52) >> 52;
    if (value >= -(1ll << 31) && value < (1ll << 31) - 0x800) {
        if (value == low) {
            put32(encode_i(ADDI, rd, 0, (int32_t)low));
            return;
        }
        put32(LUI | rd << 7 | ((uint32_t)(value - low) & 0xfffff000));
        put32(encode_i(ADDIW, rd, rd, (int32_t)low));
        return;
    }
    put_li(rd, (int64_t)((uint64_t)value - (uint64_t)low) >> 12);
    put32(encode_i(0x1013, rd, rd, 12)); // slli
    put32(encode_i(ADDI, rd, rd, (int32_t)low));
}

// ---- What blocks share

// The registers by which a block is entered and left.
static const uint32_t bases[] = {31, 1, 10, 6};
#define BASES 4
static uint32_t enters[BASES], leaves_block[BASES];

static void control(uint32_t to, uint32_t word) {
    put32(LUI | to << 7 | DATA_BASE);
    put32(encode_i(LD, to, to, 8 * (int32_t)word));
}

static void jump_to(uint32_t target) {
    put32(JAL | jump_offset((int32_t)(target - here())));
}

// x5 is the record.
static void put_enter(uint32_t base) {
    const uint32_t other = base == 1 ? 3 : 1;
    put32(encode_i(ADDI, base, 5, 0));
    put32(encode_i(LD, other, base, 63 * 8));
    put32(encode_i(CSRRW, 0, other, CSR_FCSR));
    for (uint32_t f = 0; f < 32; f++)
        put32(encode_i(FLD, f, base, (int32_t)(31 + f) * 8));
    for (uint32_t x = 1; x < 32; x++)
        if (x != base) put32(encode_i(LD, x, base, (int32_t)(x - 1) * 8));
    put32(encode_i(LD, base, base, WORD_START * 8));
    put32(encode_i(JALR, 0, base, 0));
}

static void put_leave(uint32_t base, uint32_t next) {
    const uint32_t other = base == 1 ? 3 : 1;
    control(base, CONTROL_RESULT);
    for (uint32_t f = 0; f < 32; f++)
        put32(encode_s(FSD, f, base, (int32_t)(31 + f) * 8));
    for (uint32_t x = 1; x < 32; x++)
        if (x != base) put32(encode_s(SD, x, base, (int32_t)(x - 1) * 8));
    put32(encode_i(CSRRS, other, 0, CSR_FCSR));
    put32(encode_s(SD, other, base, 63 * 8));
    put32(encode_s(SD, 0, base, WORD_START * 8));
    put32(encode_s(SD, 0, base, WORD_ENTER * 8));
    jump_to(next);
}

static void put_ecall(uint32_t number) {
    put_li(17, number);
    put32(ECALL);
}

static void put_end(uint32_t results, uint32_t end) {
    put_point(11, results);
    put_point(12, end);
    const uint32_t more = here();
    put32(encode_r(0x40000033, 12, 12, 11)); // sub
    put_li(10, 1);
    put_ecall(64); // write
    put32(encode_r(ADD, 11, 11, 10));
    put_point(12, end);
    put32(encode_r(BNE, 0, 11, 12) | branch_offset((int32_t)(more - here())));
    put_li(10, 0);
    put_ecall(93); // exit
}

// On to the next block, or the next round's first.
static void put_next(uint32_t results, uint32_t end) {
    control(5, CONTROL_RECORD);
    control(7, CONTROL_RESULT);
    put32(LUI | 31u << 7 | DATA_BASE);
    put32(encode_i(ADDI, 5, 5, RECORD_SIZE));
    put32(encode_i(ADDI, 7, 7, RECORD_SIZE));
    put32(encode_s(SD, 5, 31, 8 * CONTROL_RECORD));
    put32(encode_s(SD, 7, 31, 8 * CONTROL_RESULT));
    put_point(6, results);
    put32(encode_r(BEQ, 0, 5, 6) | branch_offset(3 * 4));
    put32(encode_i(LD, 6, 5, WORD_ENTER * 8));
    put32(encode_i(JALR, 0, 6, 0));
    put32(encode_i(LD, 6, 31, 8 * CONTROL_ROUND));
    put32(encode_i(ADDI, 6, 6, 1));
    put32(encode_s(SD, 6, 31, 8 * CONTROL_ROUND));
    put_point(7, wanted->rounds);
    put32(encode_r(BEQ, 0, 6, 7) | branch_offset(2 * 4));
    jump_to(CODE_BASE);
    put_end(results, end);
}

// A round's start: as if a block before the first had ended.
static void put_round(uint32_t records, uint32_t results) {
    put_point(5, records - RECORD_SIZE);
    put_point(7, results - RECORD_SIZE);
    put32(LUI | 31u << 7 | DATA_BASE);
    put32(encode_s(SD, 5, 31, 8 * CONTROL_RECORD));
    put32(encode_s(SD, 7, 31, 8 * CONTROL_RESULT));
}

// a0 signal, a2 what was interrupted: struct ucontext of Linux, whose registers are at 176.
static void put_handler(uint32_t next) {
    control(5, CONTROL_RESULT);
    put32(encode_i(LD, 6, 12, 176));
    put32(encode_s(SD, 6, 5, WORD_START * 8));
    put32(encode_s(SD, 10, 5, WORD_ENTER * 8));
    for (int32_t word = 0; word < 63; word++) {
        put32(encode_i(LD, 6, 12, 184 + 8 * word));
        put32(encode_s(SD, 6, 5, 8 * word));
    }
    put32(encode_i(LWU, 6, 12, 184 + 8 * 63));
    put32(encode_s(SD, 6, 5, 8 * 63));
    jump_to(next);
}

// sigaltstack and rt_sigaction from what is in the first page, then the first round.
static void put_linux_start(uint32_t handler) {
    static const uint32_t signals[] = {4, 5, 7, 11};
    put_point(10, DATA_BASE + 0x100);
    put_li(11, 0);
    put_ecall(132);
    for (int i = 0; i < 4; i++) {
        put_li(10, signals[i]);
        put_point(11, DATA_BASE + 0x200);
        put_li(12, 0);
        put_li(13, 8);
        put_ecall(134);
    }
    data[0x100 / 8] = STACK - 0x4000;
    data[0x110 / 8] = 0x4000;
    data[0x200 / 8] = handler;
    data[0x208 / 8] = 0x48000004; // SA_NODEFER, SA_ONSTACK, SA_SIGINFO
    jump_to(CODE_BASE);
}

// ---- Blocks

static uint64_t *word_of(uint32_t address) {
    return data + (address - DATA_BASE) / 8;
}

static void put_record(const block *b, uint32_t record, uint32_t start, uint32_t enter) {
    uint64_t *words = word_of(record);
    for (uint32_t x = 1; x < 32; x++)
        words[x - 1] = integer_value();
    for (uint32_t f = 0; f < 32; f++)
        words[31 + f] = float_value();
    words[2 - 1] = b->scratch + 256 + 16 * below(8);
    words[b->near - 1] = (b->scratch + 512 & ~7u) + 8 * below(9) - 32;
    words[b->rough - 1] = b->scratch + 512 + below(240);
    words[63] = below(5) << 5 | below(32);
    words[WORD_START] = start;
    words[WORD_ENTER] = enter;
    for (uint32_t i = 0; i < SCRATCH_SIZE / 8; i++)
        word_of(b->scratch & ~7u)[i] = chance(50) ? integer_value() : float_value();
}

static void write_all(int fd, const void *from, uint64_t size) {
    const uint8_t *at = from;
    while (size > 0) {
        const ssize_t done = write(fd, at, size);
        if (done <= 0) {
            perror("write");
            exit(1);
        }
        at += done;
        size -= (uint64_t)done;
    }
}

static void put_segment(uint64_t *words, uint32_t flags, uint64_t offset, uint64_t address,
                        uint64_t size) {
    const uint64_t header[] = {
        1 | (uint64_t)flags << 32, offset, address, address, size, size, 4096};
    memcpy(words, header, sizeof header);
}

static void write_elf(const char *path, uint32_t entry, uint32_t data_size) {
    uint64_t header[4096 / 8] = {0};
    const uint32_t code_size = used + 4095 & ~4095u;
    const uint64_t start[] = {
        0x00010102464c457full,           0, 2 | 243 << 16 | 1ull << 32, entry, 64, 0,
        5 | (64ull | 56ull << 16) << 32, 2};
    memcpy(header, start, sizeof start);
    put_segment(header + 8, 6, 4096, DATA_BASE, data_size);
    put_segment(header + 15, 7, 4096 + data_size, CODE_BASE, code_size);
    const int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0700);
    if (fd < 0) {
        perror(path);
        exit(1);
    }
    write_all(fd, header, sizeof header);
    write_all(fd, data, data_size);
    write_all(fd, code, code_size);
    close(fd);
}

int main(int argc, char **argv) {
    if (argc != 9) {
        fputs("generate SEED BLOCKS UNITS ROUNDS LEVEL TRAPS REWRITES FILE\n", stderr);
        return 2;
    }
    const options given = {
        .seed = strtoull(argv[1], NULL, 10),
        .blocks = (uint32_t)atoi(argv[2]),
        .units = (uint32_t)atoi(argv[3]),
        .rounds = (uint32_t)atoi(argv[4]),
        .level = (uint32_t)atoi(argv[5]),
        .traps = (uint32_t)atoi(argv[6]),
        .rewrites = (uint32_t)atoi(argv[7]),
    };
    wanted = &given;
    random_seed(given.seed);
    const uint32_t records = DATA;
    const uint32_t results = records + given.blocks * RECORD_SIZE;
    // Not at a page's start: some scratch buffers lie across two pages.
    const uint32_t scratch = (results + given.blocks * RECORD_SIZE + 4095 & ~4095u) + 576;
    const uint32_t end = scratch + given.blocks * SCRATCH_SIZE + 4095 & ~4095u;
    code = calloc(1, MAX_CODE);
    data = calloc(1, end - DATA_BASE);
    if (code == NULL || data == NULL) return 1;
    put_round(records, results);
    const uint32_t next = here();
    put_next(results, end);
    const uint32_t handler = here();
    put_handler(next);
    const uint32_t entry = here();
    put_linux_start(handler);
    for (uint32_t i = 0; i < BASES; i++) {
        enters[i] = here();
        put_enter(bases[i]);
        leaves_block[i] = here();
        put_leave(bases[i], next);
    }
    for (uint32_t i = 0; i < LEAVES; i++) {
        leaves[i] = here();
        leaf_operations(i % 2 == 0 ? 1 : 5);
    }
    for (uint32_t i = 0; i < POOL_WORDS; i++)
        *word_of(POOL + 8 * i) = float_value();
    for (uint32_t i = 0; i < given.blocks; i++) {
        const uint32_t way = below(BASES);
        block b;
        block_begin(&b, bases[way], scratch + i * SCRATCH_SIZE);
        const uint32_t start = here();
        block_stream(&b, given.units);
        put32(LUI | b.base << 7 | (leaves_block[way] + 0x800 & 0xfffff000));
        put32(encode_i(JALR, 0, b.base, (int32_t)leaves_block[way]));
        put_record(&b, records + i * RECORD_SIZE, start, enters[way]);
    }
    data[CONTROL_NEXT] = next;
    data[CONTROL_END] = end;
    data[CONTROL_RESULTS] = results;
    write_elf(argv[8], entry, end - DATA_BASE);
    return 0;
}
