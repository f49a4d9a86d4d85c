"""What names resolved to, for one guest: rules by name are rules about these addresses.

What a rule allows it allows until the answer's time is over; what it denies stays denied.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

# Addresses remembered of one guest; the one heard of longest ago goes.
MOST = 4096
_MOST_NAMES = 32
# Resolvers in guests keep answers for their TTL, and connect a moment later.
GRACE = 30.0
# What is kept for a successor, and what an address and a name take beside themselves, bytes, about.
_KEPT, _BESIDE = 256 << 10, 16


class Resolved:
    """Addresses (4 or 16 bytes) → names → until when."""

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, OrderedDict[str, float]] = OrderedDict()

    def add(self, address: bytes, name: str, until: float) -> None:
        """`name` was said to be `address`."""
        names = self._found.setdefault(address, OrderedDict())
        self._found.move_to_end(address)
        names[name] = max(until, names.get(name, 0.0))
        names.move_to_end(name)
        while len(names) > _MOST_NAMES:
            names.popitem(last=False)
        while len(self._found) > MOST:
            self._found.popitem(last=False)

    def names(self, address: bytes, now: float) -> list[str]:
        """The names that are this address now."""
        return [name for name, until in self._found.get(address, {}).items() if now < until]

    def ever(self, address: bytes) -> list[str]:
        """The names that were this address."""
        return list(self._found.get(address, ()))

    def pack(self) -> list[Any]:
        """What was heard of last, as much as is kept for a successor."""
        room, kept = _KEPT, []
        for address, names in reversed(self._found.items()):
            room -= len(address) + _BESIDE + sum(len(name) + _BESIDE for name in names)
            if room < 0:
                break
            kept.append([address, list(names.items())])
        return kept[::-1]

    def restore(self, packed: list[Any]) -> None:
        """Takes what a predecessor has packed."""
        for address, names in packed:
            for name, until in names:
                self.add(address, name, until)
