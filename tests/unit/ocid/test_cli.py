import json
from collections.abc import Callable
from pathlib import Path

import pytest

from crumble_common.messages.image import Progress
from crumble_ocid.__main__ import main
from crumble_ocid.cli import Meter
from framework.registry import Registry, make_image

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main([*arguments, "--store", str(tmp_path / "store")])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_commands(
    command: Command, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_image()
    reference = registry.add(parts)
    assert command("pull", reference) == (0, f"{parts.digest}\n", "")
    status, out, _ = command("images")
    assert status == 0 and reference in out and "linux/riscv64" in out
    assert json.loads(command("images", "--json")[1])[0]["reference"] == reference
    assert json.loads(command("inspect", reference)[1])["manifest"] == json.loads(parts.manifest)
    where = tmp_path / "out"
    assert command("export", reference, str(where))[0] == 0 and (where / "index.json").exists()
    monkeypatch.chdir(tmp_path)
    assert command("pull", "oci:out")[:2] == (0, f"{parts.digest}\n")
    status, out, _ = command("rm", reference)
    assert status == 0 and out.startswith(f"Removed {reference};")


def test_errors_are_one_sentence(command: Command, registry: Registry) -> None:
    for arguments in (
        ("pull", "A"),
        ("inspect", "none"),
        ("rm", "none"),
        ("pull", f"{registry.host}/x"),
        ("kernel", "vax"),
    ):
        status, out, err = command(*arguments)
        assert status == 1 and not out
        assert err.startswith("crumble-ocid: ") and err.count("\n") == 1 and "Traceback" not in err


def test_a_meter_only_draws_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter()
    progress = Progress("", "download", 5_000_000, 10_000_000)
    meter.show(progress)
    meter.clear()
    assert capsys.readouterr().err == ""
    meter._terminal = True
    meter.show(progress)
    meter.clear()
    assert "download: 5 of 10 MB" in capsys.readouterr().err
