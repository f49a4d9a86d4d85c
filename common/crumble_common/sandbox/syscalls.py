"""System call numbers, by name: (x86_64, the generic table that aarch64 and riscv64 use).

Only calls that some profile allows or kills are here; None where an architecture has no such call.
"""

from __future__ import annotations

NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "accept": (43, 202), "accept4": (288, 242), "access": (21, None), "arch_prctl": (158, None),
    "bind": (49, 200), "bpf": (321, 280), "brk": (12, 214), "chmod": (90, None), "chown": (92, None),
    "clock_getres": (229, 114), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115),
    "clone": (56, 220), "clone3": (435, 435), "close": (3, 57), "close_range": (436, 436),
    "connect": (42, 203), "copy_file_range": (326, 285), "delete_module": (176, 106),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441), "epoll_wait": (232, None), "eventfd2": (290, 19),
    "execve": (59, 221), "execveat": (322, 281), "exit": (60, 93), "exit_group": (231, 94),
    "faccessat": (269, 48), "faccessat2": (439, 439), "fadvise64": (221, 223),
    "fallocate": (285, 47), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "fchown": (93, 55), "fchownat": (260, 54), "fcntl": (72, 25), "fdatasync": (75, 83),
    "fgetxattr": (193, 10), "finit_module": (313, 273), "flistxattr": (196, 13), "flock": (73, 32),
    "fork": (57, None), "fremovexattr": (199, 16), "fsetxattr": (190, 7), "fstat": (5, 80),
    "fstatfs": (138, 44), "fsync": (74, 82), "ftruncate": (77, 46), "futex": (202, 98),
    "futex_wait": (455, 455), "futex_waitv": (449, 449), "futex_wake": (454, 454),
    "getcpu": (309, 168), "getcwd": (79, 17), "getdents64": (217, 61), "getegid": (108, 177),
    "geteuid": (107, 175), "getgid": (104, 176), "getgroups": (115, 158), "getpeername": (52, 205),
    "getpgid": (121, 155), "getpgrp": (111, None), "getpid": (39, 172), "getppid": (110, 173),
    "getpriority": (140, 141), "getrandom": (318, 278), "getresgid": (120, 150),
    "getresuid": (118, 148), "getrlimit": (97, 163), "getrusage": (98, 165), "getsid": (124, 156),
    "getsockname": (51, 204), "getsockopt": (55, 209), "gettid": (186, 178),
    "gettimeofday": (96, 169), "getuid": (102, 174), "getxattr": (191, 8), "init_module": (175, 105),
    "inotify_add_watch": (254, 27), "inotify_init1": (294, 26), "inotify_rm_watch": (255, 28),
    "io_setup": (206, 0), "io_uring_setup": (425, 425), "ioctl": (16, 29), "kexec_load": (246, 104),
    "keyctl": (250, 219), "kill": (62, 129), "landlock_restrict_self": (446, 446),
    "lchown": (94, None), "lgetxattr": (192, 9), "link": (86, None), "linkat": (265, 37),
    "listen": (50, 201), "listxattr": (194, 11), "llistxattr": (195, 12), "lremovexattr": (198, 15),
    "lseek": (8, 62), "lsetxattr": (189, 6), "lstat": (6, None), "madvise": (28, 233),
    "membarrier": (324, 283), "memfd_create": (319, 279), "mincore": (27, 232),
    "mkdir": (83, None), "mkdirat": (258, 34), "mknod": (133, None), "mknodat": (259, 33),
    "mlock": (149, 228), "mmap": (9, 222), "mount": (165, 40), "mprotect": (10, 226),
    "mremap": (25, 216), "msync": (26, 227), "munlock": (150, 229), "munmap": (11, 215),
    "nanosleep": (35, 101), "newfstatat": (262, 79), "open": (2, None),
    "open_by_handle_at": (304, 265), "openat": (257, 56), "openat2": (437, 437), "pause": (34, None),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pipe": (22, None), "pipe2": (293, 59), "pivot_root": (155, 41),
    "poll": (7, None), "ppoll": (271, 73), "prctl": (157, 167), "pread64": (17, 67),
    "preadv": (295, 69), "preadv2": (327, 286), "prlimit64": (302, 261),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pselect6": (270, 72),
    "ptrace": (101, 117), "pwrite64": (18, 68), "pwritev": (296, 70), "pwritev2": (328, 287),
    "read": (0, 63), "readlink": (89, None), "readlinkat": (267, 78), "readv": (19, 65),
    "reboot": (169, 142), "recvfrom": (45, 207), "recvmmsg": (299, 243), "recvmsg": (47, 212),
    "removexattr": (197, 14), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "restart_syscall": (219, 128), "rmdir": (84, None), "rseq": (334, 293),
    "rt_sigaction": (13, 134), "rt_sigpending": (127, 136), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137),
    "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126),
    "sched_getaffinity": (204, 123), "sched_getparam": (143, 121), "sched_getscheduler": (145, 120),
    "sched_setaffinity": (203, 122), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_yield": (24, 124), "seccomp": (317, 277),
    "select": (23, None), "sendfile": (40, 71), "sendmmsg": (307, 269), "sendmsg": (46, 211),
    "sendto": (44, 206), "set_robust_list": (273, 99), "set_tid_address": (218, 96),
    "setfsgid": (123, 152), "setfsuid": (122, 151), "setns": (308, 268), "setsockopt": (54, 208),
    "setxattr": (188, 5), "shutdown": (48, 210), "sigaltstack": (131, 132), "socket": (41, 198),
    "socketpair": (53, 199), "splice": (275, 76), "stat": (4, None), "statfs": (137, 43),
    "statx": (332, 291), "swapon": (167, 224), "symlink": (88, None), "symlinkat": (266, 36),
    "sync_file_range": (277, 84), "syncfs": (306, 267), "sysinfo": (99, 179), "tgkill": (234, 131),
    "timerfd_create": (283, 85), "timerfd_gettime": (287, 87), "timerfd_settime": (286, 86),
    "truncate": (76, 45), "umask": (95, 166), "umount2": (166, 39), "uname": (63, 160),
    "unlink": (87, None), "unlinkat": (263, 35), "unshare": (272, 97), "userfaultfd": (323, 282),
    "utimensat": (280, 88), "vfork": (58, None), "wait4": (61, 260), "waitid": (247, 95),
    "write": (1, 64), "writev": (20, 66),
}  # fmt: skip

