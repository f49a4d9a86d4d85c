"""Whose an IPv6 address is: the guest's that used it first (RFC 6620), so that no guest speaks for another."""

from __future__ import annotations

from collections import OrderedDict

# Addresses of one guest; the one that it used for the first time longest ago goes.
_MOST = 32


class Claims:
    """Addresses by port number."""

    def __init__(self) -> None:
        self._owner: dict[bytes, int] = {}
        self._of: dict[int, OrderedDict[bytes, bool]] = {}

    def claim(self, number: int, address: bytes, *, fixed: bool = False) -> bool:
        """Whether the address is this port's, from now on; fixed: it is never dropped for others."""
        owner = self._owner.get(address)
        if owner is not None:
            return owner == number
        mine = self._of.setdefault(number, OrderedDict())
        if len(mine) >= _MOST:
            oldest = next((known for known, kept in mine.items() if not kept), None)
            if oldest is None:
                return False
            del mine[oldest], self._owner[oldest]
        mine[address] = fixed
        self._owner[address] = number
        return True

    def release(self, number: int) -> None:
        """A port has gone."""
        for address in self._of.pop(number, ()):
            del self._owner[address]
