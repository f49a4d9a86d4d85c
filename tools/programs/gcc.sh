# image: deb:trixie/gcc,g++,libc6-dev
# limit: 2400
set -e
cat > a.c <<'C'
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int order(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
static float f(float x) { return x * 1.5f + 0.25f; }
int main(void) {
    double sum = 0;
    for (int i = 1; i < 1000000; i++) sum += sin(i) / i;
    char *names[5000];
    for (int i = 0; i < 5000; i++) { names[i] = malloc(16); snprintf(names[i], 16, "%x", i * 2654435761u); }
    qsort(names, 5000, sizeof *names, order);
    uint64_t hash = 1469598103934665603u;
    for (int i = 0; i < 5000; i++)
        for (char *c = names[i]; *c; c++) hash = (hash ^ (uint8_t)*c) * 1099511628211u;
    __int128 wide = 1;
    for (int i = 1; i < 30; i++) wide *= i;
    float small = 0;
    for (int i = 0; i < 100; i++) small = f(small) / 2;
    long double quad = 1.0L;
    for (int i = 1; i < 20; i++) quad = quad / 3 + sqrtl(i);
    int64_t grid[64][64], total = 0;
    for (int i = 0; i < 64 * 64; i++) grid[i / 64][i % 64] = (i * 7919) % 1009 - 500;
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < 64; j++)
            for (int k = 0; k < 64; k++) total += grid[i][k] * grid[k][j];
    printf("%.9f %016lx %lx %.7g %.15Lg %ld\n", sum, hash, (uint64_t)(wide >> 20), small, quad, total);
}
C
cat > b.cc <<'C'
#include <algorithm>
#include <atomic>
#include <iostream>
#include <map>
#include <numeric>
#include <regex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>
int main() {
    std::map<std::string, int> words;
    const std::string text = "the quick brown fox jumps over the lazy dog and the cat";
    const std::regex word("[a-z]+");
    for (std::sregex_iterator i(text.begin(), text.end(), word), end; i != end; ++i) words[i->str()]++;
    int caught = 0;
    for (int i = 0; i < 1000; i++) try { std::vector<int>(3).at(i); } catch (const std::out_of_range &) { caught++; }
    std::atomic<long> sum{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; t++) threads.emplace_back([&sum, t] { for (int i = 0; i < 100000; i++) sum += i % (t + 1); });
    for (auto &thread : threads) thread.join();
    std::cout << words["the"] << ' ' << words.size() << ' ' << caught << ' ' << sum << '\n';
}
C
for options in -O0 -O1 -O2 -O3 -Os "-O2 -flto=1" "-O3 -march=rv64gcv" "-O3 -march=rv64gcv_zba_zbb_zbs_zfh"; do
  gcc $options -w a.c -o a -lm && ./a >> c.out
done
for options in -O0 -O2 "-O3 -march=rv64gcv"; do g++ $options -w b.cc -o b && ./b >> cc.out; done
[ "$(sort -u c.out | wc -l)" = 1 ] && [ "$(sort -u cc.out | wc -l)" = 1 ] || { cat c.out cc.out; exit 1; }
sed 's/^/CHECK /;q' c.out
sed 's/^/CHECK /;q' cc.out
gcc -O2 -S a.c -o - | sha256sum | sed 's/^/CHECK assembly /'
echo "SUM C at 8 levels, C++ at 3, the same answers from each"
