"""Which virtual registers are live where (backward data flow; sets are bits of a Python int)."""

from __future__ import annotations

from crumble_ir import ir


def successors(block: list[ir.Ins]) -> tuple[int, ...]:
    """The blocks that can follow."""
    return block[-1].targets


def block_sets(block: list[ir.Ins]) -> tuple[int, int]:
    """(read before assigned, assigned) in one block."""
    used = assigned = 0
    for ins in block:
        for reg in ins.uses():
            if not assigned >> reg & 1:
                used |= 1 << reg
        if ins.dst is not None:
            assigned |= 1 << ins.dst
    return used, assigned


def live_sets(function: ir.Function) -> tuple[list[int], list[int]]:
    """(live at the start, live at the end) of each block."""
    blocks = function.blocks
    sets = [block_sets(block) for block in blocks]
    live_in = [used for used, _ in sets]
    live_out = [0] * len(blocks)
    changed = True
    while changed:
        changed = False
        for index in range(len(blocks) - 1, -1, -1):
            out = 0
            for target in successors(blocks[index]):
                out |= live_in[target]
            if out != live_out[index]:
                live_out[index] = out
                used, assigned = sets[index]
                live_in[index] = used | (out & ~assigned)
                changed = True
    return live_in, live_out


def bits(value: int) -> list[int]:
    """The members of a set."""
    members = []
    while value:
        low = value & -value
        members.append(low.bit_length() - 1)
        value ^= low
    return members
