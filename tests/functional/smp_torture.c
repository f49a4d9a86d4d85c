// Threads on several harts: atomics, locks, messages, page tables and code that changes. Runs as
// /init; prints "@@OK" or what went wrong.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <unistd.h>

#define THREADS 4
#define ROUNDS  60000
#define LOCKS   (ROUNDS / 100)
#define PASSES  400
#define PATCHES 300
#define REMAPS  300

static pthread_barrier_t barrier;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static atomic_ulong added, swapped, narrow;
static atomic_uint ticket, serving;
static unsigned long locked, ticketed;
static atomic_int failed;

static void check(int good, const char *what) {
    if (!good && atomic_exchange(&failed, 1) == 0) printf("@@FAILED %s\n", what);
}

// ---- Counters: none may lose an addition

static void count(void) {
    for (int i = 0; i < ROUNDS; i++) {
        atomic_fetch_add(&added, 3);
        unsigned long seen = atomic_load(&swapped);
        while (!atomic_compare_exchange_weak(&swapped, &seen, seen + 5))
            continue;
        atomic_fetch_xor(&narrow, 1ul << (i & 63));
        if (i % (ROUNDS / LOCKS) != 0) continue;
        pthread_mutex_lock(&mutex);
        locked++;
        pthread_mutex_unlock(&mutex);
        const unsigned mine = atomic_fetch_add(&ticket, 1);
        while (atomic_load_explicit(&serving, memory_order_acquire) != mine)
            sched_yield();
        ticketed++;
        atomic_store_explicit(&serving, mine + 1, memory_order_release);
    }
}

// ---- Messages: who sees the flag sees the data

static struct {
    uint64_t data[8];
    atomic_uint full;
} slots[THREADS];

static void pass(int self) {
    const int next = (self + 1) % THREADS;
    for (unsigned i = 1; i <= PASSES; i++) {
        while (atomic_load_explicit(&slots[next].full, memory_order_acquire) != 0)
            sched_yield();
        for (int k = 0; k < 8; k++)
            slots[next].data[k] = i * 8 + k;
        atomic_store_explicit(&slots[next].full, i, memory_order_release);
        while (atomic_load_explicit(&slots[self].full, memory_order_acquire) != i)
            sched_yield();
        for (int k = 0; k < 8; k++)
            check(slots[self].data[k] == i * 8 + k, "message");
        atomic_store_explicit(&slots[self].full, 0, memory_order_release);
    }
}

// ---- Code: one rewrites, all call

static uint32_t *code;

static void patch(int self) {
    for (uint32_t i = 0; i < PATCHES; i++) {
        if (self == (int)(i % THREADS)) {
            code[0] = (i & 2047) << 20 | 10 << 7 | 0x13; // li a0, i
            code[1] = 0x00008067;                        // ret
            __builtin___clear_cache((char *)code, (char *)(code + 2));
        }
        pthread_barrier_wait(&barrier);
        for (int k = 0; k < 30; k++)
            check(((uint64_t (*)(void))(void *)code)() == (i & 2047), "stale code");
        pthread_barrier_wait(&barrier);
    }
}

// ---- Page tables: after a remapping everyone sees the new page

static volatile uint64_t *page;

static void remap(int self) {
    for (uint64_t i = 0; i < REMAPS; i++) {
        if (self == (int)(i % THREADS)) {
            madvise((void *)page, 4096, MADV_DONTNEED);
            if (i % 3 == 0) mprotect((void *)page, 4096, PROT_READ);
            if (i % 3 == 0) mprotect((void *)page, 4096, PROT_READ | PROT_WRITE);
            page[1] = i;
        }
        pthread_barrier_wait(&barrier);
        check(page[0] == 0 && page[1] == i, "stale page");
        pthread_barrier_wait(&barrier);
        if (self == (int)((i + 1) % THREADS)) page[0] = i + 1;
        pthread_barrier_wait(&barrier);
    }
}

static void *work(void *argument) {
    const int self = (int)(intptr_t)argument;
    pthread_barrier_wait(&barrier);
    count();
    pass(self);
    pthread_barrier_wait(&barrier);
    patch(self);
    remap(self);
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (intptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, (void *)i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    check(added == 3ul * THREADS * ROUNDS, "amoadd");
    check(swapped == 5ul * THREADS * ROUNDS, "lr and sc");
    check(narrow == 0, "amoxor");
    check(locked == THREADS * LOCKS && ticketed == locked, "locks");
    puts(failed ? "@@BAD" : "@@OK");
    fflush(stdout);
    sync();
    if (getpid() == 1) reboot(RB_POWER_OFF);
    return failed;
}
