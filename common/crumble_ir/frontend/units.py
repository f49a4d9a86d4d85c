"""Source modules: loading them as Python, and finding the syntax of their functions."""

from __future__ import annotations

import ast
import importlib
import sys
import types as python_types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crumble_ir.errors import CompileError


@dataclass
class Unit:
    """One source module: its namespace after import, and its functions' syntax."""

    file: str
    namespace: dict[str, Any]
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The module's name."""
        return str(self.namespace.get("__name__", "?"))

    def error(self, node: ast.AST, message: str, hint: str = "") -> CompileError:
        """An error at `node`."""
        return CompileError(self.file, getattr(node, "lineno", 1), message, hint)


class Units:
    """All source modules of a program, by the identity of their namespaces."""

    def __init__(self) -> None:
        self._units: dict[int, Unit] = {}

    def add(self, source: str, file: str, namespace: dict[str, Any]) -> Unit:
        """Parses `source`, whose import gave `namespace`."""
        try:
            tree = ast.parse(source, file)
        except SyntaxError as problem:
            raise CompileError(file, problem.lineno or 1, f"{problem.msg}.") from None
        unit = Unit(file, namespace)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                unit.functions[node.name] = node
        self._units[id(namespace)] = unit
        return unit

    def of(self, function: python_types.FunctionType) -> Unit:
        """The module `function` was written in."""
        namespace = function.__globals__
        unit = self._units.get(id(namespace))
        if unit is None:
            file = Path(str(namespace.get("__file__", "")))
            unit = self.add(file.read_text(encoding="utf-8"), _short(file), namespace)
        return unit

    def imported(self, name: str) -> Unit:
        """Imports a module by its dotted name and parses it."""
        namespace = importlib.import_module(name).__dict__
        file = Path(str(namespace["__file__"]))
        return self.add(file.read_text(encoding="utf-8"), _short(file), namespace)

    def text(self, source: str, file: str) -> Unit:
        """Runs and parses source text that is no importable module."""
        module = python_types.ModuleType(f"crumble_source_{len(self._units)}")
        module.__file__ = file
        try:
            code = compile(source, file, "exec")
        except SyntaxError as problem:
            raise CompileError(file, problem.lineno or 1, f"{problem.msg}.") from None
        try:
            exec(code, module.__dict__)  # noqa: S102  the caller's own source
        except Exception as problem:  # noqa: BLE001  whatever the source raises is its fault
            raise CompileError(file, _line(file), f"importing it failed: {problem!r}.") from None
        return self.add(source, file, module.__dict__)


def _short(file: Path) -> str:
    """The last two parts of a path: enough for a person, the same on every machine."""
    return "/".join(file.parts[-2:])


def _line(file: str) -> int:
    """The line of `file` that raised the exception being handled."""
    line, trace = 1, sys.exc_info()[2]
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
