"""What the compiler says when a source is outside of the dialect."""

from __future__ import annotations

from crumble_common.errors import InternalError, UsageError


class CompileError(UsageError):
    """The source is not in the dialect. The message starts with "file:line: "."""

    def __init__(self, file: str, line: int, message: str, hint: str = "") -> None:
        super().__init__(f"{file}:{line}: {message}", code="compile", hint=hint)
        self.file = file
        self.line = line


class IrError(InternalError):
    """The compiler made IR or machine code that breaks its own rules."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="compile.internal", hint="This is a bug in crumble_ir.")
