// Random numbers, and operands that find mistakes.
#include "blocks.h"

static uint64_t state[2];

// splitmix64, then xorshift128+.
void random_seed(uint64_t seed) {
    for (int i = 0; i < 2; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15ull;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        state[i] = z ^ z >> 31;
    }
}

uint64_t random64(void) {
    uint64_t a = state[0];
    const uint64_t b = state[1];
    state[0] = b;
    a ^= a << 23;
    state[1] = a ^ b ^ a >> 17 ^ b >> 26;
    return state[1] + b;
}

uint64_t integer_value(void) {
    static const uint64_t edges[] = {0,
                                     1,
                                     2,
                                     3,
                                     ~0ull,
                                     ~0ull - 1,
                                     1ull << 63,
                                     ~0ull >> 1,
                                     1ull << 31,
                                     0x7fffffff,
                                     ~0ull << 31,
                                     1ull << 32,
                                     0xffffffff,
                                     0xff,
                                     0x80,
                                     0xffff,
                                     0x8000,
                                     ~0ull << 15,
                                     ~0ull << 63 | 1,
                                     0x5555555555555555ull};
    switch (below(5)) {
    case 0:
        return edges[below(sizeof edges / sizeof *edges)];
    case 1:
        return (1ull << below(64)) + below(5) - 2;
    case 2:
        return -(random64() >> below(64));
    case 3:
        return random64() >> below(64);
    default:
        return random64();
    }
}

// A number or NaN of a format: special, subnormal, near the ends, near one, anything.
static uint64_t pattern(uint32_t width, uint32_t point) {
    const uint64_t ones = (1ull << point) - 1;
    const uint32_t bias = (1u << (width - point - 2)) - 1;
    const uint64_t infinity = (uint64_t)(2 * bias + 1) << point;
    const uint64_t sign = (random64() & 1) << (width - 1);
    const uint64_t edges[] = {0, 1, ones, ones - 1, 1ull << (point - 1)};
    const uint64_t specials[] = {0,
                                 infinity,
                                 infinity | 1ull << (point - 1),
                                 infinity | 1,
                                 infinity | (random64() & ones),
                                 infinity - 1};
    uint64_t fraction = chance(50) ? edges[below(5)] : random64() & ones;
    uint32_t biased = bias - point - 2 + below(2 * point + 4);
    if (chance(30)) fraction &= ~0ull << below(point);
    switch (below(9)) {
    case 0:
        return sign | specials[below(6)];
    case 1:
        return sign | (random64() & ones) >> below(point);
    case 2:
        return random64() & (~0ull >> (64 - width));
    case 3:
        biased = below(point + 4);
        break;
    case 4:
        biased = 2 * bias - below(point + 4);
        break;
    case 5:
        biased = bias / 2 + below(2 * point) - point;
        break;
    case 6:
        biased = bias - 2 + below(70);
        break;
    }
    if (biased > 2 * bias) biased = 2 * bias;
    return sign | (uint64_t)biased << point | fraction;
}

// A double, a boxed single or half, or one in no valid box.
uint64_t float_value(void) {
    const uint32_t kind = below(24);
    if (kind == 0) return pattern(32, 23) | (random64() & 0xffffffff) << 32;
    if (kind < 3) return pattern(16, 10) | ~0ull << 16;
    if (kind == 3) return pattern(16, 10) | (random64() & 0xffff) << 16 | ~0ull << 32;
    return kind < 14 ? pattern(64, 52) : pattern(32, 23) | ~0ull << 32;
}
