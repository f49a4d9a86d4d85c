"""argparse, with Crumble's exit status and one-sentence errors."""

from __future__ import annotations

import argparse
from typing import NoReturn

from crumble_common.errors import UsageError


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28)


class Parser(argparse.ArgumentParser):
    """A parser of one verb's arguments; `error` raises UsageError."""

    def __init__(self, verb: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"crumble {verb}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_formatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(
            f"{message[:1].upper()}{message[1:]}.",
            code="usage.arguments",
            hint=f"`{self.prog} --help` shows what can be given.",
        )

    def json(self) -> None:
        """Adds --json."""
        self.add_argument("--json", action="store_true", help="print JSON, for programs")
