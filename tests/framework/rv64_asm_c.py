"""The compressed instructions of rv64gc (unprivileged ISA, "C" extension), encoded.

Operands in assembly order: `c.lw` takes (rd', rs1', offset), `c.addi` (rd, imm), `c.lwsp` (rd,
offset). Registers are their full numbers (8 to 15 for the primed ones). ValueError when an operand
does not fit or is reserved.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple


class Field(NamedTuple):
    """Where bits of an immediate go: from bit `at` downwards, in the order the manual prints them."""

    at: int
    bits: tuple[int, ...]


def _field(text: str) -> Field:
    """'12=5:4,9:6,2,3': instruction bit 12 downwards holds immediate bits 5, 4, 9 to 6, 2, 3."""
    at, order = text.split("=")
    bits: list[int] = []
    for part in order.split(","):
        high, _, low = part.partition(":")
        bits += range(int(high), int(low or high) - 1, -1)
    return Field(int(at), tuple(bits))


class Form(NamedTuple):
    """One instruction: fixed bits, its register fields in operand order, its immediate."""

    match: int
    registers: tuple[str, ...]
    immediate: tuple[Field, ...]
    signed: bool
    nonzero: bool

    def immediate_bits(self) -> set[int]:
        """The immediate's bits that the instruction holds."""
        return {bit for field in self.immediate for bit in field.bits}


# name, match, registers (d: 11..7; D: 11..7, not x0; L: 11..7, not x2; s: 6..2; S: 6..2, not x0;
# p: 9..7 of x8..x15; q: 4..2 of x8..x15; -: none), immediate (u unsigned, i signed, + not zero)
_TABLE = """
c.addi4spn 0000 q u+ 12=5:4,9:6,2,3
c.fld 2000 qp u 12=5:3 6=7:6
c.lw 4000 qp u 12=5:3 6=2,6
c.ld 6000 qp u 12=5:3 6=7:6
c.fsd a000 qp u 12=5:3 6=7:6
c.sw c000 qp u 12=5:3 6=2,6
c.sd e000 qp u 12=5:3 6=7:6
c.addi 0001 d i 12=5 6=4:0
c.addiw 2001 D i 12=5 6=4:0
c.li 4001 d i 12=5 6=4:0
c.addi16sp 6101 - i+ 12=9 6=4,6,8:7,5
c.lui 6001 L i+ 12=17 6=16:12
c.srli 8001 p u 12=5 6=4:0
c.srai 8401 p u 12=5 6=4:0
c.andi 8801 p i 12=5 6=4:0
c.sub 8c01 pq
c.xor 8c21 pq
c.or 8c41 pq
c.and 8c61 pq
c.subw 9c01 pq
c.addw 9c21 pq
c.j a001 - i 12=11,4,9:8,10,6,7,3:1,5
c.beqz c001 p i 12=8,4:3 6=7:6,2:1,5
c.bnez e001 p i 12=8,4:3 6=7:6,2:1,5
c.slli 0002 d u 12=5 6=4:0
c.fldsp 2002 d u 12=5 6=4:3,8:6
c.lwsp 4002 D u 12=5 6=4:2,7:6
c.ldsp 6002 D u 12=5 6=4:3,8:6
c.jr 8002 D
c.mv 8002 dS
c.ebreak 9002 -
c.jalr 9002 D
c.add 9002 dS
c.fsdsp a002 s u 12=5:3,8:6
c.swsp c002 s u 12=5:2,7:6
c.sdsp e002 s u 12=5:3,8:6
"""


def _table() -> dict[str, Form]:
    table = {}
    for line in _TABLE.strip().splitlines():
        name, match, registers, *rest = line.split()
        kind = rest[0] if rest else "u"
        table[name] = Form(
            match=int(match, 16),
            registers=() if registers == "-" else tuple(registers),
            immediate=tuple(_field(text) for text in rest[1:]),
            signed=kind[0] == "i",
            nonzero=kind.endswith("+"),
        )
    return table


