# What benchmarks/exits.py runs on the emulated host: each line "EXITS SIDE ROW {KEYS} COUNT" is one of KVM's
# own counters, of all that the work caused.
mount -t tracefs tracefs /sys/kernel/tracing
EVENT=/sys/kernel/tracing/events/kvm/kvm_exit
# KEYS: what the tracepoint tells exits by. MMIO and PCI: QEMU's machines with either, their names below PEER;
# FLAGS: what they need.
case $(uname -m) in
x86_64)
    architecture=amd64 KEYS=exit_reason CONSOLE=ttyS0 FLAGS='-L /qemu'
    MMIO=microvm PCI=q35 MMIO_PEER=qemu-microvm PCI_PEER=qemu-q35
    ;;
aarch64)
    architecture=arm64 KEYS=ret,esr_ec CONSOLE=ttyAMA0 FLAGS=
    MMIO=virt,gic-version=3 PCI=$MMIO MMIO_PEER=qemu-virt-mmio PCI_PEER=qemu-virt-pci
    ;;
riscv64)
    architecture=riscv64 KEYS=scause CONSOLE=ttyS0 FLAGS='-bios none'
    MMIO=virt PCI=virt MMIO_PEER=qemu-virt-mmio PCI_PEER=qemu-virt-pci
    ;;
esac
# A kernel without histograms (riscv64) records each exit; a record that was lost is a failure.
TRACE=/sys/kernel/tracing/trace
if echo "hist:keys=$KEYS" >$EVENT/trigger; then
    clear() { echo "hist:keys=$KEYS:clear" >>$EVENT/trigger; }
    counted() { sed -n "s/^\({.*}\) hitcount: *\([0-9]*\).*/EXITS $1 $2 \1 \2/p" $EVENT/hist; }
else
    echo 65536 >/sys/kernel/tracing/buffer_size_kb
    echo 1 >$EVENT/enable
    clear() { echo >$TRACE; }
    counted() {
        echo 0 >$EVENT/enable
        grep -q 'overrun: 0' /sys/kernel/tracing/per_cpu/cpu0/stats || echo "RIG failed $1 $2: records were lost"
        sed -n 's/.*SCAUSE:\(0x[0-9a-f]*\),.*/\1/p' $TRACE | sort | uniq -c | sed "s/ *\([0-9]*\) \(.*\)/EXITS $1 $2 {scause: \2} \1/"
        echo 1 >$EVENT/enable
    }
fi
exits() {
    side=$1 row=$2
    shift 2
    clear
    "$@" >/tmp/out 2>&1 </dev/null
    status=$?
    counted $side $row
    echo "RIG ok $side $row (status $status: $(tail -c 60 /tmp/out | tr '\n' ' '))"
}
WORDS="console=$CONSOLE panic=-1 cryptomgr.notests initcall_blacklist=jent_mod_init quiet loglevel=1"
KERNEL=$(echo /data/store/kernels/$architecture/*/image)
MODULE=$(echo /data/store/kernels/$architecture/*/virtio_mmio.ko)
crumble() { timeout 300 python3 -m crumble.cli.main "$@"; }
# The agent is up; the command that it looks for is not there.
alone() {
    timeout 300 python3 -m crumble_vmm --hv kvm --quiet --memory 256M --kernel $KERNEL \
        --initrd-module $MODULE --transport $1 -- /bin/true
}
# To its init, and off.
qemu() {
    timeout 300 qemu $FLAGS -cpu host -m 256 -nodefaults -no-user-config -display none -no-reboot \
        -serial file:/tmp/console -kernel $KERNEL -initrd /qemu/init.cpio -append "$WORDS" "$@"
}
listen() {
    python3 -c '
import socket
ear = socket.create_server(("127.0.0.1", 7000))
print(flush=True)
mouth, _ = ear.accept()
size = 0
while data := mouth.recv(1 << 20): size += len(data)
print(size)
' >/tmp/heard &
    until [ -s /tmp/heard ]; do sleep 0.1; done
}
# What came is what was sent.
heard() {
    [ "$(tail -n 1 /tmp/heard)" = 10485760 ] || echo "RIG failed: only $(tail -n 1 /tmp/heard) bytes came"
    rm /tmp/heard
}
received() {
    listen
    crumble exec box sh -c 'dd if=/dev/zero bs=64k count=160 | /bin/busybox nc 10.0.2.2 7000'
    wait $!
    heard
}
# The same work by a QEMU guest's init, which says when (benchmarks/exits.py). Its memory is shared as ours is, with
# the file server that QEMU comes with.
says() {
    turns=1500
    until grep -q "$1" /tmp/console; do
        sleep 0.2
        turns=$((turns - 1))
        [ $turns = 0 ] && tail -n 5 /tmp/console /tmp/qemu /tmp/virtiofsd && echo "RIG failed $side $1" && return
    done
}
qemu_work() {
    side=$1
    shift
    rm -f /tmp/console
    virtiofsd --socket-path=/tmp/files -o source=/share -o sandbox=chroot -o cache=auto >/tmp/virtiofsd 2>&1 &
    until [ -S /tmp/files ]; do sleep 0.1; done
    listen
    listener=$!
    qemu -object memory-backend-memfd,id=memory,size=256M,share=on -chardev socket,id=files,path=/tmp/files \
        -netdev user,id=net -initrd /qemu/work.cpio "$@" >/tmp/qemu 2>&1 &
    until [ -e /tmp/console ]; do sleep 0.2; done
    says READY; clear; says FILE; counted $side file
    clear; says SENT; counted $side tcp
    wait $listener
    wait
    heard
    rm -f /tmp/files
    echo "RIG ok $side work $(tail -c 60 /tmp/qemu | tr '\n' ' ')"
}
work() {
    head -c 1048576 /dev/urandom >/share/file
    crumble run -d --name box --hv kvm --transport $1 -m 256m --boot-timeout 250 --no-snapshot -v /share:/share \
        --allow host:7000 oci:/image sleep 10000 >/dev/null
    exits crumble-$1 exec crumble exec box true
    exits crumble-$1 file crumble exec box dd if=/share/file of=/dev/null bs=64k
    exits crumble-$1 tcp received
    crumble stop -t 0 box >/dev/null
}
exits crumble-mmio boot alone mmio
exits crumble-pci boot alone pci
exits $MMIO_PEER boot qemu -M $MMIO,accel=kvm -device virtio-serial-device -device virtio-rng-device
exits $PCI_PEER boot qemu -M $PCI,accel=kvm -device virtio-serial-pci -device virtio-rng-pci
mkdir /share
head -c 1048576 /dev/urandom >/share/file
qemu_work $MMIO_PEER -M $MMIO,accel=kvm,memory-backend=memory -global virtio-mmio.force-legacy=false \
    -device vhost-user-fs-device,chardev=files,tag=share -device virtio-net-device,netdev=net
qemu_work $PCI_PEER -M $PCI,accel=kvm,memory-backend=memory -device vhost-user-fs-pci,chardev=files,tag=share \
    -device virtio-net-pci,netdev=net,romfile=
crumble up --detach >/dev/null
work mmio
work pci
crumble down -t 0 >/dev/null
