"""A compiler from a restricted, typed subset of Python to static ELF executables. See README.md."""

from crumble_ir.compiler import compile_module, compile_text
from crumble_ir.errors import CompileError

__all__ = ["CompileError", "compile_module", "compile_text"]
