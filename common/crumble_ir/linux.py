"""Linux for programs in the dialect: system calls and the numbers of their interface.

Values are of the generic ABI (riscv64, arm64) and x86-64, where they agree unless by_arch says so.
Calls that only older architectures have (open, fork, poll, ...) are left out on purpose.
"""

from __future__ import annotations

from crumble_ir.dialect import Syscall, by_arch

chdir = Syscall(80, 49)
chroot = Syscall(161, 51)
clock_gettime = Syscall(228, 113)
clock_settime = Syscall(227, 112)
clone = Syscall(56, 220)
close = Syscall(3, 57)
close_range = Syscall(436, 436)
connect = Syscall(42, 203)
bind = Syscall(49, 200)
dup3 = Syscall(292, 24)
execve = Syscall(59, 221)
exit_group = Syscall(231, 94)
fchmod = Syscall(91, 52)
fchown = Syscall(93, 55)
fcntl = Syscall(72, 25)
finit_module = Syscall(313, 273)
fsync = Syscall(74, 82)
getdents64 = Syscall(217, 61)
getpid = Syscall(39, 172)
getppid = Syscall(110, 173)
getuid = Syscall(102, 174)
ioctl = Syscall(16, 29)
kill = Syscall(62, 129)
lseek = Syscall(8, 62)
mkdirat = Syscall(258, 34)
mknodat = Syscall(259, 33)
mmap = Syscall(9, 222)
mount = Syscall(165, 40)
munmap = Syscall(11, 215)
nanosleep = Syscall(35, 101)
openat = Syscall(257, 56)
pipe2 = Syscall(293, 59)
ppoll = Syscall(271, 73)
prctl = Syscall(157, 167)
pread64 = Syscall(17, 67)
prlimit64 = Syscall(302, 261)
pwrite64 = Syscall(18, 68)
read = Syscall(0, 63)
readlinkat = Syscall(267, 78)
reboot = Syscall(169, 142)
recvfrom = Syscall(45, 207)
renameat2 = Syscall(316, 276)
rt_sigaction = Syscall(13, 134)
rt_sigprocmask = Syscall(14, 135)
sendto = Syscall(44, 206)
setgid = Syscall(106, 144)
setgroups = Syscall(116, 159)
sethostname = Syscall(170, 161)
setsid = Syscall(112, 157)
setuid = Syscall(105, 146)
signalfd4 = Syscall(289, 74)
socket = Syscall(41, 198)
symlinkat = Syscall(266, 36)
sync = Syscall(162, 81)
umask = Syscall(95, 166)
umount2 = Syscall(166, 39)
unlinkat = Syscall(263, 35)
wait4 = Syscall(61, 260)
write = Syscall(1, 64)

# errno.h
ESHUTDOWN = 108
EPERM, ENOENT, ESRCH, EINTR, EIO, E2BIG, ENOEXEC, EBADF, ECHILD, EAGAIN = (
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    10,
    11,
)
ENOMEM, EACCES, EBUSY, EEXIST, ENODEV, ENOTDIR, EISDIR, EINVAL = 12, 13, 16, 17, 19, 20, 21, 22
ENOTTY, EPIPE, ENAMETOOLONG, ENOSYS = 25, 32, 36, 38

# fcntl.h
AT_FDCWD = -100
AT_REMOVEDIR = 0x200
O_RDONLY, O_WRONLY, O_RDWR = 0, 1, 2
O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC, O_APPEND, O_NONBLOCK = (
    0o100,
    0o200,
    0o400,
    0o1000,
    0o2000,
    0o4000,
)
O_DIRECTORY = by_arch(amd64=0o200000, arm64=0o40000, riscv64=0o200000)
O_CLOEXEC = 0o2000000
F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC = 2, 3, 4, 1030
FD_CLOEXEC = 1

# poll.h
POLLIN, POLLOUT, POLLERR, POLLHUP, POLLNVAL = 1, 4, 8, 16, 32

# signal.h, sched.h, wait.h
SIGCONT = 18
SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGPIPE, SIGTERM, SIGCHLD = 1, 2, 3, 9, 13, 15, 17
SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK = 0, 1, 2
SIGSET_SIZE = 8
SFD_NONBLOCK, SFD_CLOEXEC = O_NONBLOCK, O_CLOEXEC
WNOHANG = 1

# sys/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_MOVE, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    0x2000,
    0x4000,
    1 << 18,
)
MS_BIND = 0x1000
MS_RELATIME = 1 << 21
MNT_DETACH = 2

# linux/prctl.h
PR_SET_NAME = 15

# sys/stat.h
S_IFCHR = 0o020000

# sys/ioctl.h, asm-generic/ioctls.h
TCGETS = 0x5401
TIOCSCTTY = 0x540E
TIOCSWINSZ = 0x5414
TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
ICANON = 2
VEOF = 4

# sys/socket.h, linux/netlink.h, net/if.h
AF_INET, AF_NETLINK = 2, 16
SOCK_DGRAM, SOCK_RAW, SOCK_CLOEXEC, SOCK_NONBLOCK = 2, 3, O_CLOEXEC, O_NONBLOCK
NETLINK_KOBJECT_UEVENT = 15
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
SIOCADDRT, SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFHWADDR = 0x890B, 0x8916, 0x891C, 0x8924
IFF_UP = 1
ARPHRD_ETHER = 1
RTF_UP, RTF_GATEWAY = 1, 2

# time.h, sys/resource.h, linux/reboot.h
CLOCK_REALTIME, CLOCK_MONOTONIC = 0, 1
RLIMIT_NOFILE, RLIMIT_CORE = 7, 4
REBOOT_MAGIC1, REBOOT_MAGIC2 = 0xFEE1DEAD, 672274793
REBOOT_RESTART, REBOOT_POWER_OFF = 0x01234567, 0x4321FEDC
