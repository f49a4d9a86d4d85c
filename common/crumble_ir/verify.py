"""Checks that IR keeps its own rules, so that a back end can rely on them."""

from __future__ import annotations

from crumble_ir import ir
from crumble_ir.errors import IrError
from crumble_ir.liveness import successors

_NEEDS_DST = ir.BINARY | {"const", "symbol", "slot", "copy", "ext", "load", "syscall"}
_KNOWN = _NEEDS_DST | ir.TERMINATORS | {"store", "call"}
_TARGETS = {"jump": 1, "branch": 2}


def verify(module: ir.Module) -> None:
    """Raises IrError when `module` is malformed."""
    if module.entry not in module.functions:
        raise IrError(f"entry function {module.entry} is missing")
    for function in module.functions.values():
        for index, block in enumerate(function.blocks):
            _check_block(module, function, index, block)
        _check_defined(function)


def _fail(function: ir.Function, block: int, ins: object, what: str) -> IrError:
    return IrError(f"{function.name} b{block}: {ins}: {what}")


def _check_block(module: ir.Module, function: ir.Function, index: int, block: list[ir.Ins]) -> None:
    if not block or block[-1].op not in ir.TERMINATORS:
        raise _fail(function, index, "end of block", "no terminator")
    for position, ins in enumerate(block):
        if ins.op not in _KNOWN:
            raise _fail(function, index, ins, "unknown operation")
        if ins.op in ir.TERMINATORS and position != len(block) - 1:
            raise _fail(function, index, ins, "terminator inside a block")
        if ins.op in _NEEDS_DST and ins.dst is None:
            raise _fail(function, index, ins, "no destination")
        count = len(function.kinds)
        if any(not 0 <= reg < count for reg in [*ins.uses(), ins.dst or 0]):
            raise _fail(function, index, ins, "unknown register")
        if len(ins.targets) != _TARGETS.get(ins.op, 0):
            raise _fail(function, index, ins, "wrong number of targets")
        if any(not 0 <= target < len(function.blocks) for target in ins.targets):
            raise _fail(function, index, ins, "unknown block")
        _check_fields(module, function, index, ins)


def _check_fields(module: ir.Module, function: ir.Function, index: int, ins: ir.Ins) -> None:
    if ins.op in ("load", "store", "ext") and ins.kind not in ir.KINDS:
        raise _fail(function, index, ins, "unknown kind")
    if ins.op == "branch" and ins.kind not in ir.COMPARISONS:
        raise _fail(function, index, ins, "unknown comparison")
    if ins.op == "slot" and not 0 <= ins.offset < len(function.slots):
        raise _fail(function, index, ins, "unknown slot")
    if ins.op == "symbol" and ins.symbol not in module.data:
        raise _fail(function, index, ins, "unknown symbol")
    if ins.op in ("load", "store", "branch", *ir.BINARY) and isinstance(ins.a, ir.Imm):
        raise _fail(function, index, ins, "constant where a register is needed")
    if ins.op == "ret" and (ins.a is not None) != function.returns:
        raise _fail(function, index, ins, "result does not match the function")
    if ins.op == "syscall" and not 1 <= len(ins.args) <= ir.MAX_ARGS + 1:
        raise _fail(function, index, ins, "wrong number of arguments")
    if ins.op == "call":
        callee = module.functions.get(ins.symbol)
        if callee is None:
            raise _fail(function, index, ins, "unknown function")
        if len(callee.params) != len(ins.args) or len(ins.args) > ir.MAX_ARGS:
            raise _fail(function, index, ins, "wrong number of arguments")
        if ins.dst is not None and not callee.returns:
            raise _fail(function, index, ins, "result of a function without one")


def _check_defined(function: ir.Function) -> None:
    """Every read follows an assignment on every path to it (forward data flow, sets as bits)."""
    everything = (1 << len(function.kinds)) - 1
    entry = sum(1 << reg for reg in function.params)
    defined = [everything] * len(function.blocks)
    defined[0] = entry
    work = [0]
    seen = {0}
    while work:
        index = work.pop()
        out = defined[index]
        for ins in function.blocks[index]:
            if ins.dst is not None:
                out |= 1 << ins.dst
        for target in successors(function.blocks[index]):
            merged = defined[target] & out
            if merged != defined[target] or target not in seen:
                seen.add(target)
                defined[target] = merged
                work.append(target)
    for index in seen:
        known = defined[index]
        for ins in function.blocks[index]:
            for reg in ins.uses():
                if not known >> reg & 1:
                    raise _fail(function, index, ins, f"v{reg} is read before it is assigned")
            if ins.dst is not None:
                known |= 1 << ins.dst
