"""What a VM may be, what it may be called, and what is said when it may not."""

from pathlib import Path

import pytest

from crumble.supervisor import limits, names
from crumble_common.errors import UsageError
from crumble_common.messages.client import VmCreate
from crumble_common.messages.fs import Share

MIB = 1 << 20


@pytest.mark.parametrize("memory", [0, -1, 95 * MIB, 1 << 40])
def test_memory_out_of_limits_is_refused_with_the_limits(memory: int) -> None:
    with pytest.raises(UsageError, match=r"between 96m and \d+m"):
        limits.check(VmCreate("x", memory=memory))


def test_memory_within_limits_is_rounded_up() -> None:
    limits.check(VmCreate("x", memory=96 * MIB))
    assert limits.rounded_memory(96 * MIB) == 96 * MIB
    assert limits.rounded_memory(96 * MIB + 1) == 98 * MIB


@pytest.mark.parametrize("cpus", [0, -1, 17])
def test_cpus_out_of_limits_are_refused(cpus: int) -> None:
    with pytest.raises(UsageError, match="between 1 and 16"):
        limits.check(VmCreate("x", cpus=cpus))


@pytest.mark.parametrize("hostname", ["-a", "a b", "a" * 65, "a_b", "é"])
def test_bad_host_names_are_refused(hostname: str) -> None:
    with pytest.raises(UsageError, match="host name"):
        limits.check(VmCreate("x", hostname=hostname))


@pytest.mark.parametrize("target", ["relative", "/", "/a/../b", ""])
def test_bad_share_targets_are_refused(target: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="place for a share"):
        limits.check(VmCreate("x", shares=[Share(str(tmp_path), target)]))


def test_a_share_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    limits.check(VmCreate("x", shares=[Share(str(tmp_path), "/x")]))
    with pytest.raises(UsageError, match="does not exist"):
        limits.check(VmCreate("x", shares=[Share(str(tmp_path / "no"), "/x")]))


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(UsageError, match="soft"):
        limits.check(VmCreate("x", hypervisor="xen"))


def test_an_unknown_pull_policy_is_refused() -> None:
    with pytest.raises(UsageError, match="missing, always or never"):
        limits.check(VmCreate("x", pull="sometimes"))


def test_names_are_checked_and_invented() -> None:
    assert names.choose_name("web.1", ()) == "web.1"
    assert names.choose_name("", ()) != names.choose_name("", ())
    with pytest.raises(UsageError, match="already"):
        names.choose_name("web", ["web"])
    for bad in ("-a", "a/b", "..", "a" * 42, "é"):
        with pytest.raises(UsageError, match="cannot be"):
            names.choose_name(bad, ())
