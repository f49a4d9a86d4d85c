"""Kernel modules: decompression and checks."""

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble_common.errors import UsageError
from crumble_vmm.boot import modules
from crumble_vmm.boot.modules import EM_RISCV, Module, load_module, load_modules


def elf(machine: int = EM_RISCV, kind: int = 1, size: int = 5000) -> bytes:
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", kind, machine)
    return head.ljust(size, b"m")


def test_modules_keep_their_order_and_lose_their_compression(tmp_path: Path) -> None:
    files = {
        "failover.ko": elf(),
        "virtio-rng.ko.xz": lzma.compress(elf()),
        "a.ko.gz": gzip.compress(elf()),
        "b.ko.zst": zstandard.compress(elf()),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert load_modules(tmp_path / name for name in files) == [
        Module("failover", elf()),
        Module("virtio_rng", elf()),
        Module("a", elf()),
        Module("b", elf()),
    ]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a 64-bit"),
        (b"MZ" * 100, "not a 64-bit"),
        (elf(machine=62), "ELF machine 62"),
        (elf(kind=2), "type 2"),
        (elf() + b"~Module signature appended~\n", "not a 64-bit"),
        (b"~Module signature appended~\n", "not a 64-bit"),
        (lzma.compress(elf())[:-10], "ends too early"),
        (lzma.compress(elf())[:40] + b"z" * 100, "xz data"),
        (gzip.compress(elf(), mtime=0)[:-10], "ends too early"),
        (zstandard.compress(elf())[:-5], "ends too early"),
    ],
)
def test_what_is_no_module_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "x.ko"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=why) as caught:
        load_module(path)
    assert caught.value.code == "vmm.module"


def test_a_bomb_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "MAX_MODULE", 1 << 20)
    for name, pack in (("a", lzma.compress), ("b", gzip.compress), ("c", zstandard.compress)):
        path = tmp_path / f"{name}.ko"
        path.write_bytes(pack(bytes(30 << 20)))
        with pytest.raises(UsageError, match="unpacks to more than"):
            load_module(path)


def test_a_signature_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "x.ko"
    signature = b"s" * 300 + bytes(8) + struct.pack(">I", 300)
    path.write_bytes(elf() + signature + b"~Module signature appended~\n")
    assert load_module(path).data == elf()


def test_a_missing_module(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Cannot read kernel module"):
        load_module(tmp_path / "none.ko")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from([bytes, lzma.compress, zstandard.compress]))
def test_any_bytes_are_a_module_or_refused(
    tmp_path: Path, noise: bytes, pack: Callable[[bytes], bytes]
) -> None:
    """Whatever the file holds: a relocatable ELF of the guest's kind, or a UsageError."""
    path = tmp_path / "x.ko"
    path.write_bytes(pack(noise) if noise[:1] < b"\x40" else pack(elf())[:-1] + noise)
    try:
        module = load_module(path)
    except UsageError:
        return
    assert module.data.startswith(b"\x7fELF")
