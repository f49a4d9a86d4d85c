"""Locks and memory order among 2 to 8 harts under Linux: what RVWMO forbids is never seen.

Four kinds of threads, all on shared words: a spinlock of LR/SC, one of AMOs, a ticket lock, and a seqlock whose
reader must see whole writes; then litmus tests (message passing, store buffering with fences, coherence of one
word).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from crumble_common.messages.vm import VmEvent
from framework.guest_root import fsd, make_root
from framework.guest_vm import GuestVm
from functional.test_vmm_guest import config, run

pytestmark = [pytest.mark.guest, pytest.mark.slow]
COMPILER = "riscv64-linux-gnu-gcc"
PROGRAM = """
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#define ALIGNED __attribute__((aligned(64)))
static int threads, rounds;
static ALIGNED uint32_t lrsc_lock, amo_lock, next_ticket, serving;
static ALIGNED uint64_t lrsc_count, amo_count, ticket_count, atomic_count;
static ALIGNED uint64_t sequence, first, second;
static ALIGNED uint64_t data, flag, x, y, word;
static uint64_t bad;
static pthread_barrier_t barrier;

static void wrong(const char *what) { __atomic_fetch_add(&bad, 1, __ATOMIC_RELAXED); puts(what); }

static void lock_lrsc(uint32_t *lock) {
    uint32_t old, failed;
    for (;;) {
        asm volatile("1: lr.w.aq %0, (%2); bnez %0, 2f; sc.w %1, %3, (%2); bnez %1, 1b; 2:"
                     : "=&r"(old), "=&r"(failed) : "r"(lock), "r"(1) : "memory");
        if (old == 0) return;
        sched_yield();
    }
}
static void unlock(uint32_t *lock) { asm volatile("amoswap.w.rl zero, zero, (%0)" :: "r"(lock) : "memory"); }
static void lock_amo(uint32_t *lock) {
    uint32_t old;
    for (;;) {
        asm volatile("amoswap.w.aq %0, %2, (%1)" : "=r"(old) : "r"(lock), "r"(1) : "memory");
        if (old == 0) return;
        sched_yield();
    }
}
static void lock_ticket(void) {
    const uint32_t mine = __atomic_fetch_add(&next_ticket, 1, __ATOMIC_RELAXED);
    while (__atomic_load_n(&serving, __ATOMIC_ACQUIRE) != mine) sched_yield();
}

static void *locks(void *arg) {
    for (int i = 0; i < rounds; i++) {
        lock_lrsc(&lrsc_lock); lrsc_count++; unlock(&lrsc_lock);
        lock_amo(&amo_lock); amo_count++;
        __atomic_store_n(&sequence, sequence + 1, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        first++; second++;
        __atomic_store_n(&sequence, sequence + 1, __ATOMIC_RELEASE);
        unlock(&amo_lock);
        lock_ticket(); ticket_count++; __atomic_store_n(&serving, serving + 1, __ATOMIC_RELEASE);
        __atomic_fetch_add(&atomic_count, 3, __ATOMIC_RELAXED);
        const uint64_t before = __atomic_load_n(&sequence, __ATOMIC_ACQUIRE);
        const uint64_t a = *(volatile uint64_t *)&first, b = *(volatile uint64_t *)&second;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (before % 2 == 0 && before == *(volatile uint64_t *)&sequence && a != b) wrong("seqlock");
    }
    return NULL;
}

static uint64_t seen[2];
static void *litmus(void *arg) {
    const long me = (long)arg;
    uint64_t last = 0;
    for (uint64_t i = 1; i <= (uint64_t)rounds; i++) {
        pthread_barrier_wait(&barrier);
        if (me == 0) { // message passing; a reader may be early, never late
            *(volatile uint64_t *)&data = i;
            asm volatile("fence w, w" ::: "memory");
            *(volatile uint64_t *)&flag = i;
            *(volatile uint64_t *)&x = i;
            asm volatile("fence w, r" ::: "memory");
            seen[0] = *(volatile uint64_t *)&y;
        } else {
            const uint64_t f = *(volatile uint64_t *)&flag;
            asm volatile("fence r, r" ::: "memory");
            const uint64_t d = *(volatile uint64_t *)&data;
            if (f == i && d != i) wrong("message passing");
            *(volatile uint64_t *)&y = i;
            asm volatile("fence w, r" ::: "memory");
            seen[1] = *(volatile uint64_t *)&x;
        }
        for (int k = 0; k < 20; k++) {
            if (me == 0) *(volatile uint64_t *)&word = i * 20 + k;
            const uint64_t now = *(volatile uint64_t *)&word;
            if (now < last) wrong("coherence");
            last = now;
        }
        pthread_barrier_wait(&barrier);
        if (me == 0 && seen[0] != i && seen[1] != i) wrong("store buffering");
    }
    return NULL;
}

static void start(int count, void *(*body)(void *)) {
    pthread_t made[16];
    for (long i = 0; i < count; i++) pthread_create(&made[i], NULL, body, (void *)i);
    for (int i = 0; i < count; i++) pthread_join(made[i], NULL);
}

int main(int argc, char **argv) {
    threads = atoi(argv[1]);
    rounds = atoi(argv[2]);
    start(threads, locks);
    const uint64_t all = (uint64_t)threads * rounds;
    if (lrsc_count != all) wrong("lr/sc lock");
    if (amo_count != all || first != all || second != all) wrong("amo lock");
    if (ticket_count != all) wrong("ticket lock");
    if (atomic_count != 3 * all) wrong("amoadd");
    pthread_barrier_init(&barrier, NULL, 2);
    rounds = rounds / 4;
    start(2, litmus);
    puts(bad ? "broken" : "in order");
    return bad != 0;
}
"""


@pytest.mark.parametrize(("harts", "rounds"), [(2, 2000), (4, 2000), (8, 300)])
def test_locks_and_order_hold(tmp_path: Path, harts: int, rounds: int) -> None:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed")
    source = tmp_path / "torture.c"
    source.write_text(PROGRAM)
    folder = tmp_path / "root"
    folder.mkdir()
    root = make_root(folder)
    words = [COMPILER, "-O1", "-static", "-pthread", "-o", str(Path(root) / "torture"), str(source)]
    subprocess.run(words, check=True, capture_output=True)
    with fsd(root) as (sock, _), GuestVm(config(cpus=harts), {"root_fs": sock}) as vm:
        vm.wait(VmEvent, lambda event: event.kind == "agent_ready")
        assert run(vm, "/torture", str(harts), str(rounds)) == "in order\n"
