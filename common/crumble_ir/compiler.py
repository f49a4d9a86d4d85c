"""The whole way: source → IR → machine code → ELF."""

from __future__ import annotations

import gc
from collections.abc import Iterable

from crumble_ir import elf, ir
from crumble_ir.amd64 import Amd64
from crumble_ir.arm64 import Arm64
from crumble_ir.backend import Backend, Code
from crumble_ir.errors import CompileError
from crumble_ir.frontend.program import Program
from crumble_ir.frontend.units import Unit, Units
from crumble_ir.riscv64 import Riscv64
from crumble_ir.simplify import simplify
from crumble_ir.verify import verify

BACKENDS: dict[str, type[Backend]] = {backend.name: backend for backend in (Amd64, Arm64, Riscv64)}


def backend_for(arch: str) -> type[Backend]:
    """The back end of an architecture; raises CompileError for one there is none for."""
    if arch not in BACKENDS:
        raise CompileError(
            "crumble_ir", 0, f"there is no back end for {arch}.", f"Use {', '.join(BACKENDS)}."
        )
    return BACKENDS[arch]


def to_ir(units: Units, root: Unit, arch: str, features: Iterable[str] = ()) -> ir.Module:
    """The checked IR of the program whose main is in `root`."""
    backend_for(arch)
    module = Program(units, arch, frozenset(features)).translate(root)
    for function in module.functions.values():
        simplify(function)
    verify(module)
    return module


def to_elf(module: ir.Module, arch: str) -> bytes:
    """The static executable of a module."""
    backend = backend_for(arch)
    codes = [backend.start(module.entry)]
    codes.extend(
        backend(function, Code(function.name)).translate() for function in module.functions.values()
    )
    return elf.link(codes, module.data.values(), backend)


def compile_module(name: str, arch: str, features: Iterable[str] = ()) -> bytes:
    """Compiles the importable module `name` into an ELF executable. Raises CompileError."""
    # A few hundred thousand small objects live until the end: collecting in between only costs.
    collecting = gc.isenabled()
    gc.disable()
    try:
        units = Units()
        return to_elf(to_ir(units, units.imported(name), arch, features), arch)
    finally:
        if collecting:
            gc.enable()


def compile_text(
    source: str, arch: str, features: Iterable[str] = (), file: str = "source.py"
) -> bytes:
    """Compiles source text; `file` names it in errors. Raises CompileError."""
    units = Units()
    return to_elf(to_ir(units, units.text(source, file), arch, features), arch)
