"""Back ends that run a guest's vCPUs, chosen by probe."""

from __future__ import annotations

from crumble_common.errors import HostError, UsageError
from crumble_common.hypervisors import Probe
from crumble_vmm.hypervisor.base import Hypervisor
from crumble_vmm.hypervisor.soft import SoftHypervisor


def probe_all() -> list[Probe]:
    """What each back end says of this host, the preferred first."""
    from crumble_common.kvm.probe import probe_kvm  # nothing else needs it

    return [probe_kvm(), SoftHypervisor().probe()]


def choose(name: str) -> tuple[Hypervisor, Probe]:
    """The back end called `name`, or for "auto" the best usable one; raises when it can't be used."""
    if name == SoftHypervisor.name:
        soft = SoftHypervisor()
        return soft, soft.probe()
    if name not in ("auto", "kvm"):
        raise UsageError(
            f"There is no hypervisor named {name!r}.",
            code="vmm.hypervisor",
            hint="Use auto, soft or kvm.",
        )
    from crumble_common.kvm.probe import usable_kvm
    from crumble_vmm.hypervisor.kvm import KvmHypervisor  # soft does without it

    try:
        return KvmHypervisor(), usable_kvm()
    except HostError:
        if name == "auto":
            return choose(SoftHypervisor.name)
        raise
