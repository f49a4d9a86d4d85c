"""The distribution: a wheel made from an sdist works where there is no repository and no Makefile."""

import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def check(*command: object, **options: Any) -> str:
    """Runs a command; fails the test with its output when it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        capture_output=True,
        text=True,
        **options,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, seeing this one's dependencies but not its `crumble`."""
    work = tmp_path_factory.mktemp("package")
    tree = work / "tree"
    check("git", "clone", "-q", "--no-hardlinks", ROOT, tree)
    pip = [sys.executable, "-m", "pip", "-q"]
    check(*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", work / "dist", tree)
    home = work / "venv"
    venv.create(home, symlinks=True, with_pip=False)
    (wheel,) = (work / "dist").glob("crumble-*.whl")
    target = next(home.glob("lib/python*/site-packages"))
    check(*pip, "install", "--no-deps", "--prefix", home, "--ignore-installed", wheel)
    dependencies = next(Path(sys.prefix).glob("lib/python*/site-packages"))
    (work / "deps").symlink_to(dependencies)
    (target / "deps.pth").write_text(f"{work / 'deps'}\n")
    return home


def test_the_installed_command_runs_from_anywhere(installed: Path, tmp_path: Path) -> None:
    out = check(installed / "bin" / "crumble", "--version", cwd=tmp_path)
    assert out.startswith("crumble ")


def test_the_installed_core_is_the_wheels_own(installed: Path, tmp_path: Path) -> None:
    code = "import crumble_native._core as core; print(core.__file__)"
    out = check(installed / "bin" / "python", "-c", code, cwd=tmp_path)
    assert out.startswith(str(installed))
