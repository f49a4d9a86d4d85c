"""A hart's registers as gdb numbers them: the target description, and values in and out.

The features and names are GDB's (manual, appendix G.5.13 "RISC-V Features"); values come from a
`rv64.HartState` as a dictionary.
"""

from __future__ import annotations

from typing import Any

_X = ("zero ra sp gp tp t0 t1 t2 fp s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6").split()  # fmt: skip
_F = ("ft0 ft1 ft2 ft3 ft4 ft5 ft6 ft7 fs0 fs1 fa0 fa1 fa2 fa3 fa4 fa5 fa6 fa7 fs2 fs3 fs4 fs5 fs6 fs7 fs8 fs9 fs10 fs11 ft8 ft9 ft10 ft11").split()  # fmt: skip
_FLAGS = ("fflags", "frm", "fcsr")
_CSRS = ("sstatus", "sie", "stvec", "scounteren", "senvcfg", "sscratch", "sepc", "scause", "stval", "sip",
         "stimecmp", "satp", "instret", "vstart", "vcsr", "vl", "vtype", "vlenb")  # fmt: skip
PC = 32
_FIRST_F, _FIRST_FLAG = 33, 65
_FIRST_CSR = _FIRST_FLAG + len(_FLAGS)
_PRIV = _FIRST_CSR + len(_CSRS)
_FIRST_V = _PRIV + 1
COUNT = _FIRST_V + 32
VLENB = 16  # of the machines that we make
_READ_ONLY = ("instret", "vlenb")


def size(number: int) -> int:
    """Of a register, in bytes."""
    if number >= _FIRST_V:
        return VLENB
    return 4 if _FIRST_FLAG <= number < _FIRST_CSR else 8


def read(state: dict[str, Any], number: int) -> bytes:
    """A register's value, little endian."""
    if number >= _FIRST_V:
        at = (number - _FIRST_V) * VLENB
        return bytes(state["v"][at : at + VLENB])
    return _value(state, number).to_bytes(size(number), "little")


def _value(state: dict[str, Any], number: int) -> int:
    value: int
    if number < PC:
        value = state["x"][number]
    elif number == PC:
        value = state["pc"]
    elif number < _FIRST_FLAG:
        value = state["f"][number - _FIRST_F]
    elif number < _FIRST_CSR:
        value = (state["fcsr"] & 31, state["fcsr"] >> 5, state["fcsr"])[number - _FIRST_FLAG]
    elif number < _PRIV:
        value = state[_CSRS[number - _FIRST_CSR]]
    else:
        value = state["privilege"]
    return value


def write(state: dict[str, Any], number: int, data: bytes) -> None:
    """Changes a register in `state`. ValueError for a number or size that is none."""
    if not 0 <= number < COUNT or len(data) != size(number):
        raise ValueError("no such register")
    value = int.from_bytes(data, "little")
    if number == 0:
        return
    if number < PC:
        state["x"][number] = value
    elif number == PC:
        state["pc"] = value
    elif number < _FIRST_FLAG:
        state["f"][number - _FIRST_F] = value
    elif number < _FIRST_CSR:
        kept, shift, mask = ((0xE0, 0, 31), (0x1F, 5, 7), (0, 0, 0xFF))[number - _FIRST_FLAG]
        state["fcsr"] = state["fcsr"] & kept | (value & mask) << shift
    elif number >= _FIRST_V:
        at = (number - _FIRST_V) * VLENB
        state["v"] = state["v"][:at] + data + state["v"][at + VLENB :]
    elif number == _PRIV:
        state["privilege"] = value & 1
    elif _CSRS[number - _FIRST_CSR] not in _READ_ONLY:
        state[_CSRS[number - _FIRST_CSR]] = value


def _row(name: str, number: int, kind: str, group: str) -> str:
    bits = 8 * size(number)
    return f'<reg name="{name}" bitsize="{bits}" type="{kind}" regnum="{number}" group="{group}"/>'


def _feature(name: str, rows: list[str]) -> str:
    return f'<feature name="org.gnu.gdb.riscv.{name}">{"".join(rows)}</feature>'


def description() -> bytes:
    """target.xml."""
    cpu = [_row(name, at, _cpu_type(name), "general") for at, name in enumerate(_X)]
    cpu.append(_row("pc", PC, "code_ptr", "general"))
    fpu = [_row(name, _FIRST_F + at, "ieee_double", "float") for at, name in enumerate(_F)]
    fpu += [_row(name, _FIRST_FLAG + at, "int", "float") for at, name in enumerate(_FLAGS)]
    csr = [_row(name, _FIRST_CSR + at, "uint64", "csr") for at, name in enumerate(_CSRS)]
    features = [
        _feature("cpu", cpu), _feature("fpu", fpu), _feature("csr", csr),
        _feature("virtual", [_row("priv", _PRIV, "int", "general")]), _vectors(),
    ]  # fmt: skip
    head = '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">'
    body = "<architecture>riscv:rv64</architecture>" + "".join(features)
    return f'{head}<target version="1.0">{body}</target>'.encode()


def _vectors() -> str:
    kinds = (("b", "uint8", 1), ("s", "uint16", 2), ("w", "uint32", 4), ("l", "uint64", 8))
    lanes = [
        f'<vector id="{name}" type="{kind}" count="{VLENB // width}"/>'
        for name, kind, width in kinds
    ]
    views = "".join(f'<field name="{name}" type="{name}"/>' for name, _, _ in kinds)
    union = f'<union id="riscv_vector">{views}</union>'
    rows = [_row(f"v{at}", _FIRST_V + at, "riscv_vector", "vector") for at in range(32)]
    return _feature("vector", [*lanes, union, *rows])


def _cpu_type(name: str) -> str:
    return {"ra": "code_ptr", "sp": "data_ptr", "gp": "data_ptr", "tp": "data_ptr"}.get(name, "int")
