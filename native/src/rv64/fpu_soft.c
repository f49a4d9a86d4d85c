// The integer floating point engine. Every operation is: take the operands apart, answer NaNs,
// infinities and zeros, compute the exact magnitude as a 128-bit integer times a power of two (what
// does not fit is kept as a set lowest bit, "jammed"), then round once in round_pack().
#include "rv64/fpu_soft.h"

typedef unsigned __int128 u128;

const crb_format crb_binary16 = {
    .precision = 11, .emin = -14, .emax = 15, .sign = 0x8000, .infinity = 0x7c00, .nan = 0x7e00};
const crb_format crb_binary32 = {.precision = 24,
                                 .emin = -126,
                                 .emax = 127,
                                 .sign = 0x80000000,
                                 .infinity = 0x7f800000,
                                 .nan = 0x7fc00000};
const crb_format crb_binary64 = {.precision = 53,
                                 .emin = -1022,
                                 .emax = 1023,
                                 .sign = 0x8000000000000000,
                                 .infinity = 0x7ff0000000000000,
                                 .nan = 0x7ff8000000000000};

enum kind { ZERO, FINITE, INFINITE, QUIET, SIGNALLING };

// FINITE: (negative ? -1 : 1) * significand * 2^exponent, bit 63 of the significand set.
typedef struct number {
    enum kind kind;
    bool negative;
    int exponent;
    uint64_t significand;
} number;

// (negative ? -1 : 1) * magnitude * 2^exponent; the lowest bit stands for any remainder below.
typedef struct wide {
    bool negative;
    int exponent;
    u128 magnitude;
} wide;

static uint64_t fraction_mask(const crb_format *f) {
    return (1ull << (f->precision - 1)) - 1;
}

static bool is_nan(number n) {
    return n.kind >= QUIET;
}

static number take_apart(const crb_format *f, uint64_t bits) {
    number n = {.negative = (bits & f->sign) != 0};
    uint64_t fraction = bits & fraction_mask(f);
    int biased = (int)((bits & f->infinity) >> (f->precision - 1));
    if ((bits & f->infinity) == f->infinity) {
        uint64_t quiet = 1ull << (f->precision - 2);
        n.kind = fraction == 0 ? INFINITE : (fraction & quiet) != 0 ? QUIET : SIGNALLING;
        return n;
    }
    if (biased == 0 && fraction == 0) return n;
    n.kind = FINITE;
    n.significand = biased == 0 ? fraction : fraction | 1ull << (f->precision - 1);
    n.exponent = (biased == 0 ? 1 : biased) - f->emax - (f->precision - 1);
    int shift = __builtin_clzll(n.significand);
    n.significand <<= shift;
    n.exponent -= shift;
    return n;
}

static uint64_t signed_bits(const crb_format *f, bool negative, uint64_t bits) {
    return negative ? bits | f->sign : bits;
}

static uint64_t invalid(const crb_format *f, uint32_t *fflags) {
    *fflags |= CRB_FFLAG_NV;
    return f->nan;
}

// The answer when an operand is a NaN: canonical, invalid if any of them signals.
static uint64_t nan_answer(const crb_format *f, number a, number b, uint32_t *fflags) {
    if (a.kind == SIGNALLING || b.kind == SIGNALLING) return invalid(f, fflags);
    return f->nan;
}

static int top_bit(u128 value) {
    uint64_t high = (uint64_t)(value >> 64);
    return high != 0 ? 127 - __builtin_clzll(high) : 63 - __builtin_clzll((uint64_t)value);
}

static u128 shift_right_jam(u128 value, int shift) {
    if (shift == 0) return value;
    if (shift >= 128) return value != 0;
    return value >> shift | ((value << (128 - shift)) != 0);
}

// value / 2^shift rounded to an integer. A negative shift is exact.
static u128 round_shift(u128 value, int shift, bool negative, uint32_t rm, bool *inexact) {
    *inexact = false;
    if (shift <= 0) return value << -shift;
    u128 jammed = shift_right_jam(value, shift > 2 ? shift - 2 : 0);
    if (shift == 1) jammed <<= 1;
    u128 whole = jammed >> 2;
    uint32_t rest = (uint32_t)jammed & 3; // half, and anything below
    *inexact = rest != 0;
    bool up = rm == CRB_RM_RNE   ? rest == 3 || (rest == 2 && (whole & 1) != 0)
              : rm == CRB_RM_RMM ? rest >= 2
              : rm == CRB_RM_RDN ? rest != 0 && negative
              : rm == CRB_RM_RUP ? rest != 0 && !negative
                                 : false;
    return whole + up;
}

