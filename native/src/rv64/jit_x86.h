// x86-64 machine code, an instruction a call. Nothing here knows of the guest.
//
// Opcodes are written as the manual has them: 0x0faf is 0f af, 0xf30fb8 is f3 (rex) 0f b8. `w` is
// REX.W: 64-bit operands. Memory operands are [base + disp] or [base + index + disp].
#ifndef CRUMBLE_RV64_JIT_X86_H
#define CRUMBLE_RV64_JIT_X86_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

// Conditions, as in jcc and setcc.
enum {
    CC_O = 0,
    CC_B = 2,
    CC_AE = 3,
    CC_E = 4,
    CC_NE = 5,
    CC_BE = 6,
    CC_A = 7,
    CC_S = 8,
    CC_P = 10,
    CC_NP = 11,
    CC_L = 12,
    CC_GE = 13,
    CC_LE = 14,
    CC_G = 15,
};

// Where code goes: writable addresses; what it holds is relative only.
typedef struct crb_emit {
    uint8_t *at;
} crb_emit;

static inline void put8(crb_emit *e, uint32_t value) {
    *e->at++ = (uint8_t)value;
}

static inline void put32(crb_emit *e, uint32_t value) {
    memcpy(e->at, &value, 4);
    e->at += 4;
}

static inline void put64(crb_emit *e, uint64_t value) {
    memcpy(e->at, &value, 8);
    e->at += 8;
}

// ---- Encoding

static inline void put_opcode(crb_emit *e, uint32_t opcode, uint32_t rex, bool force) {
    if (opcode > 0xffff) put8(e, opcode >> 16);
    if (rex != 0 || force) put8(e, 0x40 | rex);
    if ((opcode & 0xff00) != 0) put8(e, opcode >> 8);
    put8(e, opcode);
}

static inline void put_modrm_memory(crb_emit *e, int reg, int base, int32_t disp) {
    const uint32_t mode = disp == 0 && (base & 7) != RBP ? 0 : disp == (int8_t)disp ? 0x40 : 0x80;
    put8(e, mode | (uint32_t)(reg & 7) << 3 | (uint32_t)(base & 7));
    if ((base & 7) == RSP) put8(e, 0x24);
    if (mode == 0x40) put8(e, (uint32_t)disp);
    if (mode == 0x80) put32(e, (uint32_t)disp);
}

static inline void put_modrm_indexed(crb_emit *e, int reg, int base, int index, int32_t disp) {
    const uint32_t mode = disp == 0 && (base & 7) != RBP ? 0 : disp == (int8_t)disp ? 0x40 : 0x80;
    put8(e, mode | (uint32_t)(reg & 7) << 3 | 4);
    put8(e, (uint32_t)(index & 7) << 3 | (uint32_t)(base & 7));
    if (mode == 0x40) put8(e, (uint32_t)disp);
    if (mode == 0x80) put32(e, (uint32_t)disp);
}

static inline uint32_t rex_bits(bool w, int reg, int index, int base) {
    return (uint32_t)w << 3 | (uint32_t)(reg >> 3) << 2 | (uint32_t)(index >> 3) << 1 |
           (uint32_t)(base >> 3);
}

// reg is the register field, rm the other operand.
static inline void x86_rr(crb_emit *e, bool w, uint32_t opcode, int reg, int rm) {
    put_opcode(e, opcode, rex_bits(w, reg, 0, rm), false);
    put8(e, 0xc0 | (uint32_t)(reg & 7) << 3 | (uint32_t)(rm & 7));
}

// With byte registers: spl to dil need a prefix.
static inline void x86_rr8(crb_emit *e, bool w, uint32_t opcode, int reg, int rm) {
    put_opcode(e, opcode, rex_bits(w, reg, 0, rm), reg >= 4 || rm >= 4);
    put8(e, 0xc0 | (uint32_t)(reg & 7) << 3 | (uint32_t)(rm & 7));
}

static inline void x86_rm(crb_emit *e, bool w, uint32_t opcode, int reg, int base, int32_t disp) {
    put_opcode(e, opcode, rex_bits(w, reg, 0, base), false);
    put_modrm_memory(e, reg, base, disp);
}

