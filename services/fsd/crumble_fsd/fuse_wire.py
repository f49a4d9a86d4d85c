"""The FUSE wire format as Linux's virtiofs speaks it (protocol 7.31 to 7.39): offsets and names only.

Names are those of include/uapi/linux/fuse.h. Every `Struct` is little-endian: a guest of another byte
order is refused at INIT. No behaviour lives here.
"""

from __future__ import annotations

from struct import Struct

FUSE_KERNEL_VERSION = 7
FUSE_KERNEL_MINOR_VERSION = 39
FUSE_MIN_MINOR_VERSION = 31
FUSE_ROOT_ID = 1

# Opcodes.
FUSE_LOOKUP = 1
FUSE_FORGET = 2
FUSE_GETATTR = 3
FUSE_SETATTR = 4
FUSE_READLINK = 5
FUSE_SYMLINK = 6
FUSE_MKNOD = 8
FUSE_MKDIR = 9
FUSE_UNLINK = 10
FUSE_RMDIR = 11
FUSE_RENAME = 12
FUSE_LINK = 13
FUSE_OPEN = 14
FUSE_READ = 15
FUSE_WRITE = 16
FUSE_STATFS = 17
FUSE_RELEASE = 18
FUSE_FSYNC = 20
FUSE_SETXATTR = 21
FUSE_GETXATTR = 22
FUSE_LISTXATTR = 23
FUSE_REMOVEXATTR = 24
FUSE_FLUSH = 25
FUSE_INIT = 26
FUSE_OPENDIR = 27
FUSE_READDIR = 28
FUSE_RELEASEDIR = 29
FUSE_FSYNCDIR = 30
FUSE_GETLK = 31
FUSE_SETLK = 32
FUSE_SETLKW = 33
FUSE_ACCESS = 34
FUSE_CREATE = 35
FUSE_INTERRUPT = 36
FUSE_BMAP = 37
FUSE_DESTROY = 38
FUSE_IOCTL = 39
FUSE_POLL = 40
FUSE_BATCH_FORGET = 42
FUSE_FALLOCATE = 43
FUSE_READDIRPLUS = 44
FUSE_RENAME2 = 45
FUSE_LSEEK = 46
FUSE_COPY_FILE_RANGE = 47
FUSE_SYNCFS = 50
FUSE_TMPFILE = 51
FUSE_STATX = 52
OPCODES = 64  # size of the dispatch table; everything else is ENOSYS

# INIT flags (flags2 << 32 | flags).
FUSE_ASYNC_READ = 1 << 0
FUSE_POSIX_LOCKS = 1 << 1
FUSE_ATOMIC_O_TRUNC = 1 << 3
FUSE_BIG_WRITES = 1 << 5
FUSE_DONT_MASK = 1 << 6
FUSE_FLOCK_LOCKS = 1 << 10
FUSE_AUTO_INVAL_DATA = 1 << 12
FUSE_DO_READDIRPLUS = 1 << 13
FUSE_READDIRPLUS_AUTO = 1 << 14
FUSE_ASYNC_DIO = 1 << 15
FUSE_WRITEBACK_CACHE = 1 << 16
FUSE_NO_OPEN_SUPPORT = 1 << 17
FUSE_PARALLEL_DIROPS = 1 << 18
FUSE_HANDLE_KILLPRIV = 1 << 19
FUSE_POSIX_ACL = 1 << 20
FUSE_MAX_PAGES = 1 << 22
FUSE_CACHE_SYMLINKS = 1 << 23
FUSE_NO_OPENDIR_SUPPORT = 1 << 24
FUSE_SUBMOUNTS = 1 << 27
FUSE_HANDLE_KILLPRIV_V2 = 1 << 28
FUSE_SETXATTR_EXT = 1 << 29
FUSE_INIT_EXT = 1 << 30

FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_NOFLUSH = 1 << 5

