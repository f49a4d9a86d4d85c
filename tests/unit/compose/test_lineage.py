"""Snapshots that build on others: what a child is made of, and what about it is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble.snapshots import archive
from crumble.snapshots import manifest as form
from crumble.snapshots.manifest import Manifest
from crumble.snapshots.store import State, Store
from crumble.snapshots.verify import is_trusted, verify, verify_and_trust
from crumble.supervisor import lineage
from crumble_common.errors import CrumbleError
from crumble_common.memory_base import MemoryBase, pack_runs, parse_runs
from framework import stored_snapshots as snapshots
from framework.stored_snapshots import MEMORY

PAGES = MEMORY // form.PAGE


class Backend:
    name = "soft"


class Host:
    def __init__(self, store: Store) -> None:
        self.store = store


class Vm:
    """As much of one as a child's making needs."""

    backend = Backend()

    def __init__(self, store: Store, lineage: Manifest | None) -> None:
        self.host, self.lineage = Host(store), lineage


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "snapshots")


def child(store: Store, name: str, parent: Manifest, pages: dict[int, bytes]) -> Manifest:
    """A snapshot that has these pages of its own."""
    draft = store.begin()
    vm: Any = Vm(store, parent)
    assert lineage.link_parents(vm, draft) == parent
    memory = draft.create("memory")
    for number, data in pages.items():
        os.pwrite(memory, data.ljust(form.PAGE, b"."), number * form.PAGE)
    runs = pack_runs((number, 1) for number in sorted(pages))
    about = lineage.named(snapshots.about(name), parent)
    return store.publish(draft, about, State(b"vm", b"fsd"), runs)


def memory(store: Store, name: str) -> bytes:
    found = store.open(name)
    fds = [found.open(file) for file in found.manifest.memories]
    with MemoryBase(fds, found.runs).map(MEMORY) as mapped:
        data = bytes(mapped)
    for fd in fds:
        os.close(fd)
    found.close()
    return data


@pytest.fixture
def chain(store: Store) -> list[Manifest]:
    """Three over one another."""
    first = snapshots.snapshot(store, "first")
    second = child(store, "second", first, {1: b"second", 9: b"new"})
    return [first, second, child(store, "third", second, {9: b"newer"})]


def test_a_child_is_its_parents_and_what_it_has_itself(store: Store, chain: list[Manifest]) -> None:
    first, _, third = chain
    data = memory(store, "third")
    assert (data[4096:4102], data[9 * 4096 :][:5], data[2 << 20 :][:5]) == (
        b"second",
        b"newer",
        b"agent",
    )
    assert memory(store, "first")[4096:4102] == b"kernel"
    assert (third.parent, third.memories) == ("second", [*map(form.parent_file, (0, 1)), "memory"])
    assert len({made.digest for made in chain}) == 3
    assert third.parent_digest == chain[1].digest
    assert first.parent_digest == ""


def test_a_parent_may_go(store: Store, chain: list[Manifest]) -> None:
    whole = memory(store, "third")
    store.remove("first")
    store.remove("second")
    assert memory(store, "third") == whole
    found = store.open("third")
    verify(found)
    found.close()
    # What the next capture of such a VM would build on is not there: it is whole.
    draft = store.begin()
    vm: Any = Vm(store, chain[1])
    assert lineage.link_parents(vm, draft) is None
    # Nor does another one of that name do.
    snapshots.snapshot(store, "second")
    assert lineage.link_parents(vm, draft) is None
    assert draft.fds == {}
    draft.discard()


def test_a_chain_travels_as_one_file(store: Store, chain: list[Manifest], tmp_path: Path) -> None:
    found = store.open("third")
    archive.export(found, tmp_path / "file")
    found.close()
    archive.import_file(store, tmp_path / "file", "fourth")
    assert memory(store, "fourth") == memory(store, "third")


def test_chains_have_an_end(store: Store) -> None:
    made = snapshots.snapshot(store, "s0")
    for number in range(form.MAX_PARENTS):
        made = child(store, f"s{number + 1}", made, {number: b"x"})
    draft = store.begin()
    vm: Any = Vm(store, made)
    assert lineage.link_parents(vm, draft) is None
    draft.discard()
    assert len(made.memories) == form.MAX_PARENTS + 1


def one_more(made: Manifest) -> Manifest:
    files = dict(made.files)
    for number in range(form.MAX_PARENTS + 1):
        for suffix in ("", ".sums", ".pages"):
            files[form.parent_file(number, suffix)] = made.files["memory" + suffix]
    return dataclasses.replace(made, files=files)


