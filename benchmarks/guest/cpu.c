// What a guest does for benchmarks/cpu.py: small programs, each stressing one thing that an
// emulator finds easy or hard. Runs as /init of an initramfs (it then mounts what it needs and
// powers off), or as an ordinary program, natively too.
//
//     cpu [SCALE%] [NAME...]
//
// Before each program "@@B name" is printed, after it "@@E name seconds result"; "@@I" once at
// first and
// "@@X" at last. The host reads its own clocks at those lines. The result is the same on every
// machine.
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KEEP   __attribute__((noinline))
#define LCG(x) ((x) * 6364136223846793005ull + 1442695040888963407ull)
#define COPY   ((size_t)64 << 20)
#define PAGE   4096

static unsigned scale = 100; // percent of the full iteration counts

static uint64_t times(uint64_t full) {
    uint64_t count = full * scale / 100;
    return count == 0 ? 1 : count;
}

// ---- integer

static KEEP uint64_t lcg(void) {
    uint64_t x = 1, sum = 0;
    for (uint64_t n = times(200000000); n > 0; n--) {
        x = LCG(x);
        sum ^= x >> 33;
        if (sum & 1) sum += 3;
    }
    return sum;
}

static KEEP uint64_t sieve(void) {
    enum { LIMIT = 4000000 };
    static uint8_t composite[LIMIT + 1];
    uint64_t primes = 0;
    for (uint64_t n = times(8); n > 0; n--) {
        memset(composite, 0, sizeof composite);
        for (long i = 2; i <= LIMIT; i++) {
            if (composite[i]) continue;
            primes++;
            for (long j = i * i; j <= LIMIT; j += i)
                composite[j] = 1;
        }
    }
    return primes;
}