FUSE_ATTR_SUBMOUNT = 1 << 0
FUSE_RELEASE_FLOCK_UNLOCK = 1 << 1
FUSE_GETATTR_FH = 1 << 0
FUSE_LK_FLOCK = 1 << 0
FUSE_WRITE_KILL_SUIDGID = 1 << 2
FUSE_OPEN_KILL_SUIDGID = 1 << 0
FUSE_FSYNC_FDATASYNC = 1 << 0
FUSE_SETXATTR_ACL_KILL_SGID = 1 << 0

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
XATTR_CREATE, XATTR_REPLACE = 1, 2
STATX_BASIC_STATS, STATX_BTIME = 0x7FF, 0x800

IN_HEADER = Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER = Struct("<IiQ")  # len error unique
IN_HEADER_SIZE, OUT_HEADER_SIZE = 40, 16

# max_readahead minor flags flags2 follow major.
INIT_IN = Struct("<IIII")
INIT_IN_EXT = Struct("<IIIII")
# major minor max_readahead flags max_background congestion_threshold max_write time_gran
# max_pages map_alignment flags2 unused[7]
INIT_OUT = Struct("<IIIIHHIIHHI28x")

# ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize flags
ATTR = Struct("<6Q10I")
ATTR_SIZE = 88
ATTR_FLAGS_AT = 84
ENTRY_OUT = Struct(
    "<4QII"
)  # nodeid generation entry_valid attr_valid, and both's nanoseconds; ATTR
ATTR_OUT = Struct("<QII")  # attr_valid attr_valid_nsec dummy; ATTR
OPEN_OUT = Struct("<QII")  # fh open_flags padding
WRITE_OUT = Struct("<II")
STATFS_OUT = Struct("<5QIII28x")  # blocks bfree bavail files ffree bsize namelen frsize
GETXATTR_OUT = Struct("<II")
LK_OUT = Struct("<QQII")  # start end type pid
LSEEK_OUT = Struct("<Q")
POLL_OUT = Struct("<II")
# attr_valid attr_valid_nsec flags spare | mask blksize attributes nlink uid gid mode ino size blocks
# attributes_mask | atime btime ctime mtime (sec nsec each) | rdev_major rdev_minor dev_major dev_minor
STATX_OUT = Struct("<QII16xIIQIIIHxxQQQQqI4xqI4xqI4xqI4xIIII112x")

DIRENT = Struct("<QQII")  # ino off namelen type; name, padded to 8
DIRENT_SIZE = 24

FORGET_IN = Struct("<Q")
FORGET_ONE = Struct("<QQ")
BATCH_FORGET_IN = Struct("<II")
GETATTR_IN = Struct("<IIQ")
# valid padding fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode _ uid gid _
SETATTR_IN = Struct("<IIQQQqqqIIIIIIII")
MKNOD_IN = Struct("<IIII")  # mode rdev umask padding
MKDIR_IN = Struct("<II")
RENAME_IN = Struct("<Q")
RENAME2_IN = Struct("<QII")
LINK_IN = Struct("<Q")
OPEN_IN = Struct("<II")
CREATE_IN = Struct("<IIII")  # flags mode umask open_flags
RELEASE_IN = Struct("<QIIQ")  # fh flags release_flags lock_owner
FLUSH_IN = Struct("<QIIQ")
READ_IN = Struct("<QQIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN = Struct("<QQIIQII")
FSYNC_IN = Struct("<QII")
SETXATTR_IN = Struct("<II")
SETXATTR_IN_EXT = Struct("<IIII")  # size flags setxattr_flags padding
GETXATTR_IN = Struct("<II")
LK_IN = Struct("<QQQQIIII")  # fh owner start end type pid lk_flags padding
ACCESS_IN = Struct("<II")
INTERRUPT_IN = Struct("<Q")
POLL_IN = Struct("<QQII")
FALLOCATE_IN = Struct("<QQQII")  # fh offset length mode padding
LSEEK_IN = Struct("<QQII")  # fh offset whence padding
COPY_FILE_RANGE_IN = Struct("<QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
STATX_IN = Struct("<IIQII")  # getattr_flags reserved fh sx_flags sx_mask
