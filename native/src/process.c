#include "crumble/process.h"

#include <errno.h>
#include <sys/prctl.h>

#ifndef PR_SET_MEMORY_MERGE // newer than Debian 12's headers
#define PR_SET_MEMORY_MERGE 67
#endif

int crb_merge_pages(void) {
    return prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) < 0 ? -errno : 0;
}
