"""Exits of KVM x86_64 for a boot, a command, a file of 1 MiB and 10 MiB by TCP, on an emulated host.

    make bench NAME=exits

Counts of the kernel's own tracepoint, by reason; there only counts mean anything, times do not. A boot is from
the kernel's entry to its init (ours: to the agent, which is more), beside QEMU's microvm and q35 with the same
kernel file and devices; `file` is read through virtio-fs, and `tcp` sent through user networking. `exec` is a command
that does nothing, which our `file` and `tcp` contain. A row is of accesses to
devices and to memory that is new; with "all" come timers and interrupts, of which a slow host has more.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tools import kvm_rig
from tools.kvm_rig import ROOT, Tree

from benchmarks._common import Comparison
from crumble_vmm.boot.initramfs import Initramfs

HOST = kvm_rig.HOSTS["x86_64-trixie"]

_FIRMWARE = (
    "bios-256k.bin",
    "bios-microvm.bin",
    "qboot.rom",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "pvh.bin",
)
_PLACES = (Path("/usr/share/qemu"), Path("/usr/share/seabios"))
_INIT = "#!/bin/busybox sh\n/bin/busybox poweroff -f\n"
_WORK = """#!/bin/busybox sh
/bin/busybox --install -s /bin
for m in failover net_failover virtio_mmio virtio_net; do insmod /$m.ko; done
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
mkdir -p /dev /share; mount -t devtmpfs dev /dev; mount -t virtiofs share /share
echo READY; sleep 3
dd if=/share/file of=/dev/null bs=64k
echo FILE; sleep 3
dd if=/dev/zero bs=64k count=160 | nc 10.0.2.2 7000
echo SENT; sleep 3
poweroff -f
"""
_FILE_SERVER = Path("/usr/lib/qemu/virtiofsd")
# SVM's exit codes (AMD APM volume 2, appendix C).
_REASONS = {
    0x60: "interrupt", 0x61: "nmi", 0x64: "interrupt window", 0x72: "cpuid", 0x78: "hlt", 0x7B: "port",
    0x7C: "msr", 0x81: "vmmcall", 0x400: "memory", 0x401: "avic", 0x402: "avic",
}  # fmt: skip


def qemu(tree: Tree) -> None:
    """QEMU, its firmware, and an init that switches off."""
    binary = shutil.which(HOST.qemu)
    if binary is None:
        sys.exit("exits: install qemu-system-x86.")
    tree.program(Path(binary))
    tree.archive.symlink("bin/qemu", binary)
    for name in _FIRMWARE:
        found = [place / name for place in _PLACES if (place / name).exists()]
        if found:
            tree.put(found[0].resolve(), f"/qemu/{name}")
    tree.program(_FILE_SERVER)
    tree.archive.symlink("bin/virtiofsd", str(_FILE_SERVER))
    tree.archive.file("qemu/init.cpio", _guest(_INIT, []))
    modules = sorted((kvm_rig.HOME / "data").glob(f"store/kernels/{HOST.architecture}/*/*.ko"))
    tree.archive.file("qemu/work.cpio", _guest(_WORK, modules))


def _guest(init: str, modules: list[Path]) -> bytes:
    """An initramfs for QEMU's guest."""
    inner = Initramfs()
    inner.directory("bin")
    inner.character_device("dev/console", 5, 1)
    inner.file("bin/busybox", kvm_rig.busybox(kvm_rig.debian()).read_bytes(), 0o755)
    inner.file("init", init.encode(), 0o755)
    for path in modules:
        inner.file(path.name, path.read_bytes())
    return b"".join(inner.chunks())


def report(lines: Iterable[str]) -> Comparison:
    """The counts in a console's lines."""
    found: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        if words := re.search(r"EXITS (\S+) (\S+) (\d+) (\d+)$", line):
            side, row, count = words[1], words[2], int(words[4])
            name = _REASONS.get(int(words[3]), f"{int(words[3]):#x}")
            counts = found[side][row]
            counts[name] = counts.get(name, 0) + count
    comparison = Comparison("exits", "exits", {"by reason": found})
    for side, rows in found.items():
        sample = {}
        for row, reasons in rows.items():
            sample[row] = reasons.get("memory", 0) + reasons.get("port", 0)
            sample[f"{row}, all"] = sum(reasons.values())
        comparison.samples[side] = [sample]
    return comparison


def main() -> None:
    """The benchmark."""
    checks = (ROOT / "tools" / "kvm_exits.sh").read_text()
    kernel, initramfs = kvm_rig.build(HOST, checks, short=False, more=qemu)
    lines = []
    for line in kvm_rig.run(HOST, kernel, initramfs, 3000):
        print(line, file=sys.stderr)
        lines.append(line)
    if any("RIG failed" in line for line in lines):
        sys.exit("exits: some of the work was not done; nothing is kept.")
    comparison = report(lines)
    print(comparison.table())
    print(comparison.save())


if __name__ == "__main__":
    main()
