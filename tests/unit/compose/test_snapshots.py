"""The snapshot store: what is there is whole, what is damaged or foreign says so, nothing is left."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble.snapshots import archive, meter
from crumble.snapshots import manifest as form
from crumble.snapshots.store import Snapshot, State, Store
from crumble.snapshots.verify import verify
from crumble_common import directories
from crumble_common.errors import CrumbleError, HostError, UsageError
from framework import stored_snapshots as snapshots

SLOW = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "snapshots")


def open_one(store: Store, name: str = "one") -> Snapshot:
    return store.open(name)


def files(store: Store) -> list[str]:
    return sorted(path.name for path in store.path.iterdir())


def test_what_was_published_is_found_and_read(store: Store) -> None:
    made = snapshots.snapshot(store)
    found = open_one(store)
    assert found.manifest == made
    assert found.manifest.changed
    assert (found.state.vm, found.state.fsd) == (b"vm", b"fsd")
    with os.fdopen(found.open("memory"), "rb") as file:
        data = file.read()
    assert len(data) == snapshots.MEMORY
    assert data[4096:4102] == b"kernel"
    verify(found)
    found.close()
    (listed,) = store.found()
    assert (listed.name, listed.problem) == ("one", "")
    assert listed.size < snapshots.MEMORY, "zeroes take no room"
    assert files(store) == ["one"]


def test_names_are_unique_and_checked(store: Store) -> None:
    snapshots.snapshot(store)
    draft = snapshots.draft(store)
    with (
        contextlib.closing(open_one(store)) as one,
        pytest.raises(UsageError, match="There is a snapshot one already"),
    ):
        store.publish(draft, snapshots.about("one"), one.state)
    draft.discard()
    assert files(store) == ["one"]
    for name in ("", "..", "../one", ".tmp-1", "a/b", "x" * 80):
        with pytest.raises(UsageError, match=r"cannot be|no snapshot"):
            store.open(name)


def test_a_snapshot_in_use_is_not_removed(store: Store) -> None:
    snapshots.snapshot(store)
    first, second = open_one(store), open_one(store)
    first.close()
    with pytest.raises(UsageError, match="in use"):
        store.remove("one")
    second.close()
    assert store.remove("one") > 0
    assert files(store) == []
    with pytest.raises(UsageError, match="no snapshot one"):
        store.remove("one")


def test_what_a_killed_process_was_making_is_swept(store: Store) -> None:
    alive = snapshots.draft(store)
    dead = snapshots.draft(store)
    dead.close()  # as a kill does
    store.sweep()
    assert files(store) == [alive.path.name]
    alive.discard()
    assert files(store) == []


def test_what_ends_while_others_sweep_is_no_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft that was there when the directory was read, and is named or discarded before its turn."""
    draft = snapshots.draft(store)
    lock = directories.lock

    def late(path: Path) -> int | None:
        draft.discard()
        return lock(path)

    with monkeypatch.context() as patch:
        patch.setattr(directories, "lock", late)
        store.sweep()
    assert files(store) == []


def test_the_least_recently_used_boot_snapshots_go_first(store: Store) -> None:
    for number, name in enumerate(("boot-a", "boot-b", "boot-c", "mine")):
        snapshots.snapshot(store, name)
        os.utime(store.path / name, (number, number))
    store.open("boot-a").close()  # used just now
    size = store.found()[0].size
    assert store.shrink(2 * size) == ["boot-b"]
    in_use = store.open("boot-c")
    os.utime(in_use.path, (1, 1))
    assert store.shrink(size) == []
    in_use.close()
    assert store.shrink(0) == ["boot-c", "boot-a"]
    assert files(store) == ["mine"]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """As another program would: with a checksum that is right."""
    plain = json.loads(path.read_text())
    plain.pop("checksum")
    change(plain)
    path.write_text(json.dumps({**plain, "checksum": form._checksum(plain)}))


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda plain: plain.update(format=1), "snapshot.foreign", "format 1"),
        (lambda plain: plain.update(architecture="m68k"), "snapshot.foreign", "m68k"),
        (lambda plain: plain.update(hypervisor="xen"), "snapshot.foreign", "xen"),
        (lambda plain: plain.update(memory=1), "snapshot.corrupt", "memory"),
        (lambda plain: plain.update(extra=1), "snapshot.corrupt", "extra"),
        (lambda plain: plain["files"].pop("memory"), "snapshot.corrupt", "missing"),
        (lambda plain: plain["files"].update({"../x": {"size": 1, "sha256": "0" * 64}}),
         "snapshot.corrupt", "cannot be a file"),
        (lambda plain: plain["image"].update(layers=["../../etc"]), "snapshot.corrupt", "layers"),
    ],
)  # fmt: skip
def test_a_manifest_from_elsewhere_is_refused(
    store: Store, change: Callable[[dict[str, Any]], object], code: str, says: str
) -> None:
    snapshots.snapshot(store)
    rewrite(store.path / "one/manifest.json", change)
    with pytest.raises(CrumbleError, match=says) as caught:
        store.open("one")
    assert caught.value.code == code
    assert says in store.found()[0].problem
    store.remove("one")