static inline void x86_rx(crb_emit *e, bool w, uint32_t opcode, int reg, int base, int index,
                          int32_t disp) {
    put_opcode(e, opcode, rex_bits(w, reg, index, base), false);
    put_modrm_indexed(e, reg, base, index, disp);
}

// A store of a byte register.
static inline void x86_rx8(crb_emit *e, uint32_t opcode, int reg, int base, int index,
                           int32_t disp) {
    put_opcode(e, opcode, rex_bits(false, reg, index, base), reg >= 4);
    put_modrm_indexed(e, reg, base, index, disp);
}

// [rip + what leads to `to`]; no immediate may follow.
static inline void x86_rip(crb_emit *e, bool w, uint32_t opcode, int reg, const uint8_t *to) {
    put_opcode(e, opcode, rex_bits(w, reg, 0, 0), false);
    put8(e, (uint32_t)(reg & 7) << 3 | 5);
    put32(e, (uint32_t)(to - (e->at + 4)));
}

enum { VEX_0F = 1, VEX_0F38 = 2, VEX_0F3A = 3 };
enum { VEX_NONE, VEX_66, VEX_F3, VEX_F2 };

static inline void put_vex(crb_emit *e, uint32_t map, uint32_t prefix, bool w, int reg, int second,
                           int base) {
    put8(e, 0xc4);
    put8(e, (reg < 8 ? 0x80u : 0) | 0x40 | (base < 8 ? 0x20u : 0) | map);
    put8(e, (uint32_t)w << 7 | (uint32_t)(~second & 15) << 3 | prefix);
}

// Three operands: reg, second, rm.
static inline void vex_rr(crb_emit *e, uint32_t map, uint32_t prefix, bool w, uint32_t opcode,
                          int reg, int second, int rm) {
    put_vex(e, map, prefix, w, reg, second, rm);
    put8(e, opcode);
    put8(e, 0xc0 | (uint32_t)(reg & 7) << 3 | (uint32_t)(rm & 7));
}

static inline void vex_rm(crb_emit *e, uint32_t map, uint32_t prefix, bool w, uint32_t opcode,
                          int reg, int second, int base, int32_t disp) {
    put_vex(e, map, prefix, w, reg, second, base);
    put8(e, opcode);
    put_modrm_memory(e, reg, base, disp);
}

static inline void vex_rx(crb_emit *e, uint32_t map, uint32_t prefix, bool w, uint32_t opcode,
                          int reg, int second, int base, int index, int32_t disp) {
    put_vex(e, map, prefix, w, reg, second, base);
    if (index >= 8) e->at[-2] &= (uint8_t)~0x40u;
    put8(e, opcode);
    put_modrm_indexed(e, reg, base, index, disp);
}

// ---- Integer instructions

// Two operands, as `op reg, r/m`; the form `op r/m, reg` is 2 less. Immediates: the number is in
// the register field.
enum { ALU_ADD = 0x03, ALU_OR = 0x0b, ALU_AND = 0x23, ALU_SUB = 0x2b, ALU_XOR = 0x33 };
enum { ALU_CMP = 0x3b };
enum { SHIFT_ROL, SHIFT_ROR, SHIFT_SHL = 4, SHIFT_SHR, SHIFT_SAR = 7 };

static inline uint32_t alu_number(uint32_t alu) {
    return alu >> 3;
}

static inline void x86_alu_ri(crb_emit *e, bool w, uint32_t alu, int reg, int32_t imm) {
    const bool small = imm == (int8_t)imm;
    x86_rr(e, w, small ? 0x83 : 0x81, (int)alu_number(alu), reg);
    if (small)
        put8(e, (uint32_t)imm);
    else
        put32(e, (uint32_t)imm);
}

static inline void x86_alu_mi(crb_emit *e, bool w, uint32_t alu, int base, int32_t disp,
                              int32_t imm) {
    const bool small = imm == (int8_t)imm;
    x86_rm(e, w, small ? 0x83 : 0x81, (int)alu_number(alu), base, disp);
    if (small)
        put8(e, (uint32_t)imm);
    else
        put32(e, (uint32_t)imm);
}

static inline void x86_mov(crb_emit *e, int to, int from) {
    if (to != from) x86_rr(e, true, 0x8b, to, from);
}

static inline void x86_mov32(crb_emit *e, int to, int from) {
    x86_rr(e, false, 0x8b, to, from);
}