static uint64_t fibonacci(uint64_t n) {
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static KEEP uint64_t fib(void) {
    volatile uint64_t n = scale >= 100 ? 36 : scale >= 10 ? 31 : 24;
    return fibonacci(n);
}

// Rotations, additions and exclusive ors of 32-bit words, as in hash functions.
static KEEP uint64_t mix32(void) {
    uint32_t s[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    for (uint64_t i = 0, end = times(20000000); i < end; i++) {
        uint32_t a = s[i & 7], b = s[(i + 1) & 7];
        a = (a << 7 | a >> 25) + b;
        b = (b << 13 | b >> 19) ^ a;
        s[(i + 3) & 7] += a;
        s[(i + 5) & 7] ^= b;
    }
    return s[0] ^ s[7];
}

static uint32_t rotate(uint32_t x, int n) {
    return x >> n | x << (32 - n);
}

// One block of SHA-256. The constants are made, not listed: they only have to cost what K costs.
static void sha256_block(uint32_t state[8], const uint8_t *data, const uint32_t k[64]) {
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)data[4 * i] << 24 | data[4 * i + 1] << 16 | data[4 * i + 2] << 8 |
               data[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] +
               (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(v, state, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
        uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
        uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
        uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        state[i] += v[i];
}

static KEEP uint64_t sha256(void) {
    static uint8_t data[PAGE];
    uint32_t state[8] = {1, 2, 3, 4, 5, 6, 7, 8}, k[64];
    uint64_t x = 1;
    for (int i = 0; i < 64; i++)
        k[i] = (uint32_t)((x = LCG(x)) >> 32);
    for (uint64_t n = times(20 << 20) / PAGE; n > 0; n--)
        for (int at = 0; at < PAGE; at += 64)
            sha256_block(state, data + at, k);
    return state[0];
}

// A bytecode interpreter: an indirect jump every few instructions.
static KEEP uint64_t vmdisp(void) {
    static const uint8_t code[] = {0, 1, 2, 3, 4, 1, 5, 2, 6, 0, 3, 7};
    static void *const labels[] = {&&op0, &&op1, &&op2, &&op3, &&op4, &&op5, &&op6, &&op7};
    uint64_t x = 1, y = 2, left = times(12000000);
    const uint8_t *pc = code;
#define NEXT goto *labels[*pc++]
    NEXT;
op0:
    x += y;
    NEXT;
op1:
    y ^= x;
    NEXT;
op2:
    x = x << 3 | x >> 61;
    NEXT;
op3:
    y += 0x12345;
    NEXT;
op4:
    x -= y >> 7;
    NEXT;
op5:
    y *= 33;
    NEXT;
op6:
    x ^= left;
    NEXT;
op7:
    if (--left == 0) return x ^ y;
    pc = code;
    NEXT;
#undef NEXT
}

// ---- memory

// A random cycle through 4 MiB: every load waits for the one before and misses most TLBs.
static KEEP uint64_t chase(void) {
    enum { COUNT = 1 << 20 };
    static uint32_t next[COUNT], order[COUNT];
    uint64_t random = 12345;
    for (uint32_t i = 0; i < COUNT; i++)
        order[i] = i;
    for (uint32_t i = COUNT - 1; i > 0; i--) {
        random = LCG(random);
        uint32_t j = (random >> 33) % (i + 1), swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (uint32_t i = 0; i < COUNT; i++)
        next[order[i]] = order[(i + 1) % COUNT];
    uint32_t at = 0;
    for (uint64_t n = times(20000000); n > 0; n--)
        at = next[at];
    return at;
}

// A chained hash table of 300,000 keys.
static KEEP uint64_t hash(void) {
    enum { BUCKETS = 1 << 16, NODES = 400000 };
    typedef struct node {
        struct node *next;
        uint64_t key, value;
    } node;
    static node *heads[BUCKETS], pool[NODES];
    uint64_t random = 99, sum = 0, used = 0;
    memset(heads, 0, sizeof heads);
    for (uint64_t i = 0, end = times(6000000); i < end; i++) {
        random = LCG(random);
        uint64_t key = (random >> 40) % 300000;
        uint64_t bucket = key * 0x9e3779b97f4a7c15ull >> 48;
        node *entry = heads[bucket];
        while (entry != NULL && entry->key != key)
            entry = entry->next;
        if (entry == NULL) {
            entry = &pool[used++];
            *entry = (node){heads[bucket], key, 0};
            heads[bucket] = entry;
        }
        entry->value += i;
        sum += entry->value;
    }
    return sum;
}

static uint8_t *buffer(int fill) {
    static uint8_t *buffers[2];
    if (buffers[fill] == NULL) {
        buffers[fill] =
            mmap(NULL, COPY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(buffers[fill], fill + 1, COPY);
    }
    return buffers[fill];
}

static KEEP uint64_t copy64m(void) {
    uint8_t *to = buffer(0);
    for (uint64_t i = 0, end = times(10); i < end; i++) {
        memcpy(to, buffer(1), COPY);
        to[i]++;
    }
    return to[5];
}

static KEEP uint64_t copyloop(void) {
    volatile uint64_t *to = (void *)buffer(0);
    uint64_t *from = (void *)buffer(1);
    for (uint64_t n = times(4); n > 0; n--)
        for (size_t i = 0; i < COPY / 8; i++)
            to[i] = from[i];
    return to[7];
}

static KEEP uint64_t set64m(void) {
    uint8_t *to = buffer(0);
    for (uint64_t i = 0, end = times(10); i < end; i++)
        memset(to, (int)i, COPY);
    return to[5];
}

// ---- floating point

typedef struct body {
    double x, y, z, vx, vy, vz, mass;
} body;

static void attract(body *a, body *b) {
    double dx = a->x - b->x, dy = a->y - b->y, dz = a->z - b->z;
    double square = dx * dx + dy * dy + dz * dz;
    double pull = 0.001 / (square * sqrt(square));
    a->vx -= dx * b->mass * pull;
    a->vy -= dy * b->mass * pull;
    a->vz -= dz * b->mass * pull;
    b->vx += dx * a->mass * pull;
    b->vy += dy * a->mass * pull;
    b->vz += dz * a->mass * pull;
}

static KEEP uint64_t nbody(void) {
    body bodies[5] = {{0, 0, 0, 0, 0, 0, 39.47},
                      {4.84, -1.16, -.10, .60, 2.81, -.02, .037},
                      {8.34, 4.12, -.4, -1.01, 1.82, .008, .011},
                      {12.89, -15.11, -.22, 1.08, .86, -.01, .0017},
                      {15.37, -25.9, .179, .979, .594, -.034, .002}};
    for (uint64_t n = times(1000000); n > 0; n--) {
        for (int i = 0; i < 5; i++)
            for (int j = i + 1; j < 5; j++)
                attract(&bodies[i], &bodies[j]);
        for (int i = 0; i < 5; i++) {
            bodies[i].x += .001 * bodies[i].vx;
            bodies[i].y += .001 * bodies[i].vy;
            bodies[i].z += .001 * bodies[i].vz;
        }
    }
    return (uint64_t)(fabs(bodies[0].x + bodies[1].y) * 1e9);
}

// Comparisons and integer conversions among the arithmetic.
static KEEP uint64_t mandel(void) {
    uint64_t steps = 0;
    for (int row = 0, rows = (int)times(400); row < rows; row++)
        for (int column = 0; column < 400; column++) {
            double cr = column / 200.0 - 1.5, ci = row / 200.0 - 1.0, zr = 0, zi = 0;
            for (int i = 0; i < 200 && zr * zr + zi * zi < 4; i++, steps++) {
                double real = zr * zr - zi * zi + cr;
                zi = 2 * zr * zi + ci;
                zr = real;
            }
        }
    return steps;
}

// ---- code that changes

// add a0, a0, imm; ret: the shortest function, written anew each time.
#ifdef __riscv
static void emit_add(uint32_t *code, uint32_t amount) {
    code[0] = amount << 20 | 10 << 15 | 10 << 7 | 0x13;
    code[1] = 0x00008067;
}
#endif

static void *code_area(size_t size) {
    return mmap(NULL, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

// A million instructions that are executed once each.
static KEEP uint64_t cold(void) {
#ifdef __riscv
    uint64_t count = times(1000000), sum = 0;
    uint32_t *code = code_area(count * 4 + 8);
    for (uint64_t i = 0; i < count; i++)
        emit_add(code + i, (uint32_t)(i & 1023));
    __builtin___clear_cache((char *)code, (char *)(code + count + 1));
    sum = ((uint64_t (*)(uint64_t))(void *)code)(0);
    munmap(code, count * 4 + 8);
    return sum;
#else
    return 0;
#endif
}

// Rewrites a function, fence.i, calls it: the answer shows stale code.
static KEEP uint64_t rewrite(void) {
#ifdef __riscv
    uint32_t *code = code_area(PAGE);
    uint64_t sum = 0;
    for (uint64_t i = 0, end = times(100000); i < end; i++) {
        emit_add(code, (uint32_t)(i & 1023));
        __asm__ volatile("fence.i" ::: "memory");
        sum = ((uint64_t (*)(uint64_t))(void *)code)(sum);
    }
    munmap(code, PAGE);
    return sum;
#else
    return 0;
#endif
}

// Stores to data that shares a page with running code.
static KEEP uint64_t codestore(void) {
#ifdef __riscv
    uint32_t *code = code_area(PAGE);
    volatile uint64_t *data = (void *)(code + PAGE / 8);
    uint64_t sum = 0;
    emit_add(code, 1);
    __builtin___clear_cache((char *)code, (char *)(code + 2));
    for (uint64_t i = 0, end = times(2000000); i < end; i++) {
        *data = i;
        sum = ((uint64_t (*)(uint64_t))(void *)code)(sum);
    }
    munmap(code, PAGE);
    return sum;
#else
    return 0;
#endif
}

// ---- the kernel

static KEEP uint64_t systemcall(void) {
    uint64_t sum = 0;
    for (uint64_t n = times(500000); n > 0; n--)
        sum += (uint64_t)syscall(SYS_getpid) > 0;
    return sum;
}

static KEEP uint64_t pagefault(void) {
    enum { SIZE = 8 << 20 };
    uint64_t sum = 0;
    for (uint64_t n = times(20); n > 0; n--) {
        uint8_t *area =
            mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        madvise(area, SIZE, MADV_NOHUGEPAGE);
        for (int i = 0; i < SIZE; i += PAGE)
            area[i] = 1;
        sum += area[PAGE];
        munmap(area, SIZE);
    }
    return sum;
}

static KEEP uint64_t protect(void) {
    volatile uint8_t *page =
        mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t sum = 0;
    for (uint64_t n = times(20000); n > 0; n--) {
        mprotect((void *)page, PAGE, PROT_READ);
        sum += *page;
        mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE);
        *page = 1;
    }
    munmap((void *)page, PAGE);
    return sum;
}

static int pass_on(int from, int to) {
    char byte;
    return read(from, &byte, 1) == 1 && write(to, &byte, 1) == 1;
}

// A byte to another process and back.
static KEEP uint64_t pingpong(void) {
    int there[2], back[2];
    uint64_t rounds = times(20000), done = 0;
    if (pipe(there) != 0 || pipe(back) != 0) return 0;
    pid_t child = fork();
    if (child == 0) {
        while (rounds-- > 0 && pass_on(there[0], back[1]))
            continue;
        _exit(0);
    }
    if (write(there[1], "x", 1) != 1) return 0;
    while (++done < rounds && pass_on(back[0], there[1]))
        continue;
    waitpid(child, NULL, 0);
    return done;
}

static KEEP uint64_t forks(void) {
    uint64_t done = 0;
    for (uint64_t n = times(500); n > 0; n--) {
        pid_t child = fork();
        if (child == 0) _exit(0);
        done += waitpid(child, NULL, 0) == child;
    }
    return done;
}

static const struct {
    const char *name;
    uint64_t (*run)(void);
} programs[] = {
    // Forks before anything that makes the parent large.
    {"systemcall", systemcall},
    {"forks", forks},
    {"pingpong", pingpong},
    {"pagefault", pagefault},
    {"protect", protect},
    {"cold", cold},
    {"rewrite", rewrite},
    {"codestore", codestore},
    {"lcg", lcg},
    {"fib", fib},
    {"mix32", mix32},
    {"sha256", sha256},
    {"vmdisp", vmdisp},
    {"nbody", nbody},
    {"mandel", mandel},
    {"sieve", sieve},
    {"chase", chase},
    {"hash", hash},
    {"copy64m", copy64m},
    {"copyloop", copyloop},
    {"set64m", set64m},
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static int wanted(const char *name, int argc, char **argv) {
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], name) == 0) return 1;
    return argc == 0;
}

int main(int argc, char **argv) {
    int first = 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (getpid() == 1) mount("proc", "/proc", "proc", 0, NULL);
    if (argc > 1 && atoi(argv[1]) > 0) scale = (unsigned)atoi(argv[first++]);
    printf("@@I\n");
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        if (!wanted(programs[i].name, argc - first, argv + first)) continue;
        printf("@@B %s\n", programs[i].name);
        double start = now();
        uint64_t result = programs[i].run();
        printf("@@E %s %.6f %llx\n", programs[i].name, now() - start, (unsigned long long)result);
    }
    printf("@@X\n");
    fflush(stdout);
    if (getpid() == 1) reboot(RB_POWER_OFF);
    return 0;
}