FORMS_C = _table()
_POSITION = {"d": 7, "D": 7, "L": 7, "s": 2, "S": 2, "p": 7, "q": 2}


def _register(kind: str, number: int) -> int:
    low, high = (8, 15) if kind in "pq" else (1 if kind in "DS" else 0, 31)
    if not low <= number <= high or (kind == "L" and number == 2):
        raise ValueError(f"register {number} can't be encoded here")
    return (number - 8 if kind in "pq" else number) << _POSITION[kind]


def _immediate(form: Form, value: int) -> int:
    bits = form.immediate_bits()
    top = max(bits)
    low, high = (-(1 << top), (1 << top) - 1) if form.signed else (0, (1 << (top + 1)) - 1)
    if not low <= value <= high or value % (1 << min(bits)) or (form.nonzero and value == 0):
        raise ValueError(f"immediate {value} can't be encoded here")
    word = 0
    for field in form.immediate:
        for place, bit in enumerate(field.bits):
            word |= (value >> bit & 1) << (field.at - place)
    return word


def encode_c(name: str, *operands: int) -> int:
    """The 16-bit instruction. ValueError when an operand does not fit, KeyError for the name."""
    form = FORMS_C[name]
    count = len(form.registers)
    if len(operands) != count + bool(form.immediate):
        raise ValueError(f"{name} takes {count + bool(form.immediate)} operands")
    word = form.match
    for kind, number in zip(form.registers, operands, strict=False):
        word |= _register(kind, number)
    return word | (_immediate(form, operands[count]) if form.immediate else 0)


def _choices(kind: str) -> range | list[int]:
    if kind in "pq":
        return range(8, 16)
    return [n for n in range(kind in "DS", 32) if not (kind == "L" and n == 2)]


def every_word() -> dict[int, tuple[str, tuple[int, ...]]]:
    """Each legal halfword, hints included, with its name and operands. The rest are illegal."""
    words: dict[int, tuple[str, tuple[int, ...]]] = {}
    for name, form in FORMS_C.items():
        bits = form.immediate_bits()
        low, high, step = 0, 1, 1
        if bits:
            top, step = max(bits), 1 << min(bits)
            low, high = (-(1 << top), 1 << top) if form.signed else (0, 2 << top)
        immediates = [n for n in range(low, high, step) if n or not form.nonzero]
        for registers in product(*[_choices(kind) for kind in form.registers]):
            for immediate in immediates:
                operands = (*registers, immediate) if bits else registers
                word = encode_c(name, *operands)
                assert word not in words
                words[word] = (name, operands)
    return words


def expand(name: str, operands: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """The 32-bit instruction that a compressed one stands for (manual, "C" extension's tables)."""
    kind = name[2:]
    if kind in ("fldsp", "lwsp", "ldsp", "fsdsp", "swsp", "sdsp"):
        return kind[:-2], (operands[0], 2, operands[1])
    if kind in ("fld", "lw", "ld", "fsd", "sw", "sd"):
        return kind, operands
    if kind in ("addi", "addiw", "slli", "srli", "srai", "andi"):
        return kind, (operands[0], *operands)
    if kind in ("sub", "xor", "or", "and", "subw", "addw", "add"):
        return kind, (operands[0], *operands)
    if kind == "lui":
        return kind, (operands[0], operands[1] >> 12 & 0xFFFFF)
    return {
        "addi4spn": lambda: ("addi", (operands[0], 2, operands[1])),
        "addi16sp": lambda: ("addi", (2, 2, operands[0])),
        "li": lambda: ("addi", (operands[0], 0, operands[1])),
        "mv": lambda: ("add", (operands[0], 0, operands[1])),
        "j": lambda: ("jal", (0, operands[0])),
        "jr": lambda: ("jalr", (0, operands[0], 0)),
        "jalr": lambda: ("jalr", (1, operands[0], 0)),
        "beqz": lambda: ("beq", (operands[0], 0, operands[1])),
        "bnez": lambda: ("bne", (operands[0], 0, operands[1])),
        "ebreak": lambda: ("ebreak", ()),
    }[kind]()