@pytest.mark.parametrize("name", ["memory", "memory.sums", "state.msgpack", "layer.contents"])
def test_truncated_and_missing_files_are_noticed_at_once(store: Store, name: str) -> None:
    snapshots.snapshot(store)
    path = store.path / "one" / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CrumbleError, match=name) as caught:
        store.open("one")
    assert caught.value.code == "snapshot.corrupt"
    path.unlink()
    with pytest.raises(CrumbleError, match="cannot be opened"):
        store.open("one")
    for make in (path.mkdir, lambda: (path.rmdir(), os.mkfifo(path))):
        make()
        before = os.listdir("/proc/self/fd")  # noqa: PTH208
        with pytest.raises(CrumbleError, match=f"{name} is not a file"):
            store.open("one")
        assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


@pytest.mark.parametrize(
    ("name", "at_once"),
    [("manifest.json", True), ("state.msgpack", True), ("memory", False), ("layer.index", False)],
)
def test_a_flipped_bit_is_found(store: Store, name: str, at_once: bool) -> None:
    snapshots.snapshot(store)
    path = store.path / "one" / name
    with path.open("r+b") as file:
        file.seek((2 << 20) + 2 if name == "memory" else path.stat().st_size - 3)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    if at_once:
        with pytest.raises(CrumbleError):
            store.open("one")
        return
    found = store.open("one")
    with pytest.raises(CrumbleError, match=name) as caught:
        verify(found)
    assert caught.value.code == "snapshot.corrupt"
    found.close()


def exported(store: Store, path: Path) -> bytes:
    found = store.open("one")
    archive.export(found, path)
    found.close()
    return path.read_bytes()


def test_export_and_import_are_inverse(store: Store, tmp_path: Path) -> None:
    made = snapshots.snapshot(store)
    data = exported(store, tmp_path / "file")
    assert len(data) < 4096, "holes take no room"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "snapshots"]
    with pytest.raises(UsageError, match="already"):
        archive.import_file(store, tmp_path / "file")
    archive.import_file(store, tmp_path / "file", "two")
    found = store.open("two")
    assert found.manifest.files == made.files
    verify(found)
    memory = store.path / "two/memory"
    assert memory.stat().st_blocks * 512 < snapshots.MEMORY
    assert memory.read_bytes() == (store.path / "one/memory").read_bytes()
    assert files(store) == ["one", "two"]
    found.close()


def test_long_work_tells_how_far_it_is(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "INTERVAL", 0)
    said: dict[str, list[tuple[int, int]]] = {}

    def tell(step: str, done: int, total: int) -> None:
        said.setdefault(step, []).append((done, total))

    draft = snapshots.draft(store)
    store.publish(draft, snapshots.about("one"), State(b"vm", b"fsd"), tell=tell)
    with contextlib.closing(store.open("one")) as found:
        verify(found, tell)
        archive.export(found, tmp_path / "file", tell)
    archive.import_file(store, tmp_path / "file", "two", tell)
    assert set(said) == {"checksums", "export", "import"}
    for step, steps in said.items():
        done, total = steps[-1]
        assert done == total > 0, step


@SLOW
@given(st.data())
def test_no_damaged_file_is_taken_in(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever happens to a file on its way, importing it makes the same snapshot or none."""
    store = Store(tmp_path / "snapshots")
    if not store.names():
        snapshots.snapshot(store)
    whole = exported(store, tmp_path / "file")
    position = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        bad = whole[:position]
    else:
        bad = bytearray(whole)
        bad[position] ^= data.draw(st.integers(1, 255))
    (tmp_path / "bad").write_bytes(bad)
    try:
        archive.import_file(store, tmp_path / "bad", "two")
    except (UsageError, CrumbleError):
        assert files(store) == ["one"]
    else:
        found = store.open("two")
        verify(found)
        assert found.manifest.files == store.open("one").manifest.files
        found.close()
        store.remove("two")


@SLOW
@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(form.Manifest)]), inner),
    max_leaves=20).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_manifest_is_read_or_refused(data: bytes) -> None:
    """No bytes raise anything but a CrumbleError."""
    try:
        form.decode(data, "any")
    except CrumbleError as error:
        assert error.code in ("snapshot.corrupt", "snapshot.foreign")


def test_import_of_what_is_no_snapshot(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no"):
        archive.import_file(store, tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UsageError, match="is no snapshot"):
        archive.import_file(store, tmp_path / "text")


def test_a_full_disk_is_the_hosts_fault(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = snapshots.draft(store)

    def full(_fd: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(HostError, match="No space left"):
        store.publish(draft, snapshots.about("one"), store_state())
    draft.discard()
    assert files(store) == []


def store_state() -> Any:
    from crumble.snapshots.store import State

    return State(b"", b"")
