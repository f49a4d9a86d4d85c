"""Runtime directories: one daemon, any number of others, stale ones recognised and removed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crumble.supervisor.instance import Instance
from crumble.supervisor.locate import find_daemon
from crumble_common.errors import UsageError


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "runtime"
    monkeypatch.setenv("CRUMBLE_RUNTIME_DIR", str(path))
    return path


def test_it_is_private_and_leaves_nothing(runtime: Path) -> None:
    instance = Instance()
    assert instance.path.stat().st_mode & 0o777 == 0o700
    assert instance.logs.is_dir()
    assert not find_daemon()
    instance.close()
    assert list(runtime.iterdir()) == []


def test_one_daemon_at_a_time_and_it_is_found(runtime: Path) -> None:
    daemon = Instance(daemon=True)
    assert not find_daemon()
    daemon.announce()
    assert find_daemon() == str(daemon.path)
    with pytest.raises(UsageError, match="running already"):
        Instance(daemon=True)
    other = Instance()
    other.close()
    daemon.close()
    assert not find_daemon()
    Instance(daemon=True).close()
    assert list(runtime.iterdir()) == []


def test_what_a_killed_supervisor_left_is_removed_and_the_living_are_kept(runtime: Path) -> None:
    code = (
        "import os\nfrom crumble.supervisor.instance import Instance\n"
        "i = Instance(daemon=True)\ni.announce()\nprint(i.path, flush=True)\nos.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = Path(dead.stdout.strip())
    assert left.is_dir()
    assert not find_daemon()
    living = Instance()
    assert not left.exists()
    second = Instance()
    assert living.path.is_dir()
    assert sorted(runtime.iterdir()) == sorted([living.path, second.path])
    living.close()
    second.close()


def test_a_directory_being_made_is_left_alone_and_an_abandoned_one_is_not(runtime: Path) -> None:
    young, old = runtime / "new-1", runtime / "new-2"
    young.mkdir(parents=True)
    old.mkdir()
    os.utime(old, (1, 1))
    runtime.chmod(0o700)
    Instance().close()
    assert young.is_dir()
    assert not old.exists()
