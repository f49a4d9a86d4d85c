"""No two live values share a register, and values that span calls survive them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_ir import ir
from crumble_ir.compiler import BACKENDS, to_ir
from crumble_ir.errors import IrError
from crumble_ir.frontend.units import Units
from crumble_ir.ir import Imm, Ins
from crumble_ir.regalloc import allocate, intervals
from crumble_ir.simplify import simplify
from crumble_ir.verify import verify
from framework.compiled import HEAD
from framework.dialect_programs import Generator, source


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_places_never_collide(seed: int) -> None:
    units = Units()
    program = HEAD + source([Generator(Random(seed)).function(8)])
    module = to_ir(units, units.text(program, "x.py"), "riscv64")
    for function in module.functions.values():
        for backend in BACKENDS.values():
            places = allocate(function, backend.registers)
            spans, calls = intervals(function)
            assert len(set(places.spills.values())) == len(places.spills)
            for number, one in enumerate(spans):
                assert (one.register in places.registers) != (one.register in places.spills)
                mine = places.registers.get(one.register)
                if mine in backend.registers.caller_saved:
                    assert not any(one.start <= call < one.end for call in calls)
                for other in spans[number + 1 :]:
                    if mine is not None and other.start <= one.end:
                        assert places.registers.get(other.register) != mine


def function_of(*blocks: list[Ins], kinds: int = 4, returns: bool = False) -> ir.Module:
    function = ir.Function("main", [0], returns, list(blocks), kinds=["u64"] * kinds)
    return ir.Module("main", {"main": function})


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([[Ins("const", 1, Imm(1))]], "no terminator"),
        ([[]], "no terminator"),
        ([[Ins("ret"), Ins("ret")]], "terminator inside"),
        ([[Ins("wave"), Ins("ret")]], "unknown operation"),
        ([[Ins("add", 1, 2, Imm(1)), Ins("ret")]], "read before it is assigned"),
        ([[Ins("copy", 9, 0), Ins("ret")]], "unknown register"),
        ([[Ins("jump", targets=(3,))]], "unknown block"),
        ([[Ins("jump")]], "number of targets"),
        ([[Ins("add", None, 0, Imm(1)), Ins("ret")]], "no destination"),
        ([[Ins("load", 1, 0, kind="f32"), Ins("ret")]], "unknown kind"),
        ([[Ins("load", 1, Imm(0), kind="u8"), Ins("ret")]], "constant where"),
        ([[Ins("slot", 1, offset=0), Ins("ret")]], "unknown slot"),
        ([[Ins("symbol", 1, symbol="x"), Ins("ret")]], "unknown symbol"),
        ([[Ins("call", symbol="f"), Ins("ret")]], "unknown function"),
        ([[Ins("call", symbol="main"), Ins("ret")]], "number of arguments"),
        ([[Ins("call", 1, symbol="main", args=(0,)), Ins("ret")]], "function without one"),
        ([[Ins("syscall", 1), Ins("ret")]], "number of arguments"),
        ([[Ins("ret", None, 0)]], "does not match"),
        (
            [
                [Ins("branch", None, 0, Imm(0), kind="eq", targets=(1, 2))],
                [Ins("const", 1, Imm(1)), Ins("jump", targets=(2,))],
                [Ins("copy", 2, 1), Ins("ret")],
            ],
            "v1 is read before",
        ),
        ([[Ins("branch", None, 0, Imm(0), kind="up", targets=(0, 0))]], "unknown comparison"),
    ],
)
def test_malformed_ir_is_refused(blocks: list[list[Ins]], message: str) -> None:
    with pytest.raises(IrError, match=message):
        verify(function_of(*blocks))


def test_entry_must_exist() -> None:
    with pytest.raises(IrError, match="missing"):
        verify(ir.Module("main"))


def test_simplify_drops_what_does_nothing() -> None:
    module = function_of(
        [Ins("const", 1, Imm(1)), Ins("branch", None, 0, Imm(0), kind="eq", targets=(1, 2))],
        [Ins("jump", targets=(3,))],
        [Ins("jump", targets=(3,))],
        [Ins("add", 2, 0, Imm(1)), Ins("load", 3, 0, kind="u8"), Ins("ret")],
        [Ins("trap")],
    )
    function = module.functions["main"]
    simplify(function)
    verify(module)
    assert [[ins.op for ins in block] for block in function.blocks] == [
        ["jump"],
        ["load", "ret"],
    ]
    assert "jump b1" in str(function)