def without(made: Manifest, *names: str) -> Manifest:
    files = {name: file for name, file in made.files.items() if name not in names}
    return dataclasses.replace(made, files=files)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda made: dataclasses.replace(made, parent="other"), ""),
        (lambda made: dataclasses.replace(made, parent_digest="0" * 64), "not the 'second'"),
        (lambda made: dataclasses.replace(made, parent=""), "not said what it builds on"),
        (one_more, "more than 8 others"),
        (lambda made: without(made, "parent-0.memory"), "missing"),
        (lambda made: without(made, "parent-1.memory.sums"), "another size"),
        (lambda made: without(made, "memory.pages"), "not said"),
    ],
)
def test_a_chain_from_elsewhere(
    store: Store, chain: list[Manifest], change: Callable[[Manifest], Manifest], says: str
) -> None:
    """A name is only a name; what counts is the digest. A circle would have to contain its own digest."""
    (store.path / "third/manifest.json").write_bytes(form.encode(change(chain[2])))
    if not says:
        store.open("third").close()
        return
    with pytest.raises(CrumbleError, match=says) as caught:
        store.open("third")
    assert caught.value.code == "snapshot.corrupt"


@pytest.mark.parametrize("name", ["parent-0.memory", "parent-1.memory.pages", "memory.pages"])
def test_a_parent_that_is_missing_or_damaged(
    store: Store, chain: list[Manifest], name: str
) -> None:
    assert chain
    path = store.path / "third" / name
    data = bytearray(path.read_bytes())
    path.unlink()
    with pytest.raises(CrumbleError, match=f"{name}.*cannot be opened") as caught:
        store.open("third")
    assert caught.value.code == "snapshot.corrupt"
    data[4096 if name.endswith("memory") else 4] ^= 1
    path.write_bytes(data)
    with (
        pytest.raises(CrumbleError, match=f"{name}.*was changed"),
        contextlib.closing(store.open("third")) as third,
    ):
        verify(third)


def test_what_was_written_is_looked_at_once(store: Store, chain: list[Manifest]) -> None:
    assert chain
    found = store.open("third")
    assert is_trusted(found), "it was just made"
    for name in ("memory", "parent-0.memory", "layer.contents"):
        path = store.path / "third" / name
        if path.exists():
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
            assert not is_trusted(found)
            verify_and_trust(found)
            assert is_trusted(found)
    with (store.path / "third/memory").open("r+b") as file:
        file.seek(9 * form.PAGE)
        file.write(b"N")
    assert not is_trusted(found)
    with pytest.raises(CrumbleError, match="its memory was changed"):
        verify_and_trust(found)
    assert not is_trusted(found)
    found.close()
    assert not list((store.path / "third").glob(".*"))


def test_what_is_between_is_copied_whole_or_not_at_all(
    store: Store, chain: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may take a part of a write."""
    draft = store.begin()
    vm: Any = Vm(store, chain[-1])
    lineage.link_parents(vm, draft)
    file = draft.create("memory")
    os.ftruncate(file, MEMORY)
    write = os.pwrite
    monkeypatch.setattr(lineage.os, "pwrite", lambda fd, data, at: write(fd, data[:1000], at))
    lineage.thicken(draft, pack_runs([(0, 1), (PAGES - 1, 1)]), 1)
    between = os.pread(file, (PAGES - 2) * form.PAGE, form.PAGE)
    assert between == memory(store, chain[-1].name)[form.PAGE : (PAGES - 1) * form.PAGE]
    draft.discard()


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, PAGES - 1), unique=True, min_size=1, max_size=60), st.integers(1, 20)
)
def test_many_small_runs_become_few(tmp_path_factory: Any, pages: list[int], limit: int) -> None:
    """However many are allowed, the memory is the same and no more are left."""
    store = Store(tmp_path_factory.mktemp("s") / "snapshots")
    first = snapshots.snapshot(store, "first")
    second = child(store, "second", first, dict.fromkeys(range(0, PAGES, 7), b"two"))
    plain = child(store, "plain", second, dict.fromkeys(pages, b"three"))
    draft = store.begin()
    vm: Any = Vm(store, second)
    lineage.link_parents(vm, draft)
    file = draft.create("memory")
    os.ftruncate(file, MEMORY)
    for number in pages:
        os.pwrite(file, b"three".ljust(form.PAGE, b"."), number * form.PAGE)
    runs = lineage.thicken(draft, pack_runs((n, 1) for n in sorted(pages)), limit)
    assert len(list(parse_runs(runs, PAGES))) <= limit
    about = lineage.named(snapshots.about("thick"), second)
    store.publish(draft, about, State(b"vm", b"fsd"), runs)
    assert memory(store, "thick") == memory(store, plain.name)
