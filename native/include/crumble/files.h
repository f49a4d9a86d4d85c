// File system calls that Python's os module lacks. Each returns what the system call does, or
// -errno.
#ifndef CRUMBLE_FILES_H
#define CRUMBLE_FILES_H

#include <stdint.h>

// openat2(2); resolve: RESOLVE_* bits.
int crb_openat2(int directory, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);

// fallocate(2); mode: FALLOC_FL_* bits.
int crb_fallocate(int fd, int mode, int64_t offset, int64_t length);

// renameat2(2); flags: RENAME_* bits.
int crb_renameat2(int old_directory, const char *old_name, int new_directory, const char *new_name,
                  unsigned int flags);

// When the inode was made, in ns since the epoch (statx(2)'s stx_btime); 0 when the file system
// does not know. Takes O_PATH descriptors.
int64_t crb_birth_time(int fd);

// syncfs(2).
int crb_syncfs(int fd);

#endif
