// The Internet checksum (RFC 1071): sums of 16-bit words in ones' complement.
#ifndef CRUMBLE_CHECKSUM_H
#define CRUMBLE_CHECKSUM_H

#include "crumble/memory.h"

// The folded sum, not inverted, of `size` bytes taken as big-endian 16-bit words (an odd last byte
// is padded with zero), added to `initial` (≤ 0xffff).
uint32_t crb_checksum_sum(const uint8_t *data, size_t size, uint32_t initial);

#endif