static uint64_t overflow(const crb_format *f, bool negative, uint32_t rm, uint32_t *fflags) {
    *fflags |= CRB_FFLAG_OF | CRB_FFLAG_NX;
    bool to_infinity =
        rm == CRB_RM_RNE || rm == CRB_RM_RMM || rm == (negative ? CRB_RM_RDN : CRB_RM_RUP);
    return signed_bits(f, negative, to_infinity ? f->infinity : f->infinity - 1);
}

// Rounds a non-zero value into the format. Tiny is judged after rounding with an unbounded exponent
// (unprivileged ISA, "Floating-Point Control and Status Register").
static uint64_t round_pack(const crb_format *f, wide value, uint32_t rm, uint32_t *fflags) {
    bool inexact;
    int exponent = value.exponent + top_bit(value.magnitude);
    int unit = exponent - (f->precision - 1) - value.exponent;
    u128 limit = (u128)1 << f->precision;
    bool tiny = exponent < f->emin;
    if (tiny) {
        u128 unbounded = round_shift(value.magnitude, unit, value.negative, rm, &inexact);
        tiny = !(exponent == f->emin - 1 && unbounded == limit);
        unit += f->emin - exponent;
        exponent = f->emin;
    }
    u128 rounded = round_shift(value.magnitude, unit, value.negative, rm, &inexact);
    if (rounded == limit) {
        rounded >>= 1;
        exponent++;
    }
    if (exponent > f->emax) return overflow(f, value.negative, rm, fflags);
    if (inexact) *fflags |= tiny ? CRB_FFLAG_UF | CRB_FFLAG_NX : CRB_FFLAG_NX;
    uint64_t significand = (uint64_t)rounded;
    uint64_t biased = significand >> (f->precision - 1) == 0 ? 0 : (uint64_t)(exponent + f->emax);
    return signed_bits(f, value.negative,
                       biased << (f->precision - 1) | (significand & fraction_mask(f)));
}

// Magnitudes brought to bit 126, so that a sum fits and a difference keeps its jammed bit far below
// what is rounded (an exponent difference of two or more cancels one bit at most).
static wide raise(wide value) {
    int shift = 126 - top_bit(value.magnitude);
    value.magnitude = shift >= 0 ? value.magnitude << shift : shift_right_jam(value.magnitude, 1);
    value.exponent -= shift;
    return value;
}

// The exact-but-jammed sum of two non-zero values, packed.
static uint64_t sum_pack(const crb_format *f, wide a, wide b, uint32_t rm, uint32_t *fflags) {
    a = raise(a);
    b = raise(b);
    if (a.exponent < b.exponent || (a.exponent == b.exponent && a.magnitude < b.magnitude)) {
        wide swap = a;
        a = b;
        b = swap;
    }
    u128 low = shift_right_jam(b.magnitude, a.exponent - b.exponent);
    a.magnitude = a.negative == b.negative ? a.magnitude + low : a.magnitude - low;
    if (a.magnitude == 0) return signed_bits(f, rm == CRB_RM_RDN, 0);
    return round_pack(f, a, rm, fflags);
}

static wide widen(number n) {
    return (wide){.negative = n.negative, .exponent = n.exponent, .magnitude = n.significand};
}

static uint64_t add(const crb_format *f, number a, number b, uint32_t rm, uint32_t *fflags) {
    if (is_nan(a) || is_nan(b)) return nan_answer(f, a, b, fflags);
    if (a.kind == INFINITE && b.kind == INFINITE && a.negative != b.negative)
        return invalid(f, fflags);
    if (a.kind == INFINITE) return signed_bits(f, a.negative, f->infinity);
    if (b.kind == INFINITE) return signed_bits(f, b.negative, f->infinity);
    if (a.kind == ZERO && b.kind == ZERO)
        return signed_bits(f, a.negative == b.negative ? a.negative : rm == CRB_RM_RDN, 0);
    if (a.kind == ZERO) return round_pack(f, widen(b), rm, fflags);
    if (b.kind == ZERO) return round_pack(f, widen(a), rm, fflags);
    return sum_pack(f, widen(a), widen(b), rm, fflags);
}

uint64_t crb_soft_add(const crb_format *f, uint64_t a, uint64_t b, uint32_t rm, uint32_t *fflags) {
    return add(f, take_apart(f, a), take_apart(f, b), rm, fflags);
}

uint64_t crb_soft_sub(const crb_format *f, uint64_t a, uint64_t b, uint32_t rm, uint32_t *fflags) {
    return add(f, take_apart(f, a), take_apart(f, b ^ f->sign), rm, fflags);
}

