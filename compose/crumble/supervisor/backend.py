"""Which back end a VM runs on, and so which architecture its kernel and image are of."""

from __future__ import annotations

from dataclasses import dataclass

from crumble_common.errors import HostError
from crumble_common.kvm.probe import probe_kvm


@dataclass(frozen=True, slots=True)
class Backend:
    """name: as in VmConfig. architecture: of its guests, as in OCI platforms."""

    name: str
    architecture: str


SOFT = Backend("soft", "riscv64")


def choose(wanted: str) -> Backend:
    """The back end for "auto", "kvm" or "soft"; HostError when KVM is wanted and cannot be used.

    May take a fifth of a second, once a boot of the host.
    """
    if wanted == SOFT.name:
        return SOFT
    probe = probe_kvm()
    if probe.usable:
        return Backend(probe.name, probe.architectures[0])
    if wanted == "auto":
        return SOFT
    raise HostError(
        f"KVM cannot be used: {probe.reason}",
        code="vm.hypervisor",
        hint="--hv auto takes the best back end that works; `crumble doctor` shows them.",
    )
