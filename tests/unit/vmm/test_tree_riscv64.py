"""The machine's device tree, as dtc reads it."""

import shutil
import subprocess

import pytest

from crumble_vmm.boot.tree import DeviceNode, PciNode
from crumble_vmm.boot.tree_riscv64 import Hart, Riscv64Tree


def tree(cpus: int = 2) -> bytes:
    return Riscv64Tree(
        cpus=cpus,
        memory=(0x8000_0000, 0x2000_0000),
        hart=Hart(10_000_000, "sv48", ("i", "m", "zicboz"), {"cboz": 64}),
        plic=(0x0C00_0000, 0x0400_0000),
        plic_sources=95,
        devices=[
            DeviceNode(
                "serial", "ns16550a", 0x1000_0000, 0x100, 10, (("clock-frequency", 3686400),)
            ),
            DeviceNode("virtio_mmio", "virtio,mmio", 0x1000_1000, 0x1000, 1),
        ],
        cmdline="console=ttyS0",
        console="serial@10000000",
        initrd=(0x8400_0000, 0x8410_0000),
        seed=b"\xaa" * 64,
        pci=PciNode((0x3000_0000, 0x10_0000), (0x4000_0000, 0x100_0000), [1, 2]),
    ).flatten()


def test_the_same_machine_has_the_same_tree() -> None:
    assert tree() == tree()
    assert tree(1) != tree(2)


@pytest.mark.skipif(not shutil.which("dtc"), reason="dtc (device-tree-compiler) is not installed")
def test_dtc_reads_it_without_a_complaint() -> None:
    done = subprocess.run(
        ["dtc", "-I", "dtb", "-O", "dts"], input=tree(), capture_output=True, check=True
    )
    assert done.stderr == b"", done.stderr.decode()
    text = done.stdout.decode()
    for line in (
        'bootargs = "console=ttyS0";',
        'stdout-path = "/soc/serial@10000000";',
        "linux,initrd-start = <0x00 0x84000000>;",
        "timebase-frequency = <0x989680>;",
        'mmu-type = "riscv,sv48";',
        'riscv,isa = "rv64im_zicboz";',
        'riscv,isa-extensions = "i\\0m\\0zicboz";',
        "riscv,cboz-block-size = <0x40>;",
        "interrupts-extended = <0x02 0x09 0x03 0x09>;",
        "riscv,ndev = <0x5f>;",
        "cpu@1 {",
        'compatible = "pci-host-ecam-generic";',
        "ranges = <0x2000000 0x00 0x40000000 0x00 0x40000000 0x00 0x1000000>;",
        "interrupt-map = <0x800 0x00 0x00 0x01 0x01 0x01 0x1000 0x00 0x00 0x01 0x01 0x02>;",
    ):
        assert line in text
