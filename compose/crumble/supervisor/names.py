"""Names of VMs: checked, or invented."""

from __future__ import annotations

import os
import re
from collections.abc import Container

from crumble_common.errors import UsageError

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,40}")
_COLOURS = "amber azure beige coral green ivory jade lilac lime ochre olive pearl plum ruby teal"
_BREADS = "bagel bannock brioche bun ciabatta cob crumpet farl focaccia lavash naan pitta roll rye"


def choose_name(wanted: str, taken: Container[str]) -> str:
    """The name asked for, or a new one; UsageError when it is taken or no name."""
    if not wanted:
        return invent(taken)
    if not _NAME.fullmatch(wanted):
        raise UsageError(
            f"{wanted!r} cannot be a VM's name.",
            code="vm.name",
            hint="Use letters, digits, dots, hyphens and underscores, at most 41.",
        )
    if wanted in taken:
        raise UsageError(
            f"There is a VM {wanted} already.",
            code="vm.name",
            hint=f"Choose another name, or `crumble stop {wanted}` first.",
        )
    return wanted


def invent(taken: Container[str] = ()) -> str:
    """A new name."""
    while True:
        dice = os.urandom(4)
        colours, breads = _COLOURS.split(), _BREADS.split()
        words = colours[dice[0] % len(colours)], breads[dice[1] % len(breads)]
        name = f"{'-'.join(words)}-{dice[2:].hex()}"
        if name not in taken:
            return name


def hostname_of(name: str) -> str:
    """The guest's host name where none is asked for. name: the VM's; "" where guests must not differ."""
    return name.replace("_", "-").strip("-.") if name else "crumble"
