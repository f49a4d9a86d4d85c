// Compressed instructions (RISC-V unprivileged ISA, chapters "C", RV64, "Zcb" and "Zimop"): each
// stands for one 32-bit instruction.
#include "rv64/hart.h"

static uint32_t bits(uint32_t half, int high, int low) {
    return half >> low & ((1u << (high - low + 1)) - 1);
}

static uint32_t bit(uint32_t half, int from, int to) {
    return (half >> from & 1) << to;
}

static int32_t sign(uint32_t value, int width) {
    return (int32_t)(value << (32 - width)) >> (32 - width);
}

static uint32_t i_type(int32_t imm, uint32_t rs1, uint32_t funct3, uint32_t rd, uint32_t opcode) {
    return (uint32_t)imm << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode;
}

static uint32_t s_type(uint32_t imm, uint32_t rs2, uint32_t rs1, uint32_t funct3, uint32_t opcode) {
    return (imm >> 5) << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | (imm & 31) << 7 | opcode;
}

static uint32_t r_type(uint32_t funct7, uint32_t rs2, uint32_t rs1, uint32_t funct3, uint32_t rd,
                       uint32_t opcode) {
    return funct7 << 25 | rs2 << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode;
}

static uint32_t b_type(int32_t offset, uint32_t rs1, uint32_t funct3) {
    const uint32_t imm = (uint32_t)offset;
    return (imm >> 12 & 1) << 31 | (imm >> 5 & 63) << 25 | rs1 << 15 | funct3 << 12 |
           (imm >> 1 & 15) << 8 | (imm >> 11 & 1) << 7 | 0x63;
}

static uint32_t jump(int32_t offset) {
    const uint32_t imm = (uint32_t)offset;
    return (imm >> 20 & 1) << 31 | (imm >> 1 & 0x3ff) << 21 | (imm >> 11 & 1) << 20 |
           (imm >> 12 & 0xff) << 12 | 0x6f;
}

static uint32_t addi4spn(uint32_t half) {
    const uint32_t imm =
        bits(half, 10, 7) << 6 | bits(half, 12, 11) << 4 | bit(half, 5, 3) | bit(half, 6, 2);
    return imm == 0 ? 0 : i_type((int32_t)imm, 2, 0, 8 + bits(half, 4, 2), 0x13);
}

// Zcb's loads and stores of bytes and halves.
static uint32_t zcb_memory(uint32_t half, uint32_t rs1, uint32_t reg) {
    const uint32_t byte = bit(half, 6, 0) | bit(half, 5, 1);
    const uint32_t halfword = bit(half, 5, 1);
    const bool second = (half >> 6 & 1) != 0;
    switch (bits(half, 12, 10)) {
    case 0:
        return i_type((int32_t)byte, rs1, 4, reg, 0x03); // c.lbu
    case 1:
        return i_type((int32_t)halfword, rs1, second ? 1 : 5, reg, 0x03); // c.lh, c.lhu
    case 2:
        return s_type(byte, reg, rs1, 0, 0x23); // c.sb
    case 3:
        return second ? 0 : s_type(halfword, reg, rs1, 1, 0x23); // c.sh
    default:
        return 0;
    }
}

static uint32_t quadrant0(uint32_t half) {
    const uint32_t word = bits(half, 12, 10) << 3 | bit(half, 6, 2) | bit(half, 5, 6);
    const uint32_t doubleword = bits(half, 12, 10) << 3 | bits(half, 6, 5) << 6;
    const uint32_t rs1 = 8 + bits(half, 9, 7);
    const uint32_t reg = 8 + bits(half, 4, 2);
    switch (half >> 13) {
    case 0:
        return addi4spn(half);
    case 1:
        return i_type((int32_t)doubleword, rs1, 3, reg, 0x07); // c.fld
    case 2:
        return i_type((int32_t)word, rs1, 2, reg, 0x03);
    case 3:
        return i_type((int32_t)doubleword, rs1, 3, reg, 0x03);
    case 5:
        return s_type(doubleword, reg, rs1, 3, 0x27); // c.fsd
    case 4:
        return zcb_memory(half, rs1, reg);
    case 6:
        return s_type(word, reg, rs1, 2, 0x23);
    case 7:
        return s_type(doubleword, reg, rs1, 3, 0x23);
    default:
        return 0;
    }
}

static uint32_t zcb_arithmetic(uint32_t half, uint32_t rd, uint32_t which) {
    if (which == 6) return r_type(1, 8 + bits(half, 4, 2), rd, 0, rd, 0x33); // c.mul
    switch (bits(half, 4, 2)) {
    case 0:
        return i_type(0xff, rd, 7, rd, 0x13); // c.zext.b
    case 1:
        return i_type(0x604, rd, 1, rd, 0x13); // c.sext.b
    case 2:
        return r_type(4, 0, rd, 4, rd, 0x3b); // c.zext.h
    case 3:
        return i_type(0x605, rd, 1, rd, 0x13); // c.sext.h
    case 4:
        return r_type(4, 0, rd, 0, rd, 0x3b); // c.zext.w
    case 5:
        return i_type(-1, rd, 4, rd, 0x13); // c.not
    default:
        return 0;
    }
}

