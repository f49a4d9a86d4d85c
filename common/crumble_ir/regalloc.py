"""Linear-scan register allocation (Poletto and Sarkar, 1999) over whole live intervals.

Positions count instructions in block order; an instruction at n reads at 2n and writes at 2n + 1. A
register has one interval, from its first to its last position, holes included. An interval that
spans a call gets a register the callee saves, or a stack slot.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from crumble_ir import ir
from crumble_ir.liveness import bits, live_sets


@dataclass(frozen=True)
class Registers:
    """What a back end lets the allocator use, by machine number."""

    caller_saved: tuple[int, ...]
    callee_saved: tuple[int, ...]
    arguments: tuple[int, ...]


@dataclass(slots=True)
class Interval:
    """Where one virtual register is live, and how often it is touched."""

    register: int
    start: int
    end: int
    weight: int = 0


@dataclass
class Allocation:
    """Where each virtual register lives: machine registers, or numbered 8-byte spill slots."""

    registers: dict[int, int] = field(default_factory=dict)
    spills: dict[int, int] = field(default_factory=dict)
    used_callee_saved: list[int] = field(default_factory=list)
    calls: bool = False


def intervals(function: ir.Function) -> tuple[list[Interval], list[int]]:
    """Live intervals by start, and the positions of calls."""
    found: dict[int, Interval] = {}
    calls: list[int] = []

    def touch(register: int, position: int, weight: int = 1) -> None:
        item = found.get(register)
        if item is None:
            item = found[register] = Interval(register, position, position)
        item.start = min(item.start, position)
        item.end = max(item.end, position)
        item.weight += weight

    for register in function.params:
        touch(register, 0)
    live_in, live_out = live_sets(function)
    position = 2
    for index, block in enumerate(function.blocks):
        for register in bits(live_in[index]):
            touch(register, position, 0)
        for ins in block:
            for register in ins.uses():
                touch(register, position)
            if ins.dst is not None:
                touch(ins.dst, position + 1)
            if ins.clobbers:
                calls.append(position)
            position += 2
        for register in bits(live_out[index]):
            touch(register, position - 1, 0)
    return sorted(found.values(), key=lambda item: (item.start, item.register)), calls


def allocate(function: ir.Function, registers: Registers) -> Allocation:
    """Gives each virtual register of `function` a place."""
    result = Allocation()
    ordered, calls = intervals(function)
    result.calls = bool(calls)
    active: list[Interval] = []
    free = [*reversed(registers.callee_saved), *reversed(registers.caller_saved)]
    saved = frozenset(registers.callee_saved)

    def crosses(item: Interval) -> bool:
        """Whether a call happens strictly inside: values are read at a call's position."""
        index = bisect_right(calls, item.start - 1)
        return index < len(calls) and calls[index] < item.end

    for item in ordered:
        for old in [other for other in active if other.end < item.start]:
            active.remove(old)
            free.append(result.registers[old.register])
        must_survive = crosses(item)
        choices = [reg for reg in free if reg in saved or not must_survive]
        if choices:
            # Callee-saved registers cost a save: use them only where they are needed.
            chosen = min(
                choices, key=lambda reg: ((reg in saved) != must_survive, -free.index(reg))
            )
            free.remove(chosen)
            result.registers[item.register] = chosen
            active.append(item)
        else:
            _spill(item, active, result, saved if must_survive else None)
    used = set(result.registers.values())
    result.used_callee_saved = [reg for reg in registers.callee_saved if reg in used]
    return result


def _spill(
    item: Interval, active: list[Interval], result: Allocation, only: frozenset[int] | None
) -> None:
    """Puts the least used of `item` and the active intervals on the stack."""
    rivals = [other for other in active if only is None or result.registers[other.register] in only]
    victim = min([*rivals, item], key=lambda other: other.weight / (other.end - other.start + 1))
    if victim is not item:
        result.registers[item.register] = result.registers.pop(victim.register)
        active.remove(victim)
        active.append(item)
    result.spills[victim.register] = len(result.spills)
