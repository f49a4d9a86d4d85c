# image: deb:trixie/stress-ng
# limit: 2500
# expect: ^stress-ng: info: .* passed: [1-9]
# expect: ^stress-ng: info: .* failed: 0$
# expect: ^stress-ng: info: .* successful run completed
# refuse: ^stress-ng: fail:
# Stressors that only fill the memory (bigheap, brk, stack) end where the guest's memory does: --oom-avoid.
# Not run: those for other CPUs, and for what is not in the guest (AF_ALG, tracing, hot-plugging): stress-ng would end with status 3.
stress-ng --class cpu --sequential 0 --timeout 2 --verify --oom-avoid --no-rand-seed \
  -x af-alg,cpu-online,dfp,ioport,ipsec-mb,plugin,rdrand,smi,uprobe,x86cpuid > log 2>&1
status=$?
cat log
sed -n -E 's/.*(passed|failed): ([0-9]+).*/SUM \1 \2/p' log
exit $status
