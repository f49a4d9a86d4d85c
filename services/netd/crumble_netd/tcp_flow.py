"""A TCP connection as a flow: Python's, or lent to who serves it elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from crumble_netd.flow_table import Flow
from crumble_netd.header.tcp import Segment
from crumble_netd.tcp.connection import Connection


class Elsewhere(Protocol):
    """What serves a flow in this layer's place."""

    def recall(self) -> None:
        """It does no longer, and its connection is up to date."""


@dataclass(eq=False, slots=True)
class TcpFlow(Flow):
    """A connection. syn: the guest's, until the host side has connected. noted: which of its states is in
    its slot.
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

    @property
    def connection(self) -> Connection | None:
        """None before the host side has connected, and at the end. Whoever looks takes it back."""
        if self.lent is not None:
            self.lent.recall()
        return self.kept

    @connection.setter
    def connection(self, connection: Connection | None) -> None:
        self.kept = connection
