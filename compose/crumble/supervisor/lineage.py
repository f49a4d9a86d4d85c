"""Snapshots that build on others: only what was written since is saved.

A child has its parents' files in its own directory, by hard links: nobody can take them away from it, and removing a
parent frees what no child needs.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
from typing import TYPE_CHECKING

from crumble.snapshots import manifest as form
from crumble.snapshots.draft import Draft
from crumble.snapshots.manifest import Manifest
from crumble_common.errors import CrumbleError
from crumble_common.memory_base import MAX_RUNS, count_runs, pack_runs, parse_runs, runs_of
from crumble_native.memory import STATE_HEADER_SIZE

if TYPE_CHECKING:
    from crumble.supervisor.vm import Vm

# Of one snapshot; so that a whole chain has no more than MAX_RUNS.
_RUNS = MAX_RUNS // form.MAX_PARENTS
_PIECE = 1 << 20
_SUFFIXES = ("", ".sums", ".pages")

Run = tuple[int, int]


def link_parents(vm: Vm, draft: Draft) -> Manifest | None:
    """The snapshot that a capture can build on, its files in `draft`; None when it has to be whole."""
    wanted = vm.lineage
    if wanted is None or vm.backend.name != "soft" or len(wanted.memories) > form.MAX_PARENTS:
        return None
    try:
        parent = vm.host.store.open(wanted.name)
    except CrumbleError:
        return None  # removed meanwhile
    try:
        if parent.manifest != wanted:
            return None
        for number, name in enumerate(wanted.memories):
            for suffix in _SUFFIXES:
                if name + suffix in wanted.files:
                    path = str(parent.path / (name + suffix))
                    draft.link(form.parent_file(number, suffix), path)
        return wanted
    finally:
        parent.close()


def named(manifest: Manifest, parent: Manifest) -> Manifest:
    """With what it builds on."""
    return dataclasses.replace(manifest, parent=parent.name, parent_digest=parent.digest)


def frozen_runs(vm: Vm) -> bytes:
    """Which pages the capture has that has just begun."""
    fd = vm.host.fds.get(vm.id, "page_state")
    return runs_of(os.pread(fd, vm.memory // form.PAGE, STATE_HEADER_SIZE))


def thicken(draft: Draft, runs: bytes, limit: int = _RUNS) -> bytes:
    """Fewer runs, where there are too many to map: what is between them is copied from below."""
    if count_runs(runs) <= limit:
        return runs
    pages = os.fstat(draft.fds[form.MEMORY]).st_size // form.PAGE
    kept = list(parse_runs(runs, pages))
    gaps = sorted((b[0] - a[0] - a[1] for a, b in itertools.pairwise(kept)))
    widest = gaps[len(kept) - limit - 1]
    made, filled = [kept[0]], []
    for first, count in kept[1:]:
        start, length = made[-1]
        gap = first - start - length
        if gap <= widest:
            filled.append((start + length, gap))
            made[-1] = (start, first + count - start)
        else:
            made.append((first, count))
    _fill(draft, filled, pages)
    return pack_runs(made)


def _fill(draft: Draft, gaps: list[Run], pages: int) -> None:
    number = 0
    while (fd := draft.fds.get(form.parent_file(number))) is not None:
        has = [(0, pages)]
        if number:
            listed = draft.fds[form.parent_file(number, ".pages")]
            has = list(parse_runs(os.pread(listed, form.MAX_PAGES, 0), pages))
        for first, count in _both(gaps, has):
            _copy(fd, draft.fds[form.MEMORY], first * form.PAGE, count * form.PAGE)
        number += 1


def _copy(source: int, target: int, at: int, length: int) -> None:
    """Bytes to the same place of another file; OSError, of a disk that is full too."""
    end = at + length
    while at < end:
        data = os.pread(source, min(end - at, _PIECE), at)
        if not data:
            raise OSError(errno.EIO, "a parent's memory is shorter than its child's")
        at += os.pwrite(target, data, at)


def _both(one: list[Run], other: list[Run]) -> list[Run]:
    """What is in both of two lists of runs."""
    found, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        ends = one[i][0] + one[i][1], other[j][0] + other[j][1]
        first, end = max(one[i][0], other[j][0]), min(ends)
        if first < end:
            found.append((first, end - first))
        i, j = (i + 1, j) if ends[0] < ends[1] else (i, j + 1)
    return found
