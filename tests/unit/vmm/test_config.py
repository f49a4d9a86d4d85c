"""What a VM's configuration may be."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.errors import UsageError
from crumble_common.messages.vm import VirtioFs, VmConfig
from crumble_vmm.config import MIB, Filesystem, MachineConfig, host_memory


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"kernel")
    return path


def test_from_message(kernel: Path) -> None:
    message = VmConfig(
        vm="vm1",
        kernel=str(kernel),
        memory=512 * MIB,
        cpus=2,
        modules=[str(kernel)],
        cmdline="a=b",
        hostname="box",
        dmesg=True,
        filesystems=[VirtioFs("root", "root_fs")],
    )
    assert MachineConfig.from_message(message) == MachineConfig(
        "vm1",
        kernel,
        512 * MIB,
        2,
        (kernel,),
        "a=b",
        "auto",
        "box",
        True,
        (Filesystem("root", "root_fs"),),
    )


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"memory": 0}, "vmm.memory"),
        ({"memory": -2 * MIB}, "vmm.memory"),
        ({"memory": 62 * MIB}, "vmm.memory"),
        ({"memory": 65 * MIB}, "vmm.memory"),
        ({"memory": 1 << 40}, "vmm.memory"),
        ({"cpus": 0}, "vmm.cpus"),
        ({"cpus": 17}, "vmm.cpus"),
        ({"cmdline": "a\nb"}, "vmm.cmdline"),
        ({"cmdline": "ü"}, "vmm.cmdline"),
        ({"cmdline": "x" * 801}, "vmm.cmdline"),
        ({"hostname": "-x"}, "vmm.hostname"),
        ({"hostname": "x" * 65}, "vmm.hostname"),
        ({"hostname": "a\n"}, "vmm.hostname"),
        ({"kernel": Path("/nowhere/vmlinux")}, "vmm.kernel"),
        ({"kernel": Path("/")}, "vmm.kernel"),
        ({"modules": (Path("/nowhere/x.ko"),)}, "vmm.module"),
        ({"filesystems": (Filesystem("", "a"),)}, "vmm.tag"),
        ({"filesystems": (Filesystem("a b", "a"),)}, "vmm.tag"),
        ({"filesystems": (Filesystem("x" * 37, "a"),)}, "vmm.tag"),
        ({"filesystems": (Filesystem("a", "a"), Filesystem("a", "b"))}, "vmm.tag"),
    ],
)
def test_what_cannot_be(kernel: Path, changes: dict[str, Any], code: str) -> None:
    fields: dict[str, Any] = {"name": "vm", "kernel": kernel, "memory": 128 * MIB, **changes}
    with pytest.raises(UsageError) as caught:
        MachineConfig(**fields)
    assert caught.value.code == code
    assert caught.value.message.endswith(".")


def test_modules_are_not_without_number(kernel: Path) -> None:
    with pytest.raises(UsageError, match="too many"):
        MachineConfig("vm", kernel, 128 * MIB, modules=(kernel,) * 65)


@given(st.integers(-(1 << 50), 1 << 50))
def test_memory_that_is_taken_can_be_mapped(size: int) -> None:
    """A size is refused, or it is whole, enough and no more than the host has."""
    try:
        MachineConfig("vm", Path(__file__), size)
    except UsageError:
        return
    assert 64 * MIB <= size <= host_memory()
    assert size % (2 * MIB) == 0
