"""Captures of fsd sessions for tests, as the service makes them: two files and a state."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crumble_common.messages.fs import Share as ShareConfig
from crumble_fsd.freeze import freeze_files, freeze_session
from crumble_fsd.restore import Restored, restore_session
from crumble_fsd.session import Session
from crumble_fsd.tree import Tree
from crumble_fsd.union_parts import LayerFiles
from crumble_fsd.upper import MemoryUpper, Upper
from framework.layers import open_layer


@dataclass
class Snapshot:
    """directory/NAME.index, NAME.contents, and the state."""

    directory: Path
    name: str
    state: bytes
    size: int


def capture(directory: Path, name: str, session: Session, tree: Tree, shares: Any = ()) -> Snapshot:
    """Captures a session."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    index = os.open(directory / f"{name}.index", flags, 0o600)
    contents = os.open(directory / f"{name}.contents", flags, 0o600)
    try:
        state, size = freeze_session(session, tree, list(shares), index, contents)
    finally:
        os.close(index)
        os.close(contents)
    return Snapshot(directory, name, state, size)


def commit(
    directory: Path, name: str, session: Session, tree: Tree, excludes: Sequence[str] = ()
) -> LayerFiles | None:
    """What the guest has written as an image's layer."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    index = os.open(directory / f"{name}.index", flags, 0o600)
    contents = os.open(directory / f"{name}.contents", flags, 0o600)
    try:
        size = freeze_files(session, tree, index, contents, list(excludes))
    finally:
        os.close(index)
        os.close(contents)
    return None if size is None else open_layer(directory, name)


class Clone:
    """One restored session. `layers`: the image's, which stay the caller's."""

    def __init__(
        self,
        snapshot: Snapshot,
        layers: list[LayerFiles],
        shares: list[ShareConfig] | None = None,
        upper: Upper | None = None,
    ) -> None:
        self.captured_name = snapshot.name
        self.captured = open_layer(snapshot.directory, snapshot.name)
        self.upper = upper or MemoryUpper(1 << 28)
        try:
            self.restored: Restored = restore_session(
                snapshot.state, [*layers, self.captured], self.upper, shares or []
            )
        except BaseException:
            self._close_files()
            raise

    def close(self) -> None:
        """Closes everything but the image's layers."""
        self.restored.close()
        self._close_files()

    def _close_files(self) -> None:
        self.upper.close()
        self.captured.index.close()
        os.close(self.captured.contents)
