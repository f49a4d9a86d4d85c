"""Exits of KVM for a boot, a command, a file of 1 MiB and 10 MiB by TCP, on an emulated host.

    make bench NAME=exits                                    x86_64
    .venv/bin/python -m benchmarks.exits --arch arm64        or riscv64; its own file of results

Counts or records of the kernel's own tracepoint, by reason; there only counts mean anything, times do not. A boot is from
the kernel's entry to its init (ours: to the agent, which is more), beside QEMU's microvm and q35, or virt with
virtio over MMIO and over PCI, with the same kernel file and devices; `file` is read through virtio-fs, and `tcp` sent through
user networking. `exec` is a command that does nothing, which our `file` and `tcp` contain. A row is of accesses to
devices and to memory that is new; with "all" come timers and interrupts, of which a slow host has more.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable

from tools import kvm_rig
from tools.kvm_rig import ROOT

from benchmarks._common import Comparison
from benchmarks._exits_peers import qemu

# An exit's keys in the tracepoint, as KEYS in tools/kvm_exits.sh, and its name.
Names = dict[tuple[int, ...], str]
HOSTS = {"x86_64": "x86_64-trixie", "arm64": "arm64", "riscv64": "riscv64"}
# What the tracepoint tells an exit by. SVM's exit codes (AMD APM volume 2, appendix C).
_X86: Names = {
    (0x60,): "interrupt", (0x61,): "nmi", (0x64,): "interrupt window", (0x72,): "cpuid", (0x78,): "hlt",
    (0x7B,): "port", (0x7C,): "msr", (0x81,): "vmmcall", (0x400,): "memory", (0x401,): "avic",
    (0x402,): "avic",
}  # fmt: skip
# Linux' ARM_EXCEPTION_IRQ; ARM_EXCEPTION_TRAP and ESR_EL2.EC (Arm ARM, D24.2.40).
_ARM64: Names = {
    (0, 0): "interrupt", (2, 0x01): "wfi", (2, 0x07): "fp", (2, 0x16): "hvc", (2, 0x18): "register",
    (2, 0x20): "memory", (2, 0x24): "memory",
}  # fmt: skip
# scause, an interrupt's without its highest bit (RISC-V privileged specification, hypervisor extension).
_RISCV64: Names = {
    (10,): "sbi", (20,): "memory", (21,): "memory", (22,): "virtual instruction", (23,): "memory",
}  # fmt: skip
_RISCV_INTERRUPT = 1 << 63
_REASONS = {"x86_64": _X86, "arm64": _ARM64, "riscv64": _RISCV64}


def reason(arch: str, keys: tuple[int, ...]) -> str:
    """An exit's name; its numbers when it has none."""
    if arch == "riscv64" and keys[0] & _RISCV_INTERRUPT:
        return "interrupt"
    return _REASONS[arch].get(keys, " ".join(f"{key:#x}" for key in keys))


def report(arch: str, lines: Iterable[str]) -> Comparison:
    """The counts in a console's lines."""
    found: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        if words := re.search(r"EXITS (\S+) (\S+) \{(.*)\} (\d+)$", line):
            side, row, count = words[1], words[2], int(words[4])
            keys = tuple(int(key, 0) for key in re.findall(r": *(\w+)", words[3]))
            name = reason(arch, keys)
            counts = found[side][row]
            counts[name] = counts.get(name, 0) + count
    name = "exits" if arch == "x86_64" else f"exits-{arch}"
    comparison = Comparison(name, "exits", {"by reason": found})
    for side, rows in found.items():
        sample = {}
        for row, reasons in rows.items():
            sample[row] = reasons.get("memory", 0) + reasons.get("port", 0)
            sample[f"{row}, all"] = sum(reasons.values())
        comparison.samples[side] = [sample]
    return comparison


def main() -> None:
    """The benchmark."""
    parser = argparse.ArgumentParser(description="Exits of KVM, beside QEMU's.")
    parser.add_argument("--arch", choices=HOSTS, default="x86_64")
    arch = parser.parse_args().arch
    host = kvm_rig.HOSTS[HOSTS[arch]]
    checks = (ROOT / "tools" / "kvm_exits.sh").read_text()
    kernel, initramfs = kvm_rig.build(host, checks, short=False, more=lambda tree: qemu(tree, host))
    lines = []
    for line in kvm_rig.run(host, kernel, initramfs, 3000):
        print(line, file=sys.stderr)
        lines.append(line)
    if any("RIG failed" in line for line in lines):
        sys.exit("exits: some of the work was not done; nothing is kept.")
    comparison = report(arch, lines)
    print(comparison.table())
    print(comparison.save())


if __name__ == "__main__":
    main()
