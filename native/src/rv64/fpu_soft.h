// The integer floating point engine: exact IEEE 754 arithmetic with no use of the host's. See
// fpu.h.
#ifndef CRUMBLE_RV64_FPU_SOFT_H
#define CRUMBLE_RV64_FPU_SOFT_H

#include <stdbool.h>
#include <stdint.h>

#define CRB_RM_RNE 0u
#define CRB_RM_RTZ 1u
#define CRB_RM_RDN 2u
#define CRB_RM_RUP 3u
#define CRB_RM_RMM 4u

#define CRB_FFLAG_NX 1u
#define CRB_FFLAG_UF 2u
#define CRB_FFLAG_OF 4u
#define CRB_FFLAG_DZ 8u
#define CRB_FFLAG_NV 16u

// Operands and results are bit patterns of the format, unboxed.
typedef struct crb_format {
    int precision; // significant bits, the hidden one included
    int emin;      // of the smallest normal number
    int emax;
    uint64_t sign, infinity, nan;
} crb_format;

extern const crb_format crb_binary16, crb_binary32, crb_binary64;

uint64_t crb_soft_add(const crb_format *f, uint64_t a, uint64_t b, uint32_t rm, uint32_t *fflags);
uint64_t crb_soft_sub(const crb_format *f, uint64_t a, uint64_t b, uint32_t rm, uint32_t *fflags);
uint64_t crb_soft_mul(const crb_format *f, uint64_t a, uint64_t b, uint32_t rm, uint32_t *fflags);
uint64_t crb_soft_div(const crb_format *f, uint64_t a, uint64_t b, uint32_t rm, uint32_t *fflags);
uint64_t crb_soft_sqrt(const crb_format *f, uint64_t a, uint32_t rm, uint32_t *fflags);
// a * b + c, rounded once.
uint64_t crb_soft_fma(const crb_format *f, uint64_t a, uint64_t b, uint64_t c, uint32_t rm,
                      uint32_t *fflags);
uint64_t crb_soft_convert(const crb_format *to, const crb_format *from, uint64_t a, uint32_t rm,
                          uint32_t *fflags);
uint64_t crb_soft_from_int(const crb_format *f, bool negative, uint64_t magnitude, uint32_t rm,
                           uint32_t *fflags);
// Saturates to [min, max] (as 64-bit patterns; min is 0 for unsigned) with NV; NaN gives max.
uint64_t crb_soft_to_int(const crb_format *f, uint64_t a, uint64_t min, uint64_t max, uint32_t rm,
                         uint32_t *fflags);
// To an integral value of the same format; NX when that is another one.
uint64_t crb_soft_round(const crb_format *f, uint64_t a, uint32_t rm, uint32_t *fflags);
uint64_t crb_soft_minmax(const crb_format *f, uint64_t a, uint64_t b, bool want_max,
                         uint32_t *fflags);
// a < b, or a <= b when or_equal. Both false, with NV if signalling or a NaN signals, for NaNs.
bool crb_soft_less(const crb_format *f, uint64_t a, uint64_t b, bool or_equal, uint32_t *fflags);
bool crb_soft_equal(const crb_format *f, uint64_t a, uint64_t b, uint32_t *fflags);
uint64_t crb_soft_classify(const crb_format *f, uint64_t a);

#endif
