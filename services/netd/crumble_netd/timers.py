"""Deadlines by key: one each, moved at will, served in order."""

from __future__ import annotations

import heapq
from collections.abc import Hashable


class Timers:
    """Cheap to move: an entry that no longer holds is passed over when it comes up."""

    def __init__(self) -> None:
        self._when: dict[Hashable, float] = {}
        self._entry: dict[Hashable, float] = {}  # the one entry of a key that counts
        self._heap: list[tuple[float, int, Hashable]] = []
        self._order = 0

    def set(self, key: Hashable, when: float) -> None:
        """`key` is due at `when`; 0 for never."""
        if not when:
            self._when.pop(key, None)
            return
        self._when[key] = when
        # A later deadline waits for the entry there is: `due` moves it then.
        if when < self._entry.get(key, when + 1):
            self._push(when, key)

    def _push(self, when: float, key: Hashable) -> None:
        self._order += 1
        self._entry[key] = when
        heapq.heappush(self._heap, (when, self._order, key))

    def next(self) -> float:
        """The first deadline, or a moment before it; 0 when there is none."""
        return self._heap[0][0] if self._heap else 0.0

    def due(self, now: float) -> list[Hashable]:
        """The keys whose deadline has come; they have none afterwards."""
        found: list[Hashable] = []
        while self._heap and self._heap[0][0] <= now:
            entry, _, key = heapq.heappop(self._heap)
            if self._entry.get(key) != entry:
                continue
            del self._entry[key]
            when = self._when.get(key)
            if when is not None and when <= now:
                del self._when[key]
                found.append(key)
            elif when is not None:
                self._push(when, key)
        return found

    def __len__(self) -> int:
        return len(self._when)