static wide product(number a, number b) {
    return (wide){.negative = a.negative != b.negative,
                  .exponent = a.exponent + b.exponent,
                  .magnitude = (u128)a.significand * b.significand};
}

uint64_t crb_soft_mul(const crb_format *f, uint64_t a, uint64_t b, uint32_t rm, uint32_t *fflags) {
    number x = take_apart(f, a), y = take_apart(f, b);
    bool negative = x.negative != y.negative;
    if (is_nan(x) || is_nan(y)) return nan_answer(f, x, y, fflags);
    if (x.kind == INFINITE || y.kind == INFINITE) {
        if (x.kind == ZERO || y.kind == ZERO) return invalid(f, fflags);
        return signed_bits(f, negative, f->infinity);
    }
    if (x.kind == ZERO || y.kind == ZERO) return signed_bits(f, negative, 0);
    return round_pack(f, product(x, y), rm, fflags);
}

uint64_t crb_soft_div(const crb_format *f, uint64_t a, uint64_t b, uint32_t rm, uint32_t *fflags) {
    number x = take_apart(f, a), y = take_apart(f, b);
    bool negative = x.negative != y.negative;
    if (is_nan(x) || is_nan(y)) return nan_answer(f, x, y, fflags);
    if (x.kind == y.kind && x.kind != FINITE) return invalid(f, fflags);
    if (x.kind == INFINITE) return signed_bits(f, negative, f->infinity);
    if (x.kind == ZERO || y.kind == INFINITE) return signed_bits(f, negative, 0);
    if (y.kind == ZERO) {
        *fflags |= CRB_FFLAG_DZ;
        return signed_bits(f, negative, f->infinity);
    }
    u128 dividend = (u128)x.significand << 64;
    u128 quotient = dividend / y.significand;
    if (quotient * y.significand != dividend) quotient |= 1;
    wide value = {negative, x.exponent - y.exponent - 64, quotient};
    return round_pack(f, value, rm, fflags);
}

// The integer square root, its lowest bit set as well when there is a remainder.
static uint64_t root_jam(u128 value) {
    uint64_t root = 0;
    for (int bit = 63; bit >= 0; bit--) {
        uint64_t trial = root | 1ull << bit;
        if ((u128)trial * trial <= value) root = trial;
    }
    return (u128)root * root == value ? root : root | 1;
}

uint64_t crb_soft_sqrt(const crb_format *f, uint64_t a, uint32_t rm, uint32_t *fflags) {
    number x = take_apart(f, a);
    if (is_nan(x)) return nan_answer(f, x, x, fflags);
    if (x.kind == ZERO) return a;
    if (x.negative) return invalid(f, fflags);
    if (x.kind == INFINITE) return a;
    int odd = x.exponent & 1; // the exponent must be halved
    wide value = {false, (x.exponent - odd - 62) / 2, root_jam((u128)x.significand << (62 + odd))};
    return round_pack(f, value, rm, fflags);
}

static uint64_t fma_special(const crb_format *f, number a, number b, number c, uint32_t *fflags) {
    bool negative = a.negative != b.negative;
    bool infinite = a.kind == INFINITE || b.kind == INFINITE;
    if (infinite && (a.kind == ZERO || b.kind == ZERO)) return invalid(f, fflags);
    if (c.kind == SIGNALLING) return invalid(f, fflags);
    if (is_nan(a) || is_nan(b) || is_nan(c)) return nan_answer(f, a, b, fflags);
    if (infinite && c.kind == INFINITE && c.negative != negative) return invalid(f, fflags);
    return signed_bits(f, infinite ? negative : c.negative, f->infinity);
}

uint64_t crb_soft_fma(const crb_format *f, uint64_t a, uint64_t b, uint64_t c, uint32_t rm,
                      uint32_t *fflags) {
    number x = take_apart(f, a), y = take_apart(f, b), z = take_apart(f, c);
    if (x.kind >= INFINITE || y.kind >= INFINITE || z.kind >= INFINITE)
        return fma_special(f, x, y, z, fflags);
    if (x.kind == ZERO || y.kind == ZERO) {
        number zero = {.kind = ZERO, .negative = x.negative != y.negative};
        return add(f, zero, z, rm, fflags);
    }
    if (z.kind == ZERO) return round_pack(f, product(x, y), rm, fflags);
    return sum_pack(f, product(x, y), widen(z), rm, fflags);
}

