// Saving pages of a capture: between memory.c and capture.c.
#ifndef CRUMBLE_CAPTURE_H
#define CRUMBLE_CAPTURE_H

#include "crumble/memory.h"

// Saves a frozen page whose COPYING the caller holds; `state` as it was before. A failure becomes
// the capture's.
void crb_save_page(crb_memory *memory, const crb_region *region, uint64_t page, uint8_t state);

#endif
