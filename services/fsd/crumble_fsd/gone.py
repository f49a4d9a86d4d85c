"""A share that a restored session does not have any more: ESTALE for all the guest still knows of it."""

from __future__ import annotations

import errno
import stat
from typing import Any, NoReturn

from crumble_fsd.filesystem import Filesystem, Node, fail
from crumble_fsd.share_state import SHARE_BASE


def _stale(*_arguments: Any, **_options: Any) -> NoReturn:
    fail(errno.ESTALE)


def _nothing(*_arguments: Any, **_options: Any) -> None:
    """What a guest may always do: forget."""


_METHODS: dict[str, Any] = dict.fromkeys(Filesystem.__abstractmethods__, _stale)
_METHODS |= {"remember": _nothing, "forget": _nothing, "syncfs": _nothing}
_METHODS |= {"entry_valid": 0, "attr_valid": 0, "negative_valid": 0}
_Stale: type[Filesystem] = type("_Stale", (Filesystem,), _METHODS)


class GoneShare:
    """Takes the place of share `number`; the capture's words on it are kept for the next capture."""

    def __init__(self, number: int, packed: dict[str, Any]) -> None:
        self._packed = packed
        kind = stat.S_IFDIR if packed["directory"] else stat.S_IFREG
        self.root = Node(_Stale(), SHARE_BASE | number << 48, kind)

    def pack(self) -> dict[str, Any]:
        """See Share."""
        return self._packed

    def close(self) -> None:
        """Nothing is open."""
