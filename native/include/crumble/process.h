// What a process asks of the kernel for itself.
#ifndef CRUMBLE_PROCESS_H
#define CRUMBLE_PROCESS_H

// Pages of this process and of those it forks that hold the same are to be one page, where the
// host's administrator has turned that on (KSM, prctl(2) PR_SET_MEMORY_MERGE). 0, or -errno: EINVAL
// before Linux 6.4, or without KSM.
int crb_merge_pages(void);

#endif
