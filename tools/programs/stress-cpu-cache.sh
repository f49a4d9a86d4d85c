# image: deb:trixie/stress-ng
# limit: 2500
# expect: ^stress-ng: info: .* passed: [1-9]
# expect: ^stress-ng: info: .* failed: 0$
# expect: ^stress-ng: info: .* successful run completed
# refuse: ^stress-ng: fail:
# Stressors that only fill the memory (bigheap, brk, stack) end where the guest's memory does: --oom-avoid.
# Not run: those that ask how large the CPU's caches are, which nobody says here (stress-ng then ends with status 3).
stress-ng --class cpu-cache --sequential 0 --timeout 2 --verify --oom-avoid --no-rand-seed -x l1cache,llc-affinity > log 2>&1
status=$?
cat log
sed -n -E 's/.*(passed|failed): ([0-9]+).*/SUM \1 \2/p' log
exit $status
