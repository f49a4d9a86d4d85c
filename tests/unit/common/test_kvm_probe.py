"""What is said about /dev/kvm."""

import errno
from pathlib import Path

import pytest

from crumble_common.errors import HostError
from crumble_common.kvm import probe as kvm
from crumble_common.kvm.probe import probe_kvm
from crumble_native.kvm_probe import TIMED, UNTIMED, UNUSABLE, Report


@pytest.mark.parametrize(
    ("report", "code", "words"),
    [
        (Report(TIMED, 0, 1_336_895), "kvm.emulated", "cannot run stock Linux"),
        (Report(TIMED, 0, 1_336_895), "kvm.emulated", "1.3 million instructions a second"),
        (Report(UNTIMED, 0, 0), "kvm.architecture", "cannot use it on"),
        (Report(UNUSABLE, errno.EBUSY, 0), "kvm.unusable", "run a guest: Device or resource busy"),
    ],
)
def test_verdicts(report: Report, code: str, words: str) -> None:
    with pytest.raises(HostError, match=words) as caught:
        kvm._judge(report)
    assert caught.value.code == code
    assert "--hv soft" in caught.value.hint


def test_a_fast_one_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm.platform, "machine", lambda: "x86_64")
    probe = kvm._judge(Report(TIMED, 0, 2_000_000_000))
    assert (probe.usable, probe.architectures) == (True, ("amd64",))
    monkeypatch.setattr(kvm.platform, "machine", lambda: "aarch64")
    assert kvm._judge(Report(UNTIMED, 0, 0)).architectures == ("arm64",)
    monkeypatch.setattr(kvm.platform, "machine", lambda: "ppc64")
    with pytest.raises(HostError, match="ppc64"):
        kvm._judge(Report(TIMED, 0, 2_000_000_000))


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRUMBLE_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "kvm"
    made.touch()
    monkeypatch.setattr(kvm, "_DEVICE", made)
    return made


def test_no_device(device: Path, runtime: Path) -> None:
    device.unlink()
    assert probe_kvm().present is False
    assert not runtime.exists()


def test_the_measurement_is_made_once_a_boot(
    device: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Report] = []

    def measure() -> Report:
        made.append(Report(TIMED, 0, 1_000_000 * (len(made) + 1)))
        return made[-1]

    monkeypatch.setattr(kvm.kvm_probe, "probe", measure)
    assert probe_kvm().reason == probe_kvm().reason
    assert len(made) == 1
    device.chmod(0o600)  # another ctime: the module was loaded again
    assert "2.0 million" in probe_kvm().reason
    (runtime / "kvm-probe.json").write_text("[1, {")
    assert "3.0 million" in probe_kvm().reason
    assert sorted(path.name for path in runtime.iterdir()) == ["kvm-probe.json"]


def test_a_device_that_may_not_be_opened(
    device: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.unlink()
    device.mkdir()
    probe = probe_kvm()
    assert (probe.present, probe.usable) == (True, False)
    assert "cannot be opened" in probe.reason