static uint32_t arithmetic(uint32_t half) {
    static const uint8_t funct3[8] = {0, 4, 6, 7, 0, 0, 0, 0};
    const uint32_t rd = 8 + bits(half, 9, 7);
    const uint32_t rs2 = 8 + bits(half, 4, 2);
    const uint32_t shamt = bit(half, 12, 5) | bits(half, 6, 2);
    const uint32_t which = bit(half, 12, 2) | bits(half, 6, 5);
    switch (bits(half, 11, 10)) {
    case 0:
        return i_type((int32_t)shamt, rd, 5, rd, 0x13);
    case 1:
        return i_type((int32_t)(0x400 | shamt), rd, 5, rd, 0x13);
    case 2:
        return i_type(sign(shamt, 6), rd, 7, rd, 0x13);
    default:
        break;
    }
    if (which > 5) return zcb_arithmetic(half, rd, which);
    const uint32_t sub = which == 0 || which == 4 ? 0x20 : 0;
    return r_type(sub, rs2, rd, funct3[which], rd, which >= 4 ? 0x3b : 0x33);
}

static uint32_t lui_or_addi16sp(uint32_t half) {
    const uint32_t rd = bits(half, 11, 7);
    const int32_t imm = sign(bit(half, 12, 5) | bits(half, 6, 2), 6);
    if (imm == 0 && rd < 16 && (rd & 1) != 0) return 0x13; // c.mop.n
    if (rd != 2) return imm == 0 ? 0 : (uint32_t)imm << 12 | rd << 7 | 0x37;
    const int32_t stack = sign(bit(half, 12, 9) | bit(half, 6, 4) | bit(half, 5, 6) |
                                   bits(half, 4, 3) << 7 | bit(half, 2, 5),
                               10);
    return stack == 0 ? 0 : i_type(stack, 2, 0, 2, 0x13);
}

static int32_t jump_offset(uint32_t half) {
    return sign(bit(half, 12, 11) | bit(half, 11, 4) | bits(half, 10, 9) << 8 | bit(half, 8, 10) |
                    bit(half, 7, 6) | bit(half, 6, 7) | bits(half, 5, 3) << 1 | bit(half, 2, 5),
                12);
}

static int32_t branch_offset(uint32_t half) {
    return sign(bit(half, 12, 8) | bits(half, 11, 10) << 3 | bits(half, 6, 5) << 6 |
                    bits(half, 4, 3) << 1 | bit(half, 2, 5),
                9);
}

static uint32_t quadrant1(uint32_t half) {
    const uint32_t rd = bits(half, 11, 7);
    const int32_t imm = sign(bit(half, 12, 5) | bits(half, 6, 2), 6);
    switch (half >> 13) {
    case 0:
        return i_type(imm, rd, 0, rd, 0x13);
    case 1:
        return rd == 0 ? 0 : i_type(imm, rd, 0, rd, 0x1b); // c.addiw
    case 2:
        return i_type(imm, 0, 0, rd, 0x13);
    case 3:
        return lui_or_addi16sp(half);
    case 4:
        return arithmetic(half);
    case 5:
        return jump(jump_offset(half));
    case 6:
        return b_type(branch_offset(half), 8 + bits(half, 9, 7), 0);
    default:
        return b_type(branch_offset(half), 8 + bits(half, 9, 7), 1);
    }
}

static uint32_t jump_or_add(uint32_t half) {
    const uint32_t rd = bits(half, 11, 7);
    const uint32_t rs2 = bits(half, 6, 2);
    const uint32_t link = half >> 12 & 1;
    if (rs2 != 0) return r_type(0, rs2, link != 0 ? rd : 0, 0, rd, 0x33); // c.add, c.mv
    if (rd != 0) return i_type(0, rd, 0, link, 0x67);                     // c.jalr, c.jr
    return link != 0 ? 0x00100073 : 0;                                    // c.ebreak
}

static uint32_t quadrant2(uint32_t half) {
    const uint32_t rd = bits(half, 11, 7);
    const uint32_t rs2 = bits(half, 6, 2);
    const uint32_t shamt = bit(half, 12, 5) | rs2;
    const uint32_t word = bit(half, 12, 5) | bits(half, 6, 4) << 2 | bits(half, 3, 2) << 6;
    const uint32_t doubleword = bit(half, 12, 5) | bits(half, 6, 5) << 3 | bits(half, 4, 2) << 6;
    const uint32_t store_word = bits(half, 12, 9) << 2 | bits(half, 8, 7) << 6;
    const uint32_t store_doubleword = bits(half, 12, 10) << 3 | bits(half, 9, 7) << 6;
    switch (half >> 13) {
    case 0:
        return i_type((int32_t)shamt, rd, 1, rd, 0x13);
    case 1:
        return i_type((int32_t)doubleword, 2, 3, rd, 0x07);
    case 2:
        return rd == 0 ? 0 : i_type((int32_t)word, 2, 2, rd, 0x03);
    case 3:
        return rd == 0 ? 0 : i_type((int32_t)doubleword, 2, 3, rd, 0x03);
    case 4:
        return jump_or_add(half);
    case 5:
        return s_type(store_doubleword, rs2, 2, 3, 0x27);
    case 6:
        return s_type(store_word, rs2, 2, 2, 0x23);
    default:
        return s_type(store_doubleword, rs2, 2, 3, 0x23);
    }
}

uint32_t crb_rvc_expand(uint32_t half) {
    switch (half & 3) {
    case 0:
        return quadrant0(half);
    case 1:
        return quadrant1(half);
    default:
        return quadrant2(half);
    }
}
