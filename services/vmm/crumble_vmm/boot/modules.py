"""Kernel modules for the initramfs: in load order, made ready here so that the guest need not.

They lose their compression and their signature: checking one costs a guest's kernel 40 million
instructions, and proves nothing, since whoever picked the module picked the kernel as well.

A module arrives as `NAME.ko`, plain or compressed with xz, gzip or zstd, and leaves as a relocatable
ELF file of the guest's architecture. What it holds is checked no further: the guest's kernel does
that, and it is the guest that a bad module harms.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from crumble_common.errors import UsageError
from crumble_vmm.boot.compression import CompressionError, unpack

# The largest module of Debian's riscv64 kernel (amdgpu) is 30 MB; virtio's are under 100 KB.
MAX_MODULE = 64 << 20
_ET_REL, EM_X86_64, EM_AARCH64, EM_RISCV = 1, 62, 183, 243
_SIGNED = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">8xI")


@dataclass(frozen=True, slots=True)
class Module:
    """name: as in /sys/module. data: the ELF file."""

    name: str
    data: bytes


def load_modules(paths: Iterable[Path], machine: int = EM_RISCV) -> list[Module]:
    """Reads modules in load order; raises UsageError for one that is not a module of `machine`."""
    return [load_module(path, machine) for path in paths]


def load_module(path: Path, machine: int = EM_RISCV) -> Module:
    """Reads one module."""
    name = path.name.split(".")[0].replace("-", "_")
    try:
        data = _unsigned(unpack(path.read_bytes(), MAX_MODULE))
    except OSError as error:
        raise UsageError(
            f"Cannot read kernel module {path}: {error.strerror}.",
            code="vmm.module",
            hint="Check the path and its permissions.",
        ) from None
    except CompressionError as error:
        raise _bad(path, str(error)) from None
    if len(data) < 64 or data[:6] != b"\x7fELF\x02\x01":
        raise _bad(path, "it is not a 64-bit little-endian ELF file")
    kind, found = struct.unpack_from("<HH", data, 16)
    if kind != _ET_REL or found != machine:
        raise _bad(path, f"it is for ELF machine {found}, type {kind}")
    return Module(name, data)


def _unsigned(data: bytes) -> bytes:
    """Linux, include/linux/module_signature.h: data, signature, its description, a magic string."""
    if not data.endswith(_SIGNED):
        return data
    end = len(data) - len(_SIGNED)
    (length,) = _SIGNATURE.unpack_from(data, max(end - _SIGNATURE.size, 0))
    return data[: max(end - _SIGNATURE.size - length, 0)]


def _bad(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} is not a kernel module for this guest: {why}.",
        code="vmm.module",
        hint="Give modules that belong to the kernel.",
    )