uint64_t crb_soft_convert(const crb_format *to, const crb_format *from, uint64_t a, uint32_t rm,
                          uint32_t *fflags) {
    number x = take_apart(from, a);
    if (is_nan(x)) return nan_answer(to, x, x, fflags);
    if (x.kind == INFINITE) return signed_bits(to, x.negative, to->infinity);
    if (x.kind == ZERO) return signed_bits(to, x.negative, 0);
    return round_pack(to, widen(x), rm, fflags);
}

uint64_t crb_soft_from_int(const crb_format *f, bool negative, uint64_t magnitude, uint32_t rm,
                           uint32_t *fflags) {
    if (magnitude == 0) return 0;
    wide value = {.negative = negative, .exponent = 0, .magnitude = magnitude};
    return round_pack(f, value, rm, fflags);
}

uint64_t crb_soft_to_int(const crb_format *f, uint64_t a, uint64_t min, uint64_t max, uint32_t rm,
                         uint32_t *fflags) {
    number x = take_apart(f, a);
    if (x.kind == ZERO) return 0;
    uint64_t limit = x.negative ? -min : max; // a magnitude
    bool inexact = false, too_large = x.kind != FINITE || x.exponent > 0;
    u128 rounded = 0;
    if (!too_large) {
        int shift = x.exponent < -128 ? 128 : -x.exponent; // far below one half either way
        rounded = round_shift(x.significand, shift, x.negative, rm, &inexact);
        too_large = rounded > limit;
    }
    if (too_large) {
        *fflags |= CRB_FFLAG_NV;
        return x.negative && !is_nan(x) ? min : max;
    }
    if (inexact) *fflags |= CRB_FFLAG_NX;
    return x.negative ? -(uint64_t)rounded : (uint64_t)rounded;
}

uint64_t crb_soft_round(const crb_format *f, uint64_t a, uint32_t rm, uint32_t *fflags) {
    number x = take_apart(f, a);
    if (is_nan(x)) return nan_answer(f, x, x, fflags);
    if (x.kind != FINITE || x.exponent >= 0) return a;
    bool inexact = false;
    int shift = x.exponent < -128 ? 128 : -x.exponent;
    u128 rounded = round_shift(x.significand, shift, x.negative, rm, &inexact);
    if (inexact) *fflags |= CRB_FFLAG_NX;
    if (rounded == 0) return signed_bits(f, x.negative, 0);
    return round_pack(f, (wide){x.negative, 0, rounded}, rm, fflags);
}

// An order of the bit patterns of numbers: that of the values, with -0 below +0.
static int64_t rank(const crb_format *f, uint64_t bits) {
    uint64_t magnitude = bits & ~f->sign;
    return (bits & f->sign) != 0 ? (int64_t)~magnitude : (int64_t)magnitude;
}

uint64_t crb_soft_minmax(const crb_format *f, uint64_t a, uint64_t b, bool want_max,
                         uint32_t *fflags) {
    number x = take_apart(f, a), y = take_apart(f, b);
    if (x.kind == SIGNALLING || y.kind == SIGNALLING) *fflags |= CRB_FFLAG_NV;
    if (is_nan(x)) return is_nan(y) ? f->nan : b;
    if (is_nan(y)) return a;
    return (rank(f, a) < rank(f, b)) != want_max ? a : b;
}

bool crb_soft_less(const crb_format *f, uint64_t a, uint64_t b, bool or_equal, uint32_t *fflags) {
    if (is_nan(take_apart(f, a)) || is_nan(take_apart(f, b))) {
        *fflags |= CRB_FFLAG_NV;
        return false;
    }
    if (((a | b) & ~f->sign) == 0) return or_equal; // zeros of either sign
    return rank(f, a) < rank(f, b) || (or_equal && a == b);
}

bool crb_soft_equal(const crb_format *f, uint64_t a, uint64_t b, uint32_t *fflags) {
    number x = take_apart(f, a), y = take_apart(f, b);
    if (x.kind == SIGNALLING || y.kind == SIGNALLING) *fflags |= CRB_FFLAG_NV;
    if (is_nan(x) || is_nan(y)) return false;
    return a == b || (x.kind == ZERO && y.kind == ZERO);
}

// fclass's mask: -inf, -normal, -subnormal, -0, +0, +subnormal, +normal, +inf, sNaN, qNaN.
uint64_t crb_soft_classify(const crb_format *f, uint64_t a) {
    number x = take_apart(f, a);
    if (is_nan(x)) return x.kind == SIGNALLING ? 1u << 8 : 1u << 9;
    bool subnormal = (a & f->infinity) == 0;
    int size = x.kind == ZERO ? 0 : x.kind == INFINITE ? 3 : subnormal ? 1 : 2;
    return 1u << (x.negative ? 3 - size : 4 + size);
}
