// Doorbells and adaptive waiting. See doorbell.h.
#include "crumble/doorbell.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

// Clock reads cost as much as a few looks.
#define LOOKS_PER_CLOCK 16

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#elif defined(__riscv)
    __asm__ volatile(".insn i 0x0F, 0, x0, x0, 0x010" ::: "memory");
#endif
}

static bool alone_on_a_cpu(void) {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set) == 1;
#endif
    return sysconf(_SC_NPROCESSORS_ONLN) == 1;
}

void crb_spin_init(crb_spin *spin, uint64_t max_ns) {
    if (max_ns > CRB_SPIN_MAX_NS) max_ns = CRB_SPIN_MAX_NS;
    if (alone_on_a_cpu()) max_ns = 0;
    *spin = (crb_spin){
        .max_ns = max_ns, .window_ns = max_ns, .score = CRB_SPIN_SCORE, .rest = CRB_SPIN_REST};
}

static void grow(crb_spin *spin) {
    spin->window_ns = spin->window_ns == 0 ? CRB_SPIN_FIRST_NS : spin->window_ns * 2;
    if (spin->window_ns > spin->max_ns) spin->window_ns = spin->max_ns;
}

static void shrink(crb_spin *spin) {
    spin->window_ns /= 2;
    if (spin->window_ns < CRB_SPIN_FIRST_NS) spin->window_ns = 0;
}

static bool any_pending(crb_vring *const *rings, uint32_t n_rings) {
    for (uint32_t i = 0; i < n_rings; i++)
        if (crb_vring_pending(rings[i])) return true;
    return false;
}

static void hit(crb_spin *spin) {
    spin->hits++;
    spin->score += 2;
    if (spin->score > CRB_SPIN_SCORE) {
        spin->score = CRB_SPIN_SCORE;
        spin->rest = CRB_SPIN_REST;
    }
    grow(spin);
}

void crb_spin_looked(crb_spin *spin, bool found) {
    if (found) {
        hit(spin);
    } else {
        spin->misses++;
        spin->looked = true;
    }
}

bool crb_spin_wait(crb_spin *spin, crb_vring *const *rings, uint32_t n_rings) {
    if (any_pending(rings, n_rings)) return true;
    if (spin->window_ns == 0 || spin->resting > 0 || n_rings == 0) return false;
    const uint64_t end = now_ns() + spin->window_ns;
    do {
        for (int i = 0; i < LOOKS_PER_CLOCK; i++) {
            if (any_pending(rings, n_rings)) {
                crb_spin_looked(spin, true);
                return true;
            }
            relax();
        }
    } while (now_ns() < end);
    crb_spin_looked(spin, false);
    return false;
}

void crb_spin_slept(crb_spin *spin, uint64_t ns) {
    const bool looked = spin->looked;
    spin->looked = false;
    if (ns > spin->max_ns) {
        shrink(spin);
    } else if (spin->resting > 0) {
        if (--spin->resting == 0) spin->score = CRB_SPIN_SCORE;
    } else if (!looked || ns > spin->window_ns) {
        grow(spin);
    } else if (--spin->score == 0) {
        spin->resting = spin->rest;
        if (spin->rest < CRB_SPIN_REST_MAX) spin->rest *= 2;
    }
}

void crb_spin_idle(crb_spin *spin) {
    spin->idle_ns = now_ns();
}

void crb_spin_woken(crb_spin *spin) {
    if (spin->idle_ns != 0) crb_spin_slept(spin, now_ns() - spin->idle_ns);
    spin->idle_ns = 0;
}

static bool enable_all(crb_vring *const *rings, uint32_t n_rings) {
    bool pending = false;
    for (uint32_t i = 0; i < n_rings; i++)
        pending |= crb_vring_enable_kicks(rings[i]);
    return pending;
}

static void disable_all(crb_vring *const *rings, uint32_t n_rings) {
    for (uint32_t i = 0; i < n_rings; i++)
        crb_vring_disable_kicks(rings[i]);
}

static int64_t sleep_on(crb_spin *spin, const int *fds, uint32_t n_fds, int timeout_ms) {
    struct pollfd polled[CRB_DOORBELL_MAX_FDS];
    for (uint32_t i = 0; i < n_fds; i++)
        polled[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    const uint64_t start = now_ns();
    const int n = poll(polled, n_fds, timeout_ms);
    if (n < 0) return -errno;
    crb_spin_slept(spin, now_ns() - start);
    uint64_t ready = 0;
    for (uint32_t i = 0; i < n_fds; i++)
        if (polled[i].revents != 0) ready |= UINT64_C(1) << i;
    return (int64_t)ready;
}

int64_t crb_doorbell_wait(crb_spin *spin, crb_vring *const *rings, uint32_t n_rings, const int *fds,
                          uint32_t n_fds, int timeout_ms) {
    if (n_fds >= CRB_DOORBELL_MAX_FDS) return -EINVAL; // the sign bit says error
    if (timeout_ms != 0 && crb_spin_wait(spin, rings, n_rings)) return 0;
    if (enable_all(rings, n_rings)) {
        disable_all(rings, n_rings);
        return 0;
    }
    const int64_t ready = sleep_on(spin, fds, n_fds, timeout_ms);
    if (ready != 0) disable_all(rings, n_rings);
    return ready;
}

void crb_doorbell_ring(int fd) {
    const uint64_t one = 1;
    ssize_t done;
    do {
        done = write(fd, &one, sizeof one);
    } while (done < 0 && errno == EINTR);
}

uint64_t crb_doorbell_drain(int fd) {
    uint64_t count = 0;
    ssize_t done;
    do {
        done = read(fd, &count, sizeof count);
    } while (done < 0 && errno == EINTR);
    return done == (ssize_t)sizeof count ? count : 0;
}
