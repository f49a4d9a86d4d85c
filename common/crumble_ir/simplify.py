"""Cheap clean-up of lowered code: jumps to jumps, unreachable blocks, results nobody reads."""

from __future__ import annotations

from crumble_ir import ir
from crumble_ir.liveness import live_sets

_PURE = ir.BINARY | {"const", "symbol", "slot", "copy", "ext"}


def simplify(function: ir.Function) -> None:
    """Rewrites `function` in place; what it computes stays the same."""
    _thread_jumps(function)
    _drop_unreachable(function)
    _drop_dead(function)


def _thread_jumps(function: ir.Function) -> None:
    blocks = function.blocks

    def final(index: int) -> int:
        seen = set()
        while len(blocks[index]) == 1 and blocks[index][0].op == "jump" and index not in seen:
            seen.add(index)
            index = blocks[index][0].targets[0]
        return index

    for block in blocks:
        last = block[-1]
        last.targets = tuple(final(target) for target in last.targets)
        if last.op == "branch" and last.targets[0] == last.targets[1]:
            block[-1] = ir.Ins("jump", targets=last.targets[:1])


def _drop_unreachable(function: ir.Function) -> None:
    blocks = function.blocks
    order: list[int] = []
    place: dict[int, int] = {}
    work = [0]
    reached = {0}
    while work:
        for target in blocks[work.pop()][-1].targets:
            if target not in reached:
                reached.add(target)
                work.append(target)
    for index in range(len(blocks)):
        if index in reached:
            place[index] = len(order)
            order.append(index)
    function.blocks = [blocks[index] for index in order]
    for block in function.blocks:
        block[-1].targets = tuple(place[target] for target in block[-1].targets)


def _drop_dead(function: ir.Function) -> None:
    _, live_out = live_sets(function)
    for index, block in enumerate(function.blocks):
        live = live_out[index]
        kept = []
        for ins in reversed(block):
            if ins.dst is not None:
                if not live >> ins.dst & 1:
                    if ins.op in _PURE:
                        continue
                    if ins.op == "call":
                        ins.dst = None
                else:
                    live &= ~(1 << ins.dst)
            for reg in ins.uses():
                live |= 1 << reg
            kept.append(ins)
        kept.reverse()
        function.blocks[index] = kept
