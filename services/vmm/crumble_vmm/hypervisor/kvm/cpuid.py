"""What CPUID tells a guest: the host's features or a named level's, our topology; and whether a CPU has
what a captured guest was told.

Levels: x86-64 psABI, "Micro-Architecture Levels". Leaves: Intel SDM volume 2 (CPUID), AMD APM volume 3 (E).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from crumble_common.errors import HostError

_ENTRY = struct.Struct("<7I12x")
_VENDOR_AMD = 0x68747541  # "Auth"
# Leaf, index, register.
Place = tuple[int, int, str]
_1C, _1D, _7B, _EXT_C = (1, 0, "ecx"), (1, 0, "edx"), (7, 0, "ebx"), (0x8000_0001, 0, "ecx")


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """struct kvm_cpuid_entry2. flags: 1 when `index` counts."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def unpack(data: bytes) -> list[CpuidEntry]:
    """KVM's table; ValueError for what is none."""
    try:
        return [CpuidEntry(*fields) for fields in _ENTRY.iter_unpack(data)]
    except struct.error:
        raise ValueError("a CPUID table that is none") from None


def pack(entries: Iterable[CpuidEntry]) -> bytes:
    """A table for KVM."""
    return b"".join(
        _ENTRY.pack(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries
    )


# What each level needs beyond the one before, by the names that /proc/cpuinfo has.
_V2 = {
    _1C: {"pni": 0, "ssse3": 9, "cx16": 13, "sse4_1": 19, "sse4_2": 20, "popcnt": 23},
    _EXT_C: {"lahf_lm": 0},
}
_V3 = {
    _1C: {"fma": 12, "movbe": 22, "xsave": 26, "avx": 28, "f16c": 29},
    _7B: {"bmi1": 3, "avx2": 5, "bmi2": 8},
    _EXT_C: {"abm": 5},
}
_V4 = {_7B: {"avx512f": 16, "avx512dq": 17, "avx512cd": 28, "avx512bw": 30, "avx512vl": 31}}
# Parts of a CPU's extended state (XCR0): x87 and SSE, AVX, AVX-512.
_STATES = {"x86-64-v2": 0x3, "x86-64-v3": 0x7, "x86-64-v4": 0xE7}
_STEPS = {"x86-64-v2": (_V2,), "x86-64-v3": (_V2, _V3), "x86-64-v4": (_V2, _V3, _V4)}
HOST = "host"
# Beside what it needs a level shows: of leaf 1, x2APIC, the deadline timer, OSXSAVE and RDRAND, and what
# every 64-bit CPU has; of leaf 7, FSGSBASE, SMEP, ERMS and SMAP; mitigations, which a guest must know of.
_BESIDE = {
    _1C: 1 << 21 | 1 << 24 | 1 << 27 | 1 << 30 | 1 << 31,
    _1D: 0x178B_FBFF | 1 << 28,
    _7B: 1 << 0 | 1 << 7 | 1 << 9 | 1 << 20,
    (7, 0, "ecx"): 0,
    (7, 0, "edx"): 1 << 10 | 1 << 26 | 1 << 27 | 1 << 29 | 1 << 31,
    (7, 1, "eax"): 0,
    (0xD, 1, "eax"): 0,
    _EXT_C: 1 << 4,
    (0x8000_0001, 0, "edx"): 0x2C10_0800 | 0x0183_F3FF,
    (0x8000_0008, 0, "ebx"): 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24 | 1 << 25,
}
# Ours to give whatever the host has: the hypervisor bit, OSXSAVE (the guest's CR4), the deadline timer, HTT.
_OURS = {_1C: 1 << 31 | 1 << 27 | 1 << 24, _1D: 1 << 28}
# Never shown: VMX and SVM, whose state no snapshot has.
_NEVER = {_1C: 1 << 5, _EXT_C: 1 << 2}
_FEATURES: tuple[Place, ...] = (
    *_BESIDE, (7, 2, "edx"), (0xD, 0, "eax"), (0x8000_0007, 0, "edx"), (0x4000_0001, 0, "eax"),
)  # fmt: skip


def _needed(model: str) -> dict[Place, dict[str, int]]:
    found: dict[Place, dict[str, int]] = {}
    for step in _STEPS[model]:
        for place, names in step.items():
            found.setdefault(place, {}).update(names)
    return found


def _value(table: Iterable[CpuidEntry], place: Place) -> int:
    function, index, register = place
    for entry in table:
        if (entry.function, entry.index) == (function, index):
            return int(getattr(entry, register))
    return 0


def check_model(model: str, supported: list[CpuidEntry]) -> None:
    """Raises HostError "kvm.cpu" when this host's CPU has not reached a level."""
    if model == HOST:
        return
    absent = [
        name
        for place, names in _needed(model).items()
        for name, bit in names.items()
        if not _value(supported, place) >> bit & 1
    ]
    if absent:
        raise HostError(
            f"This host's CPU is not {model}: it lacks {', '.join(absent)}.",
            code="kvm.cpu",
            hint="Choose a lower level with --cpu-model, or host.",
        )


def _masked(table: list[CpuidEntry], model: str) -> Iterator[CpuidEntry]:
    """Those features that a model has."""
    masks = {place: 0xFFFF_FFFF & ~bits for place, bits in _NEVER.items()}
    if model != HOST:
        masks = dict(_BESIDE)
        for place, names in _needed(model).items():
            masks[place] |= sum(1 << bit for bit in names.values())
    for entry in table:
        if model != HOST and entry.function == 0xD:
            shown = _state_entry(table, entry, _STATES[model])
            if shown is not None:
                yield shown
            continue
        changes = {
            register: getattr(entry, register) & mask
            for (function, index, register), mask in masks.items()
            if (function, index) == (entry.function, entry.index)
        }
        yield replace(entry, **changes)


def _state_entry(table: list[CpuidEntry], entry: CpuidEntry, states: int) -> CpuidEntry | None:
    """Leaf 0xD with only these parts of the extended state; None for a part that is not one of them."""
    if entry.index > 1:
        return entry if states >> entry.index & 1 else None
    if states == _STATES["x86-64-v2"] or entry.index == 1:  # v2 has no XSAVE
        return replace(entry, eax=0, ebx=0, ecx=0, edx=0)
    parts = (e for e in table if e.function == 0xD and e.index > 1 and states >> e.index & 1)
    size = max([576, *(part.ebx + part.eax for part in parts)])
    return replace(entry, eax=entry.eax & states, ecx=size, edx=0)


def guest_table(
    supported: list[CpuidEntry], cpu: int, cpus: int, *, deadline: bool, model: str = HOST
) -> list[CpuidEntry]:
    """What vCPU `cpu` of `cpus` says of itself: the model's features, our topology, no PMU.

    One package, `cpus` cores without siblings. deadline: KVM has the TSC deadline timer.
    """
    amd = any(entry.function == 0 and entry.ebx == _VENDOR_AMD for entry in supported)
    shift = (cpus - 1).bit_length()
    made = [
        _adapted(entry, cpu, cpus, deadline=deadline, amd=amd)
        for entry in _masked(supported, model)
        if entry.function not in (0xB, 0x1F)
    ]
    if supported and max(e.function for e in supported if e.function < 1 << 30) >= 0xB:
        made += _topology(cpu, cpus, shift)
    return made


def _topology(cpu: int, cpus: int, shift: int) -> Iterator[CpuidEntry]:
    """Leaf 0xB: a level of one thread, a level of cores, the end."""
    yield CpuidEntry(0xB, 0, 1, 0, 1, 0x100, cpu)
    yield CpuidEntry(0xB, 1, 1, shift, cpus, 0x201, cpu)
    yield CpuidEntry(0xB, 2, 1, 0, 0, 2, cpu)


def _adapted(entry: CpuidEntry, cpu: int, cpus: int, *, deadline: bool, amd: bool) -> CpuidEntry:
    shift = (cpus - 1).bit_length()
    match entry.function:
        case 1:
            # Without the hypervisor bit Linux calibrates its clock on a PIT, which isn't there.
            ecx = entry.ecx | 1 << 31 | (1 << 24 if deadline else 0)
            ebx = entry.ebx & 0xFFFF | (1 << shift) << 16 | cpu << 24
            edx = entry.edx & ~(1 << 28) | (1 << 28 if cpus > 1 else 0)
            return replace(entry, ebx=ebx, ecx=ecx, edx=edx)
        case 4:
            sharing = (1 << shift) - 1 if entry.eax >> 5 & 7 == 3 else 0
            return replace(entry, eax=entry.eax & 0x3FFF | sharing << 14 | ((1 << shift) - 1) << 26)
        case 0xA | 0x8000_0022:
            return replace(entry, eax=0, ebx=0, ecx=0, edx=0)
        case 0x8000_0008 if amd:
            return replace(entry, ecx=shift << 12 | cpus - 1)
        case 0x8000_001E:
            return replace(entry, eax=cpu, ebx=cpu & 0xFF, ecx=0)
    return entry


def missing(table: list[CpuidEntry], supported: list[CpuidEntry]) -> list[str]:
    """Why a guest that was told `table` cannot go on on a CPU that supports `supported`; [] if it can."""
    if any(
        _value(table, (0, 0, name)) != _value(supported, (0, 0, name)) for name in ("ebx", "ecx")
    ):
        return ["its maker's own features: the snapshot is of another maker's CPU"]
    return [
        _name(place, bit)
        for place in _FEATURES
        for bit in range(32)
        if _value(table, place) & ~_value(supported, place) & ~_OURS.get(place, 0) & 1 << bit
    ]


def _name(place: Place, bit: int) -> str:
    for step in (_V2, _V3, _V4):
        for name, number in step.get(place, {}).items():
            if number == bit:
                return name
    function, index, register = place
    return f"CPUID {function:#x}.{index} {register} bit {bit}"
