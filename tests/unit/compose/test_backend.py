"""Which back end a VM gets."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from crumble.supervisor import backend, recipe
from crumble.supervisor.backend import Backend, choose
from crumble.supervisor.vm import Vm
from crumble_common.errors import HostError, UsageError
from crumble_common.hypervisors import Probe
from crumble_common.kvm import probe as kvm_probe
from crumble_common.messages.client import VmCreate
from crumble_vmm import hypervisor as vmm

USABLE = Probe("kvm", True, True, "It works.", ("amd64",))
SLOW = HostError("/dev/kvm is slow.", code="kvm.emulated")


def probing(found: Probe | HostError) -> Callable[[], Probe]:
    def probe() -> Probe:
        if isinstance(found, HostError):
            raise found
        return found

    return probe


@pytest.mark.parametrize(
    ("wanted", "probe", "found"),
    [
        ("auto", USABLE, Backend("kvm", "amd64")),
        ("kvm", USABLE, Backend("kvm", "amd64")),
        ("auto", SLOW, Backend("soft", "riscv64")),
        ("soft", USABLE, Backend("soft", "riscv64")),
    ],
)
def test_choices(
    monkeypatch: pytest.MonkeyPatch, wanted: str, probe: Probe | HostError, found: Backend
) -> None:
    """The supervisor and vmm choose alike."""
    monkeypatch.setattr(backend, "usable_kvm", probing(probe))
    monkeypatch.setattr(kvm_probe, "usable_kvm", probing(probe))
    assert choose(wanted) == found
    hypervisor, its = vmm.choose(wanted)
    assert (hypervisor.name, its.architectures[0]) == (found.name, found.architecture)


def test_kvm_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "usable_kvm", probing(SLOW))
    monkeypatch.setattr(kvm_probe, "usable_kvm", probing(SLOW))
    for ask in (choose, vmm.choose):
        with pytest.raises(HostError, match="/dev/kvm is slow") as caught:
            ask("kvm")
        assert caught.value.code == "kvm.emulated"


def test_soft_looks_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "usable_kvm", lambda: pytest.fail("probed"))
    assert choose("soft").name == "soft"


@pytest.mark.parametrize("wanted", ["auto", "soft"])
def test_a_snapshot_goes_on_where_it_was_made(wanted: str) -> None:
    vm = SimpleNamespace(request=VmCreate("", hypervisor=wanted), backend=backend.SOFT)
    recipe._check_origin(cast(Vm, vm))


def test_a_snapshot_does_not_change_its_back_end() -> None:
    vm = SimpleNamespace(request=VmCreate("", hypervisor="kvm"), backend=backend.SOFT)
    with pytest.raises(UsageError, match="made on soft") as caught:
        recipe._check_origin(cast(Vm, vm))
    assert caught.value.code == "snapshot.hypervisor"
