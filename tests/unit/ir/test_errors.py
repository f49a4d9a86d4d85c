"""What is outside of the dialect is refused with file, line and a sentence."""

from __future__ import annotations

import pytest

from crumble_ir import CompileError, compile_text
from crumble_ir.compiler import BACKENDS, backend_for
from framework.compiled import HEAD

# What is wrong, and a piece of the message. The bad line is line 4 (inside main), or before it.
CASES = [
    ("x: u8 = 300", "300 does not fit u8"),
    ("x: u8 = -1", "-1 does not fit u8"),
    ("x: i64 = 1 << 63", "9223372036854775808 does not fit i64"),
    ("x = 1 << 64", "a shift by 64"),
    ("x = 1.5", "float constants"),
    ("x = 5 / 2", "Div is not in the dialect. Use //."),
    ("x = 5 // 0", "division by zero"),
    ("x = u32(5) // 0", "division by zero"),
    ("x = u32(5) + i32(5)", "u32 and i32 do not mix"),
    ("x = stack[0] + i64(1)", "u64 and i64 do not mix"),
    ("x: u8 = u32(stack[0])", "u32 cannot be used as u8 without a cast"),
    ("x: i32 = u32(stack[0])", "u32 cannot be used as i32 without a cast. Write i32(...)"),
    ("x = u8(stack[0]) == 256", "256 does not fit u8"),
    ("x = u16(stack[0]) << 16", "cannot be shifted by 16 bits"),
    ("x = True + u8(stack[0] > 1) * True + True * True", "bool has no arithmetic"),
    ("x = y", "y is not defined"),
    ("x = x + 1", "x is used before it is assigned"),
    ("if stack[0] > 1:\n        y = 1\n    x = y", "y may be used before it is assigned"),
    ("while stack[0] > 1:\n        y = 1\n    x = y", "y may be used before it is assigned"),
    ("x: u8 = 1\n    x: u16 = 2", "x is u8, not u16"),
    ("x: u8 = 1\n    x = stack", "ptr[u64] cannot be used as u8"),
    ("x = None", "the type of x is not known"),
    ("x: float = 1", "float is not a type"),
    ("x: nothing = 1", "nothing is not a type"),
    ("x: array[u8, 0]", "is not a type"),
    ("x: array[u8, 4] = 1", "has no initial value"),
    ("x: array[u8, 4]\n    x[4] = 1", "index 4 is out of range of array[u8, 4]"),
    ("x: array[u8, 4]\n    x[-1] = 1", "index -1 is out of range"),
    ("x: array[u8, 4]\n    x = x", "array[u8, 4] is storage"),
    ("x = stack[0:1]", "slices are not in the dialect"),
    ("x = stack[b'a']", "an index must be an integer"),
    ("x = stack.field", "u64 has no field field"),
    ("x = point.z", "Point has no field z. It has x, y."),
    ("x = stack[0].field", "has no parts"),
    ("5 = stack", "cannot assign to literal"),
    ("stack[0] + 1", "this expression does nothing"),
    ("a = b = 1", "one target at a time"),
    ("a, b = 1, 2", "Tuple expressions are not in the dialect"),
    ("x = [1, 2]", "List expressions"),
    ("x = lambda: 1", "Lambda expressions"),
    ("x = f'{stack[0]}'", "JoinedStr expressions"),
    ("x = (y := 1)", "NamedExpr expressions"),
    ("x = 1 if stack else b''", "1 cannot be used as ptr[u8]"),
    ("x = 2 ** stack[0]", "Pow is not in the dialect"),
    ("x = 1 in stack", "`in` needs a tuple of values"),
    ("x = b'a' + b'b'", "have no such operation"),
    ("x = -b'a'", "is not an integer"),
    ("x = stack == 1", "ptr[u64] and 1 cannot be compared"),
    ("x = ptr[u8](u32(stack[0]))", "cannot become ptr[u8]"),
    ("x = u32(stack)", "u32 is too small for a pointer"),
    ("x = ptr[u32](stack) - stack", "have no such operation"),
    ("x = u8(1, 2)", "takes one argument"),
    ("x = noresult()", "a function without a result has no value"),
    ("noresult(1)", "takes 0 arguments, not 1"),
    ("noresult(*stack)", "starred arguments"),
    ("keyword(a=1)", "keyword and starred"),
    ("open('x')", "open cannot be called"),
    ("stack()", "not a function known at compile time"),
    ("missing()", "not a function known at compile time"),
    ("linux.fork()", "not a function known at compile time"),
    ("linux.read(1, 2, 3, 4, 5, 6, 7)", "at most 6 arguments"),
    ("linux.read(noresult())", "a function without a result has no value"),
    ("addr(stack)", "parameter stack has no address"),
    ("addr(5)", "is not a variable, field or element"),
    ("len(stack)", "has no len()"),
    ("sizeof(1)", "is not a variable, field or element"),
    ("min(1, 2, stack[0])", "takes two arguments"),
    ("min(point, 1)", "1 cannot be used as ptr[Point]"),
    ("print(1)", "the text must be a string or an f-string"),
    ("print('a', 'b')", "print takes one text"),
    ("print('a', end='')", "print takes one text"),
    ("print(f'{stack}')", "cannot be written as"),
    ("print(f'{stack[0]:s}')", "cannot be written as"),
    ("print(f'{stack[0]:>5}')", "is not in the dialect"),
    ("print(f'{stack[0]!r}')", "!r, !s and !a"),
    ("format_into(stack, 'x')", "needs an array[u8, N]"),
    ("for i in stack:\n        pass", "only `for name in range(...)`"),
    ("for i in range(1, 2, stack[0]):\n        pass", "the step of range()"),
    ("for i in range(1, 2, 0):\n        pass", "the step of range()"),
    ("for i in range(stack[0], 10, 2):\n        pass", "over u64 steps by 1"),
    ("for i in range(u32(1), i32(2)):\n        pass", "do not mix"),
    ("for i in range(3):\n        pass\n    else:\n        pass", "only `for name in range(...)`"),
    ("while stack:\n        break\n    else:\n        pass", "while ... else"),
    ("try:\n        pass\n    finally:\n        pass", "Try statements"),
    ("with stack:\n        pass", "With statements"),
    ("def inner() -> None:\n        pass", "FunctionDef statements"),
    ("import os", "Import statements"),
    ("del stack", "Delete statements"),
    ("raise stack", "Raise statements"),
    ("assert stack, stack", "message must be a constant string"),
    ("return None", "cannot be used as i32"),
    ("return", "returns i32"),
    ("return stack[0]", "u64 cannot be used as i32"),
    ("if noresult():\n        pass", "neither true nor false"),
    ("if point.y + 'a' == 1:\n        pass", "cannot be compared"),
    ("x = PLATFORM", "this constant has no value for amd64"),
    ("x = 1 << stack[0] if arch == 'amd64' else undefined\n    y = 5 % 0", "division by zero"),
    ("x = 1 if MISSING else 2", "MISSING is not defined"),
    ("cyclic: Cyclic", "contains itself"),
    ("x = unparsed(1)", "parameter a has no type"),
    ("x = untyped()", "untyped has no result type"),
    ("defaults()", "parameters must be plain"),
    ("seven(1, 2, 3, 4, 5, 6, 7)", "at most 6 parameters"),
    ("aggregate(point)", "is passed as a pointer"),
    ("x = maybe(1)", "maybe may end without a result"),
]
BEFORE = """
@struct
class Point:
    x: u32
    y: u32

@struct
class Cyclic:
    inner: Cyclic

point = static(Point)
PLATFORM = by_arch(riscv64=1)

def noresult() -> None:
    pass

def keyword(a: u8) -> None:
    pass

def unparsed(a) -> u8:
    return 1

def untyped():
    pass

def defaults(a: u8 = 1) -> None:
    pass

def seven(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8) -> None:
    pass

def aggregate(p: Point) -> None:
    pass

def maybe(a: u8) -> u8:
    if a > 1:
        return 1
"""


