# The checks of tools/kvm_rig.py, by the emulated host's shell. Each prints one line.
check() {
    name=$1 want=$2
    shift 2
    start=$(cut -d. -f1 /proc/uptime)
    got=$("$@" 2>/tmp/err)
    status=$?
    took=$(($(cut -d. -f1 /proc/uptime) - start))
    case "$status $got" in
    "0 "$want) echo "RIG ok $name ($took s)" ;;
    *)
        echo "RIG failed $name ($took s): status $status, '$got', wanted '$want'"
        tail -15 /tmp/err
        ;;
    esac
}
machine=$(uname -m)
case $machine in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
riscv64) architecture=riscv64 ;;
esac
KERNEL=$(echo /data/store/kernels/$architecture/*/image)
crumble() { timeout 300 python3 -m crumble.cli.main "$@"; }
run() { crumble run --hv kvm -m 256m --boot-timeout 200 "$@"; }
# The short form captures nothing on the way.
stays() {
    [ -e /short ] && set -- --no-snapshot
    crumble up --detach >/dev/null && run -d "$@" --name box oci:/image sleep 1000 >/dev/null
}
changes() {
    crumble exec box sh -c 'echo kept > /root/file' && crumble exec box cat /root/file
}
paused() {
    crumble pause box >&2 && crumble unpause box >&2 && crumble exec box cat /root/file
}
status() {
    run oci:/image sh -c 'exit 3'
    echo $?
}
# The emulated CPU has no cmpxchg16b (tools/kvm_rig.py).
level() {
    run --cpu-model x86-64-v2 oci:/image true 2>&1
    return 0
}
# By the device tree, or ACPI's table.
watchdog() {
    run --watchdog oci:/image watchdog -F -T 1 -t 100 /dev/watchdog 2>&1
    return 0
}
# A kernel that is told to restart by a triple fault.
triple() {
    run --cmdline reboot=t oci:/image sh -c 'echo b > /proc/sysrq-trigger; sleep 100' 2>&1
    echo "status $?"
}
# The host takes the guest's memory away.
lost() {
    stays
    for fd in /proc/[0-9]*/fd/*; do
        case $(readlink $fd) in /dev/shm/crumble-memory-* | /memfd:crumble-memory*) truncate -s 0 $fd ;; esac
    done
    crumble exec box true 2>&1
    crumble down >&2
}
# No device is found so; what counts is that CPUs are.
noacpi() {
    timeout 200 python3 -m crumble_vmm --hv kvm --cpus 2 --memory 256M --kernel $KERNEL \
        --cmdline 'acpi=off ignore_loglevel' 2>&1
    return 0
}
# What a kernel with two CPUs says of registers that firmware sets.
mtrrs() {
    run --no-snapshot -c 2 --dmesg oci:/image true >/tmp/mtrrs 2>&1 && grep -q 'Brought up 1 node, 2 CPUs' /tmp/mtrrs || return
    ! grep -i inconsistent /tmp/mtrrs
}
# The kernel unpacks itself; its modules are not there, so its init is all there is.
bzimage() {
    timeout 200 python3 -m crumble_vmm --hv kvm --memory 256M --kernel /bzImage --cmdline ignore_loglevel 2>&1
    return 0
}
# Without a file system there is nothing to run, which the agent says. pci: by MSI-X.
elf() {
    timeout 300 python3 -m crumble_vmm --hv kvm --quiet --memory 256M --kernel $KERNEL "$@" \
        --initrd-module ${KERNEL%image}virtio_mmio.ko -- /bin/true 2>&1
    return 0
}
snapshot() {
    crumble exec box sh -c '(while n=$((n+1)); do echo $n > /tmp/n; mv /tmp/n /root/count; sleep 0.1; done) >/dev/null 2>&1 &'
    crumble snapshot create box here >/dev/null && crumble exec box cat /root/file
}
# What ran at the capture runs on, in a guest whose clock did not stop.
restored() {
    crumble run --from here sh -c 'a=$(cat /root/count); sleep 1; b=$(cat /root/count)
        [ "$a" != "$b" ] && cat /root/file'
}
forked() {
    crumble fork -n 2 --name twin box >/dev/null
    for n in 1 2; do crumble exec twin-$n cat /root/file && crumble stop twin-$n >/dev/null; done
}
eight() {
    for n in 1 2 3 4 5 6 7 8; do run oci:/image echo $n || return 1; done
}
# The conformance tests of the hypervisor layer, where Python and pytest are there for them.
quest() {
    PYTHONPATH=$PYTHONPATH:/tests timeout 300 python3 -m pytest -q -p no:cacheprovider /tests/quest/test_hypervisors.py >/tmp/quest
    passed=$?
    tail -60 /tmp/quest >&2
    tail -1 /tmp/quest
    return $passed
}
if [ ! -e /short ]; then
    check doctor "*kvm*usable*$architecture*" crumble doctor
    check run "hello Linux $machine" run oci:/image sh -c 'echo hello $(uname -sm)'
fi
check detached '' stays
check exec kept changes
check snapshot kept snapshot
check restore kept restored
[ -e /short ] && exit
check 'run on' kept crumble exec box cat /root/file
check fork 'kept
kept' forked
check network up crumble exec box cat /sys/class/net/eth0/operstate
check pause kept paused
check ps '*box*running*256 MB*' crumble ps
check stop '*' crumble stop box
check down '*' crumble down
if [ -e /bzImage ]; then
    check bzimage '*Run /init as init process*' bzimage
    check alone "*'/bin/true' was not found in the guest*" elf
    check pci "*'/bin/true' was not found in the guest*" elf --transport pci
fi
check smp 2 run -c 2 oci:/image nproc
check 'smp restored' 2 run -c 2 oci:/image nproc
check files 2097152 run oci:/image sh -c 'dd if=/dev/zero of=/tmp/x bs=64k count=32 2>/dev/null; wc -c < /tmp/x'
check status 3 status
check booted $machine crumble run --no-snapshot --hv kvm -m 256m --boot-timeout 200 oci:/image uname -m
if [ $machine = x86_64 ]; then
    check mtrrs '' mtrrs
    check irqchip 2 run --irqchip kernel -c 2 oci:/image nproc
    check 'irqchip restored' 2 run --irqchip kernel -c 2 oci:/image nproc
    check level "*is not x86-64-v2: it lacks cx16*" level
    check noacpi '*smp: Brought up 1 node, 2 CPUs*' noacpi
    check triple '*The guest crashed: triple fault at 0x*' triple
fi
check lost "*The guest cannot go on: the host's memory behind the guest's*gone*" lost
check watchdog "*watchdog ended it: nobody fed it for 1 s*" watchdog
check 'pci run' 1 run --transport pci oci:/image cat /sys/class/net/eth0/carrier
check 'pci restored' 1 run --transport pci oci:/image cat /sys/class/net/eth0/carrier
check auto $machine crumble run -m 256m oci:/image uname -m
check eight "1
2
3
4
5
6
7
8" eight
[ -d /tests ] && check quest '*passed*' quest
