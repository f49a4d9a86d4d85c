"""Back ends that run a guest's vCPUs, chosen by probe."""

from __future__ import annotations

from crumble_common.errors import HostError, UsageError
from crumble_vmm.hypervisor.base import Hypervisor, Probe
from crumble_vmm.hypervisor.soft import SoftHypervisor


def probe_all() -> list[Probe]:
    """What each back end says of this host, the preferred first."""
    from crumble_vmm.hypervisor.kvm.probe import probe_kvm  # nothing else needs it

    return [probe_kvm(), SoftHypervisor().probe()]


def choose(name: str) -> tuple[Hypervisor, Probe]:
    """The back end called `name`, or for "auto" the best usable one; raises when it can't be used."""
    if name in ("auto", SoftHypervisor.name):
        soft = SoftHypervisor()
        return soft, soft.probe()
    for probe in probe_all():
        if probe.name == name:
            raise HostError(
                f"Hypervisor {name} cannot be used: {probe.reason}",
                code="vmm.hypervisor",
                hint="Choose auto, which takes the best one that works.",
            )
    raise UsageError(
        f"There is no hypervisor named {name!r}.",
        code="vmm.hypervisor",
        hint="Choose auto, soft or kvm.",
    )
