// System calls of the sandbox. See sandbox.h.
#include "crumble/sandbox.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

// Debian 12's headers know Landlock's first ABIs only; the structure has grown since, at its end.
struct ruleset_attr {
    uint64_t access_fs, access_net, scoped;
};

static int result(long value) {
    return value < 0 ? -errno : (int)value;
}

int crb_no_new_privs(void) {
    return result(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

int crb_drop_capabilities(uint64_t keep) {
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (int cap = 0; cap < 64; cap++) {
        if ((keep >> cap & 1) != 0) continue;
        // EINVAL: past the kernel's last one. EPERM: we had no CAP_SETPCAP; no_new_privs keeps the
        // bounding set from mattering.
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0 && errno == EINVAL) break;
    }
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct have[2];
    if (syscall(SYS_capget, &header, have) != 0) return -errno;
    for (int half = 0; half < 2; half++) {
        const uint32_t mask = (uint32_t)(keep >> (32 * half));
        have[half].permitted &= mask;
        have[half].effective = have[half].permitted;
        have[half].inheritable = 0;
    }
    return result(syscall(SYS_capset, &header, have));
}

int crb_unshare(int flags) {
    return result(unshare(flags));
}

int crb_landlock_abi(void) {
    return result(syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION));
}

int crb_landlock_create(uint64_t access_fs, uint64_t access_net, uint64_t scoped) {
    const struct ruleset_attr attr = {access_fs, access_net, scoped};
    // An older kernel refuses a longer structure unless the tail is zero.
    return result(syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0));
}

int crb_landlock_allow_path(int ruleset, int path_fd, uint64_t access) {
    const struct landlock_path_beneath_attr attr = {.allowed_access = access, .parent_fd = path_fd};
    return result(syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &attr, 0));
}

int crb_landlock_restrict(int ruleset) {
    return result(syscall(SYS_landlock_restrict_self, ruleset, 0));
}

int crb_seccomp_load(const uint8_t *program, uint32_t count) {
    if (count == 0 || count > BPF_MAXINSNS) return -EINVAL;
    struct sock_fprog filter = {.len = (unsigned short)count,
                                .filter = (struct sock_filter *)program};
    const long done =
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter);
    return done > 0 ? -ESRCH
                    : result(done); // > 0: the id of a thread that could not be synchronised
}
