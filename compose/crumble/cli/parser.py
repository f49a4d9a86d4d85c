"""argparse, with Crumble's exit status and one-sentence errors."""

from __future__ import annotations

import argparse
from typing import NoReturn

from crumble_common.errors import UsageError


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """A line an option: its value is named once, behind its names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """A parser of one verb's arguments; `error` raises UsageError."""

    def __init__(self, verb: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"crumble {verb}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_Formatter,
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
