"""The nodes of a session by nodeid, and those of a restored one that nobody has asked for yet."""

from __future__ import annotations

from typing import Protocol

from crumble_fsd.filesystem import Node


class Waker(Protocol):
    """Makes nodes of a captured session when they are first used."""

    def wake(self, nodeid: int) -> Node | None:
        """The node, now in the table; None when the capture has none (left) of that number.

        Raises HostError "snapshot.corrupt" for one that makes no sense.
        """

    def wake_all(self) -> None:
        """All of them."""

    def __len__(self) -> int:
        """How many still sleep."""


class NodeTable(dict[int, Node]):
    """nodeid → node. What `get` does not find may sleep: then `wake` does."""

    waker: Waker | None = None

    def wake(self, nodeid: int) -> Node | None:
        """The node, of those that sleep."""
        return None if self.waker is None else self.waker.wake(nodeid)

    def wake_all(self) -> None:
        """Nothing sleeps any more."""
        if self.waker is not None:
            self.waker.wake_all()

    @property
    def count(self) -> int:
        """How many there are, sleeping ones too."""
        return len(self) + (0 if self.waker is None else len(self.waker))
