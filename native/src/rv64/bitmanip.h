// Zba, Zbb and Zbs (bit-manipulation extension 1.0.0) as pure functions on 64-bit registers.
// The plain logic (andn, orn, xnor) and min and max are here too, so that one table covers them
// all.
#ifndef CRUMBLE_RV64_BITMANIP_H
#define CRUMBLE_RV64_BITMANIP_H

#include <stdint.h>

// ---- Zba: addresses

static inline uint64_t crb_sh1add(uint64_t a, uint64_t b) {
    return (a << 1) + b;
}

static inline uint64_t crb_sh2add(uint64_t a, uint64_t b) {
    return (a << 2) + b;
}

static inline uint64_t crb_sh3add(uint64_t a, uint64_t b) {
    return (a << 3) + b;
}

static inline uint64_t crb_add_uw(uint64_t a, uint64_t b) {
    return (uint32_t)a + b;
}

static inline uint64_t crb_sh1add_uw(uint64_t a, uint64_t b) {
    return ((uint64_t)(uint32_t)a << 1) + b;
}

static inline uint64_t crb_sh2add_uw(uint64_t a, uint64_t b) {
    return ((uint64_t)(uint32_t)a << 2) + b;
}

static inline uint64_t crb_sh3add_uw(uint64_t a, uint64_t b) {
    return ((uint64_t)(uint32_t)a << 3) + b;
}

static inline uint64_t crb_slli_uw(uint64_t a, uint64_t shift) {
    return (uint64_t)(uint32_t)a << (shift & 63);
}

// ---- Zbb: logic with a complement, counts, order, rotation, bytes

static inline uint64_t crb_andn(uint64_t a, uint64_t b) {
    return a & ~b;
}

static inline uint64_t crb_orn(uint64_t a, uint64_t b) {
    return a | ~b;
}

static inline uint64_t crb_xnor(uint64_t a, uint64_t b) {
    return ~(a ^ b);
}

static inline uint64_t crb_clz(uint64_t a) {
    return a == 0 ? 64 : (uint64_t)__builtin_clzll(a);
}

static inline uint64_t crb_clzw(uint64_t a) {
    return (uint32_t)a == 0 ? 32 : (uint64_t)__builtin_clz((uint32_t)a);
}

static inline uint64_t crb_ctz(uint64_t a) {
    return a == 0 ? 64 : (uint64_t)__builtin_ctzll(a);
}

static inline uint64_t crb_ctzw(uint64_t a) {
    return (uint32_t)a == 0 ? 32 : (uint64_t)__builtin_ctz((uint32_t)a);
}

static inline uint64_t crb_cpop(uint64_t a) {
    return (uint64_t)__builtin_popcountll(a);
}

static inline uint64_t crb_cpopw(uint64_t a) {
    return (uint64_t)__builtin_popcount((uint32_t)a);
}

static inline uint64_t crb_max(uint64_t a, uint64_t b) {
    return (int64_t)a > (int64_t)b ? a : b;
}

static inline uint64_t crb_min(uint64_t a, uint64_t b) {
    return (int64_t)a < (int64_t)b ? a : b;
}

static inline uint64_t crb_maxu(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static inline uint64_t crb_minu(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static inline uint64_t crb_sext_b(uint64_t a) {
    return (uint64_t)(int64_t)(int8_t)a;
}

static inline uint64_t crb_sext_h(uint64_t a) {
    return (uint64_t)(int64_t)(int16_t)a;
}

static inline uint64_t crb_zext_h(uint64_t a) {
    return (uint16_t)a;
}

static inline uint64_t crb_rol(uint64_t a, uint64_t shift) {
    return a << (shift & 63) | a >> (-shift & 63);
}

// Also rori.
static inline uint64_t crb_ror(uint64_t a, uint64_t shift) {
    return a >> (shift & 63) | a << (-shift & 63);
}

static inline uint64_t crb_rolw(uint64_t a, uint64_t shift) {
    uint32_t low = (uint32_t)a;
    return (uint64_t)(int64_t)(int32_t)(low << (shift & 31) | low >> (-shift & 31));
}

// Also roriw.
static inline uint64_t crb_rorw(uint64_t a, uint64_t shift) {
    uint32_t low = (uint32_t)a;
    return (uint64_t)(int64_t)(int32_t)(low >> (shift & 31) | low << (-shift & 31));
}

// Each byte becomes 0xff if any of its bits is set.
static inline uint64_t crb_orc_b(uint64_t a) {
    const uint64_t low7 = 0x7f7f7f7f7f7f7f7full;
    uint64_t top = ((a & low7) + low7) | a; // bit 7 of each byte: not zero
    return ((top & ~low7) >> 7) * 0xff;
}

static inline uint64_t crb_rev8(uint64_t a) {
    return __builtin_bswap64(a);
}

// ---- Zbs: single bits, also their immediate forms

static inline uint64_t crb_bset(uint64_t a, uint64_t bit) {
    return a | 1ull << (bit & 63);
}

static inline uint64_t crb_bclr(uint64_t a, uint64_t bit) {
    return a & ~(1ull << (bit & 63));
}

static inline uint64_t crb_binv(uint64_t a, uint64_t bit) {
    return a ^ 1ull << (bit & 63);
}

static inline uint64_t crb_bext(uint64_t a, uint64_t bit) {
    return a >> (bit & 63) & 1;
}

#endif
