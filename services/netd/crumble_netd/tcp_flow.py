"""A TCP connection as a flow: Python's, or lent to who serves it elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from crumble_netd.flow_table import Flow, Key
from crumble_netd.header.tcp import Segment
from crumble_netd.tcp.connection import Connection


class Elsewhere(Protocol):
    """What serves a flow in this layer's place."""

    def recall(self) -> None:
        """It does no longer, and its connection is up to date."""

    def deadline(self) -> float:
        """When its first timer is due, which is waited for from now on; 0 when there is none."""


@dataclass(eq=False, slots=True)
class TcpFlow(Flow):
    """A connection. syn: the guest's, until the host side has connected. noted: which of its states is in
    its slot. others, refused: of one to a guest; between which ends else it may begin, and whether the guest has
    refused between some (`layers/opening.py`).
    """

    kept: Connection | None = None
    lent: Elsewhere | None = None
    syn: Segment | None = None
    service: Literal["nat", "forward", "dns"] = "nat"
    credit: int = 0
    granted: int = 0
    window: int = 0
    freed: int = 0
    retried: bool = False
    noted: tuple[object, ...] = ()
    others: list[Key] = field(default_factory=list)
    refused: bool = False

    @property
    def connection(self) -> Connection | None:
        """None before the host side has connected, and at the end. Whoever looks takes it back."""
        if self.lent is not None:
            self.lent.recall()
        return self.kept

    @connection.setter
    def connection(self, connection: Connection | None) -> None:
        self.kept = connection