# What any Python service needs that has zmq, threads, files it was given and Unix sockets.
BASE = frozenset(
    """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat openat2
    close close_range stat lstat fstat newfstatat statx statfs fstatfs lseek access faccessat
    faccessat2 readlink readlinkat getcwd getdents64 dup dup2 dup3 fcntl flock ioctl pipe pipe2
    mmap mprotect munmap mremap madvise mincore msync mlock munlock brk memfd_create ftruncate
    fallocate fadvise64 fsync fdatasync rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending
    rt_sigsuspend rt_sigtimedwait sigaltstack restart_syscall poll ppoll select pselect6 epoll_create
    epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 timerfd_create
    timerfd_settime timerfd_gettime futex futex_wait futex_waitv futex_wake set_robust_list
    set_tid_address rseq sched_yield sched_getaffinity sched_setaffinity sched_getparam
    sched_getscheduler sched_setparam sched_setscheduler sched_get_priority_max sched_get_priority_min membarrier getcpu nanosleep
    clock_nanosleep clock_gettime clock_getres gettimeofday getrandom getpid getppid gettid getuid
    geteuid getgid getegid getresuid getresgid getgroups getpgid getpgrp getsid getpriority
    getrlimit prlimit64 getrusage sysinfo uname umask arch_prctl prctl exit exit_group tgkill
    socketpair sendmsg recvmsg sendto recvfrom sendmmsg recvmmsg shutdown getsockopt setsockopt
    getsockname getpeername connect bind listen accept accept4 wait4 waitid pause landlock_restrict_self seccomp
    """.split()
)

# A service that changes files by name (image store, upper directories, writable shares).
WRITE_FILES = frozenset(
    """
    rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat mkdir mkdirat rmdir
    mknod mknodat truncate chmod fchmod fchmodat fchmodat2 chown fchown fchownat lchown utimensat
    getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr listxattr llistxattr flistxattr
    removexattr lremovexattr fremovexattr copy_file_range sendfile splice sync_file_range syncfs
    """.split()
)

# Nothing of ours ever makes these after start-up; one that does has been taken over.
KILL = frozenset(
    """
    execve execveat ptrace process_vm_readv process_vm_writev mount umount2 pivot_root setns unshare
    init_module finit_module delete_module kexec_load bpf perf_event_open keyctl reboot swapon
    open_by_handle_at userfaultfd io_uring_setup pidfd_getfd fork vfork
    """.split()
)
