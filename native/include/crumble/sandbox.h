// System calls of the sandbox that neither Python nor libc has. Each returns 0 (or an fd), or
// -errno.
#ifndef CRUMBLE_SANDBOX_H
#define CRUMBLE_SANDBOX_H

#include <stdint.h>

int crb_no_new_privs(void);

// Leaves only the capabilities in `keep` (bit n = capability n) in the bounding, permitted,
// effective and inheritable sets of this thread; ambient is emptied.
int crb_drop_capabilities(uint64_t keep);

int crb_unshare(int flags);

// The kernel's Landlock ABI, 1 or more.
int crb_landlock_abi(void);
// A ruleset's fd. The attributes are those of struct landlock_ruleset_attr; zero what the ABI
// lacks.
int crb_landlock_create(uint64_t access_fs, uint64_t access_net, uint64_t scoped);
int crb_landlock_allow_path(int ruleset, int path_fd, uint64_t access);
int crb_landlock_restrict(int ruleset);

// Loads a seccomp filter: `count` instructions of struct sock_filter (8 bytes each), all threads.
int crb_seccomp_load(const uint8_t *program, uint32_t count);

#endif
