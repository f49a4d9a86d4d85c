"""The arm64 machine's device tree, as dtc reads it."""

import shutil
import subprocess

import pytest

from crumble_vmm.boot.tree import DeviceNode, PciNode
from crumble_vmm.boot.tree_arm64 import Arm64Tree, mpidr


def tree(cpus: int = 2, version: int = 3, *, its: bool = False) -> bytes:
    pci = PciNode((0x3F00_0000, 1 << 20), (0x1000_0000, 1 << 24), [16, 17], edge=True)
    return Arm64Tree(
        cpus=cpus,
        memory=(0x4000_0000, 0x2000_0000),
        devices=[
            DeviceNode("serial", ["arm,pl011", "arm,primecell"], 0x0900_0000, 0x1000, 1),
            DeviceNode("virtio_mmio", "virtio,mmio", 0x0A00_0000, 0x1000, 16, edge=True),
        ],
        cmdline="console=ttyAMA0",
        console="serial@9000000",
        initrd=(0x4400_0000, 0x4410_0000),
        seed=b"\xaa" * 64,
        gic_version=version,
        gic=((0x0800_0000, 0x1_0000), (0x080A_0000, 0x4_0000)),
        its=(0x0808_0000, 0x2_0000) if its else None,
        pci=pci if its else None,
    ).flatten()


def test_sixteen_to_a_cluster() -> None:
    assert [mpidr(index) for index in (0, 1, 15, 16, 33)] == [0, 1, 15, 0x100, 0x201]


@pytest.mark.skipif(not shutil.which("dtc"), reason="dtc (device-tree-compiler) is not installed")
@pytest.mark.parametrize(("version", "name"), [(3, "arm,gic-v3"), (2, "arm,cortex-a15-gic")])
def test_dtc_reads_it_without_a_complaint(version: int, name: str) -> None:
    done = subprocess.run(
        ["dtc", "-I", "dtb", "-O", "dts"], input=tree(18, version), capture_output=True, check=True
    )
    assert b"Warning" not in done.stderr and b"rror" not in done.stderr, done.stderr
    text = done.stdout.decode()
    assert f'compatible = "{name}"' in text
    assert "cpu@101" in text and 'enable-method = "psci"' in text
    assert "interrupts = <0x00 0x01 0x04>" in text, "the serial port's is a level"
    assert "interrupts = <0x00 0x10 0x01>" in text, "virtio's is an edge"


@pytest.mark.skipif(not shutil.which("dtc"), reason="dtc (device-tree-compiler) is not installed")
def test_functions_send_messages_to_the_its_by_their_requester_ids() -> None:
    done = subprocess.run(
        ["dtc", "-I", "dtb", "-O", "dts"], input=tree(its=True), capture_output=True, check=True
    )
    assert b"Warning" not in done.stderr and b"rror" not in done.stderr, done.stderr
    text = done.stdout.decode()
    assert "msi-controller@8080000" in text and "msi-map = <0x00 0x03 0x00 0x10000>" in text
    assert "0x800 0x00 0x00 0x01 0x01 0x00 0x10 0x01" in text, "INTA of device 1 is an edge"
