"""What lending flows to the C core is for TCP (fast_path.py) and UDP (udp_path.py) alike."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from crumble_netd.flow_table import Key
from crumble_netd.port import Port

# A port's counters, in the order in which C has them.
COUNTS = ("rx.frames", "rx.bytes", "tx.frames", "tx.bytes", "tx.too_large")


class Recallable(Protocol):
    """A flow in the C core."""

    def recall(self) -> None:
        """It is Python's again."""


class Counting(Protocol):
    """The table that such flows are in."""

    def counts(self) -> tuple[int, ...]:
        """COUNTS, since the last call."""


L = TypeVar("L", bound=Recallable)
T = TypeVar("T", bound=Counting)


class Lending(Generic[L, T]):
    """A guest's flows that are lent. number: the most at once."""

    def __init__(self, port: Port, number: int) -> None:
        self._port = port
        self._lent: dict[int, L] = {}
        self._free = list(reversed(range(number)))
        self._flows: T | None = None

    @property
    def live(self) -> bool:
        """Flows are lent."""
        return bool(self._lent)

    @property
    def flows(self) -> T | None:
        """The table that they are in; None before the first one."""
        return self._flows

    def recall_all(self) -> None:
        """Nothing is lent."""
        for lent in list(self._lent.values()):
            lent.recall()
        self.count()

    def count(self) -> None:
        """The port's counters are right."""
        if self._flows is not None:
            for name, count in zip(COUNTS, self._flows.counts(), strict=True):
                if count:
                    self._port.counts[name] += count


def ends(key: Key) -> bytes:
    """Between whom a flow is, as C has it: both addresses, both ports."""
    ports = key.guest_port.to_bytes(2, "big") + key.remote_port.to_bytes(2, "big")
    return key.guest + key.remote + ports