@pytest.mark.parametrize(("line", "message"), CASES)
def test_refused(line: str, message: str) -> None:
    before = "from __future__ import annotations\n" + HEAD + BEFORE
    source = f"{before}\ndef main(stack: ptr[u64]) -> i32:\n    {line}\n    return 0\n"
    with pytest.raises(CompileError) as caught:
        compile_text(source, "amd64", file="bad.py")
    assert message in str(caught.value)
    assert str(caught.value).startswith("bad.py:")
    assert caught.value.fault == "caller"
    lines = source.splitlines()
    assert 0 < caught.value.line <= len(lines)


def test_the_line_is_the_bad_one() -> None:
    source = HEAD + "def main() -> i32:\n    x: u8 = 1\n    x = 256\n    return 0\n"
    with pytest.raises(CompileError, match=r"^bad\.py:5: 256 does not fit u8\.") as caught:
        compile_text(source, "riscv64", file="bad.py")
    assert (caught.value.file, caught.value.line) == ("bad.py", 5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def main( -> i32:\n", "bad.py:1: "),
        ("x = 1\n", "no function main"),
        ("main = 5\n", "no function main"),
        (
            "from crumble_ir.dialect import *\nraise ValueError(3)\n",
            "bad.py:2: importing it failed",
        ),
        ("import no_such_module\n", "bad.py:1: importing it failed"),
        (HEAD + "def main(a: u8) -> i32:\n    return 0\n", "main must be"),
        (HEAD + "def main() -> u8:\n    return 0\n", "main must be"),
        (HEAD + "if arch == 'amd64':\n    pass\n", "bad.py:3: importing it failed"),
        (HEAD + "x = static(u8, 300)\ndef main() -> i32:\n    return x\n", "300 does not fit u8"),
        (HEAD + "x = static(u8, b'a')\ndef main() -> i32:\n    return x\n", "bytes need an array"),
        (
            HEAD + "def on_failure() -> None:\n    pass\n"
            "def main(stack: ptr[u64]) -> i32:\n    assert stack[0]\n    return 0\n",
            "on_failure must be",
        ),
    ],
)
def test_whole_programs_refused(source: str, message: str) -> None:
    with pytest.raises(CompileError) as caught:
        compile_text(source, "amd64", file="bad.py")
    assert message in str(caught.value)


def test_unknown_architecture() -> None:
    with pytest.raises(CompileError, match="there is no back end for vax"):
        compile_text(HEAD + "def main() -> i32:\n    return 0\n", "vax")
    assert backend_for("amd64") is BACKENDS["amd64"]
