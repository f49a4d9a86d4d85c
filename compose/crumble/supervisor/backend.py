"""Which back end a VM runs on, and so which architecture its kernel and image are of."""

from __future__ import annotations

from dataclasses import dataclass

from crumble_common.errors import HostError
from crumble_common.kvm.probe import usable_kvm


@dataclass(frozen=True, slots=True)
class Backend:
    """name: as in VmConfig. architecture: of its guests, as in OCI platforms."""

    name: str
    architecture: str


SOFT = Backend("soft", "riscv64")


def choose(wanted: str) -> Backend:
    """The back end for "auto", "kvm" or "soft"; HostError "kvm.*" when KVM is wanted and cannot be used.

    May take a fifth of a second, once a boot of the host.
    """
    if wanted == SOFT.name:
        return SOFT
    try:
        probe = usable_kvm()
    except HostError:
        if wanted == "auto":
            return SOFT
        raise
    return Backend(probe.name, probe.architectures[0])