static inline void x86_load(crb_emit *e, int to, int base, int32_t disp) {
    x86_rm(e, true, 0x8b, to, base, disp);
}

static inline void x86_store(crb_emit *e, int from, int base, int32_t disp) {
    x86_rm(e, true, 0x89, from, base, disp);
}

static inline void x86_mov_imm(crb_emit *e, int to, uint64_t value) {
    if (value == 0) {
        x86_rr(e, false, ALU_XOR, to, to);
    } else if (value <= UINT32_MAX) {
        put_opcode(e, 0xb8 | (uint32_t)(to & 7), rex_bits(false, 0, 0, to), false);
        put32(e, (uint32_t)value);
    } else if ((int64_t)value == (int32_t)value) {
        x86_rr(e, true, 0xc7, 0, to);
        put32(e, (uint32_t)value);
    } else {
        put_opcode(e, 0xb8 | (uint32_t)(to & 7), rex_bits(true, 0, 0, to), false);
        put64(e, value);
    }
}

static inline void x86_store_imm(crb_emit *e, int base, int32_t disp, int32_t value) {
    x86_rm(e, true, 0xc7, 0, base, disp);
    put32(e, (uint32_t)value);
}

static inline void x86_shift_imm(crb_emit *e, bool w, int shift, int reg, uint32_t amount) {
    x86_rr(e, w, 0xc1, shift, reg);
    put8(e, amount);
}

// By cl.
static inline void x86_shift(crb_emit *e, bool w, int shift, int reg) {
    x86_rr(e, w, 0xd3, shift, reg);
}

static inline void x86_lea(crb_emit *e, int to, int base, int32_t disp) {
    x86_rm(e, true, 0x8d, to, base, disp);
}

// to = sign extension of from's low half.
static inline void x86_sext32(crb_emit *e, int to, int from) {
    x86_rr(e, true, 0x63, to, from);
}

// Rotates right without touching flags.
static inline void x86_rorx32(crb_emit *e, int to, int from, uint32_t amount) {
    vex_rr(e, VEX_0F3A, VEX_F2, false, 0xf0, to, 0, from);
    put8(e, amount);
}

static inline void x86_setcc(crb_emit *e, int cc, int reg) {
    x86_rr8(e, false, 0x0f90 | (uint32_t)cc, 0, reg);
    x86_rr8(e, false, 0x0fb6, reg, reg);
}

// ---- Jumps: 32-bit distances

static inline void x86_jmp(crb_emit *e, const uint8_t *to) {
    put8(e, 0xe9);
    put32(e, (uint32_t)(to - (e->at + 4)));
}

// To be placed: returns what x86_place wants.
static inline uint8_t *x86_jmp_later(crb_emit *e) {
    put8(e, 0xe9);
    put32(e, 0);
    return e->at - 4;
}

static inline uint8_t *x86_jcc_later(crb_emit *e, int cc) {
    put8(e, 0x0f);
    put8(e, 0x80 | (uint32_t)cc);
    put32(e, 0);
    return e->at - 4;
}

// The jump whose distance is at `jump` leads to `to`.
static inline void x86_place(uint8_t *jump, const uint8_t *to) {
    const uint32_t distance = (uint32_t)(to - (jump + 4));
    memcpy(jump, &distance, 4);
}

static inline void x86_call(crb_emit *e, const uint8_t *to) {
    put8(e, 0xe8);
    put32(e, (uint32_t)(to - (e->at + 4)));
}

// Its distance is to be placed (x86_place).
static inline uint8_t *x86_call_later(crb_emit *e) {
    put8(e, 0xe8);
    put32(e, 0);
    return e->at - 4;
}

static inline void x86_push(crb_emit *e, int reg) {
    put_opcode(e, 0x50 | (uint32_t)(reg & 7), rex_bits(false, 0, 0, reg), false);
}

static inline void x86_pop(crb_emit *e, int reg) {
    put_opcode(e, 0x58 | (uint32_t)(reg & 7), rex_bits(false, 0, 0, reg), false);
}

static inline void x86_ret(crb_emit *e) {
    put8(e, 0xc3);
}

// jmp or call through a register: field 4 or 2.
static inline void x86_indirect(crb_emit *e, int field, int reg) {
    x86_rr(e, false, 0xff, field, reg);
}

#endif
