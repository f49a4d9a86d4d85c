#include "crumble/checksum.h"

#include <string.h>

// Sums native words, eight bytes at a time, into 64 bits: byte order only swaps the folded result
// (RFC 1071 section 2 B), and carries out of 32-bit halves cannot overflow 64 bits below 2^32
// words.
uint32_t crb_checksum_sum(const uint8_t *data, size_t size, uint32_t initial) {
    uint64_t sum = 0;
    size_t at = 0;
    for (; at + 8 <= size; at += 8) {
        uint64_t word;
        memcpy(&word, data + at, 8);
        sum += (word & 0xffffffff) + (word >> 32);
    }
    for (; at + 2 <= size; at += 2) {
        uint16_t word;
        memcpy(&word, data + at, 2);
        sum += word;
    }
    if (at < size) {
        uint8_t last[2] = {data[at], 0};
        uint16_t word;
        memcpy(&word, last, 2);
        sum += word;
    }
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    uint32_t result = (uint32_t)sum;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    result = (result & 0xff) << 8 | result >> 8;
#endif
    result += initial;
    return (result & 0xffff) + (result >> 16);
}
