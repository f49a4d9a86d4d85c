"""Platforms: "os/architecture[/variant]", and which of those an index offers runs on the one asked for.

OCI image-spec, image-index.md#platform-variants; aliases as Go's and the kernel's names differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from crumble_common.errors import UsageError

DEFAULT = "linux/riscv64"

_ALIASES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
}
_IMPLIED = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
_WORD = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VERSIONED = re.compile(r"v(\d)(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture and, for some, a variant of it ("" for the usual one)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    @property
    def level(self) -> tuple[int, str]:
        """The variant as a number that grows with what it needs, and the rest."""
        variant = self.variant or _IMPLIED.get(self.architecture, "")
        found = _VERSIONED.fullmatch(variant)
        return (int(found[1]), found[2] or "") if found else (0, variant)


def make_platform(os: str, architecture: str, variant: str = "") -> Platform:
    """A platform in its normal form: usual names, no variant where it is the usual one."""
    architecture = _ALIASES.get(architecture.lower(), architecture.lower())
    variant = "" if variant == _IMPLIED.get(architecture) else variant
    return Platform(os.lower(), architecture, variant)


def parse_platform(text: str) -> Platform:
    """ "linux/arm64", "linux/arm/v6"; "" is the guest's own. Raises UsageError."""
    words = (text or DEFAULT).split("/")
    if not 2 <= len(words) <= 3 or not all(_WORD.fullmatch(word) for word in words):
        raise UsageError(
            f"{text!r} is not a platform.",
            code="image.platform",
            hint="Write it as os/architecture, for example linux/riscv64.",
        )
    return make_platform(*words)


def choose(wanted: Platform, offered: Sequence[Platform]) -> int | None:
    """The place of the best offered platform that runs on `wanted`; None when there is none.

    A variant runs where the same or a higher one does (arm v6 on v7), the highest is best.
    """
    best: tuple[tuple[int, str], int] | None = None
    for place, platform in enumerate(offered):
        if (platform.os, platform.architecture) != (wanted.os, wanted.architecture):
            continue
        level = platform.level
        runs = level == wanted.level or (level[0] and level[0] < wanted.level[0])
        if runs and (best is None or level > best[0]):
            best = (level, place)
    return best[1] if best else None
