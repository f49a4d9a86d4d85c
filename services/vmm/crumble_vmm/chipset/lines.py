"""Interrupt lines: inputs of the interrupt controller, each claimed by one device (D2)."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from crumble_common.errors import InternalError


class Trigger(enum.Enum):
    """How the controller samples the line."""

    LEVEL = "level"
    EDGE = "edge"


@dataclass(frozen=True, slots=True)
class Line:
    """One wire. `set` may be called from any thread."""

    owner: str
    number: int
    trigger: Trigger
    deliver: Callable[[int, bool], None]

    def set(self, level: bool) -> None:
        """Drives the wire."""
        self.deliver(self.number, level)

    def pulse(self) -> None:
        """One edge: up, then down."""
        self.deliver(self.number, True)
        self.deliver(self.number, False)


class LineSet:
    """The controller's inputs 1 … `count`; `deliver(number, level)` drives one."""

    def __init__(self, count: int, deliver: Callable[[int, bool], None]) -> None:
        self._count = count
        self._deliver = deliver
        self._claimed: dict[int, Line] = {}

    def claim(self, owner: str, number: int, trigger: Trigger = Trigger.LEVEL) -> Line:
        """The line `number` for `owner` alone; raises InternalError when it is not to be had."""
        if not 1 <= number <= self._count:
            raise InternalError(
                f"{owner} asks for interrupt {number}, of 1 to {self._count}.", code="vmm.line"
            )
        if number in self._claimed:
            raise InternalError(
                f"{owner} asks for interrupt {number}, which {self._claimed[number].owner} has.",
                code="vmm.line",
            )
        line = Line(owner, number, trigger, self._deliver)
        self._claimed[number] = line
        return line

    def allocate(self, owner: str, trigger: Trigger = Trigger.LEVEL) -> Line:
        """The lowest line nobody has."""
        for number in range(1, self._count + 1):
            if number not in self._claimed:
                return self.claim(owner, number, trigger)
        raise InternalError(f"No interrupt line is left for {owner}.", code="vmm.line")

    @property
    def claimed(self) -> tuple[Line, ...]:
        """Every line that has an owner, by number."""
        return tuple(self._claimed[number] for number in sorted(self._claimed))
