// Pages that a forked process has copied and that hold again what they held: they are given back.
//
// Who forks many keeps what ranges of its private memory hold, in a sealed memory file that is
// mapped in their place. In a process forked off it a page that is written becomes its own, as
// ever; one that is the file's again, to the byte (counts of references rise and fall), can be the
// file's again.
#ifndef CRUMBLE_FORKED_H
#define CRUMBLE_FORKED_H

#include <stdint.h>

// An address in what belongs to the calling thread, and what the kernel writes at times of its own.
uint64_t crb_forked_thread(void);

// [start, end) of each segment that a program or library was loaded to, its zeroed part, too; how
// many there are, of which at most `most` are written.
uint32_t crb_forked_segments(uint64_t *ranges, uint32_t most);

// Keeps n ranges, [start, end) each, of whole pages that are private, anonymous and writable, while
// there is one thread. *kept: a mapping of all of them, one behind the other, for reading. 0, or
// -errno: nothing has changed then.
int crb_forked_keep(const uint64_t *ranges, uint32_t n, uint64_t *kept);

// Gives back pages; how many. ranges and kept as above, of this process or of one it was forked
// off. No other thread may write to the ranges meanwhile.
uint64_t crb_forked_return(const uint64_t *ranges, uint32_t n, uint64_t kept);

#endif
