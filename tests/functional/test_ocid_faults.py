"""ocid killed, interrupted and run twice at once: nothing is left half-written, work is resumed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.registry import Fault, Registry, make_image, running_registry
from framework.registry_archives import PACKERS, Item, sha256, tar

SIZE = 3_000_000


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as made:
        yield made


def start(store: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "crumble_ocid", *arguments, "--store", str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(store.parent)},
    )


def wait_for(what: object, process: subprocess.Popen[str]) -> None:
    assert callable(what)
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline and process.poll() is None, "it never came so far"
        time.sleep(0.01)


def files(store: Path, *places: str) -> list[str]:
    return [path.name for place in places for path in (store / place).rglob("*") if path.is_file()]


def partial_size(store: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in (store / "work").glob("*.partial"))
    return 0


def test_killed_in_a_download_and_resumed(registry: Registry, tmp_path: Path) -> None:
    layer = tar(Item("big", bytes(SIZE)))
    reference = registry.add(make_image(layer))
    registry.faults = {sha256(layer): Fault("stall")}
    store = tmp_path / "store"
    process = start(store, "pull", reference)
    written = len(layer) // 2 - (64 << 10)  # of what has come the last may be in a buffer
    wait_for(lambda: partial_size(store) >= written, process)
    process.kill()
    process.communicate()
    assert files(store, "references", "layers") == []
    registry.faults = {}
    registry.requests.clear()
    process = start(store, "pull", reference)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    (request,) = [headers for _, path, headers in registry.requests if sha256(layer) in path]
    start_of_range = int(request["Range"].removeprefix("bytes=").rstrip("-"))
    assert start_of_range >= written
    assert files(store, "work", "leases") == []


def test_killed_again_and_again(registry: Registry, tmp_path: Path) -> None:
    """Wherever it is killed, what is in the store is whole, and a pull that is let be works."""
    layers = [tar(Item(f"f{n}", os.urandom(200_000)), Item("x" * 50)) for n in range(3)]
    packed = [PACKERS["gzip"](item) for item in layers]
    reference = registry.add(make_image(*packed, diff_ids=[sha256(item) for item in layers]))
    store = tmp_path / "store"
    for attempt in range(12):
        process = start(store, "pull", reference)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.12 + attempt * 0.04)
        process.kill()
        process.communicate()
        for blob in files(store, "blobs"):
            assert sha256((store / "blobs/sha256" / blob).read_bytes()) == f"sha256:{blob}"
    process = start(store, "pull", reference, "--policy", "always")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert files(store, "work", "leases") == []
    assert len(files(store, "layers")) == 6


def test_interrupted(registry: Registry, tmp_path: Path) -> None:
    layer = tar(Item("big", bytes(SIZE)))
    reference = registry.add(make_image(layer))
    registry.faults = {sha256(layer): Fault("stall")}
    process = start(tmp_path / "store", "pull", reference)
    wait_for(lambda: partial_size(tmp_path / "store") > 0, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (130, "", "")
    assert files(tmp_path / "store", "references", "layers", "leases") == []


def test_two_processes_share_a_download(registry: Registry, tmp_path: Path) -> None:
    layer = tar(Item("big", bytes(SIZE)))
    reference = registry.add(make_image(layer))
    processes = [start(tmp_path / "store", "pull", reference) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert registry.count(sha256(layer)) == 1
    assert files(tmp_path / "store", "work", "leases") == []


def test_a_store_on_a_full_disk(registry: Registry, tmp_path: Path) -> None:
    """A real one: a small tmpfs in a user namespace of its own, where that is allowed."""
    reference = registry.add(make_image(tar(Item("big", bytes(SIZE)))))
    script = (
        "mount -t tmpfs -o size=1m tmpfs $0 && "
        f"{sys.executable} -m crumble_ocid pull {reference} --store $0/store; "
        "echo status $?; ls $0/store/work $0/store/references"
    )
    where = tmp_path / "small"
    where.mkdir()
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(where)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this host allows no mounts in user namespaces")
    assert "status 1" in done.stdout and "The disk is full" in done.stderr
    assert done.stderr.count("\n") == 1
