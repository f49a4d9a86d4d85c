"""Which names a file system snapshot leaves out: patterns as a .gitignore has them, without "!".

    *.pyc        that name in any directory
    /tmp         only at the top; so is every pattern with a "/" in it: var/cache
    cache/       only a directory
    a/**/b       any directories between; "**/" any before; "/**" everything below
    * ? [a-z]    anything but "/"; one of it; one of these ([!a-z]: none of these)

A directory that is left out takes what is below with it. What is left out is as the image has it, not removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from crumble_common.errors import UsageError

_MAX_PATTERNS = 1000
_MAX_LENGTH = 1000
_MAX_STARS = 8  # each may double what a long name costs to compare


class Excludes:
    """A set of patterns. Raises UsageError "fs.excludes" for one that is none."""

    def __init__(self, patterns: Sequence[str]) -> None:
        if len(patterns) > _MAX_PATTERNS:
            raise _bad(f"There are more than {_MAX_PATTERNS} patterns of names to leave out.")
        self._any: list[re.Pattern[bytes]] = []
        self._directories: list[re.Pattern[bytes]] = []
        for pattern in patterns:
            kinds = self._directories if pattern.endswith("/") else self._any
            kinds.append(_compile(pattern))

    def match(self, path: bytes, *, is_directory: bool) -> bool:
        """True for a path (from the root, without a leading "/") to leave out."""
        if any(pattern.fullmatch(path) for pattern in self._any):
            return True
        return is_directory and any(pattern.fullmatch(path) for pattern in self._directories)


def _compile(pattern: str) -> re.Pattern[bytes]:
    body = pattern.rstrip("/")
    if not body or pattern.startswith("!") or "\0" in pattern or len(pattern) > _MAX_LENGTH:
        raise _bad(f"{pattern!r:.80} is no pattern of names to leave out.")
    if pattern.count("*") > _MAX_STARS:
        raise _bad(f"The pattern {pattern!r:.80} has more than {_MAX_STARS} stars.")
    anchored = "/" in body
    raw = os.fsencode(body.lstrip("/"))
    parts = raw.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        raise _bad(f"{pattern!r:.80} is no pattern of names to leave out.")
    try:
        return re.compile((b"" if anchored else b"(?:.*/)?") + _path(parts), re.DOTALL)
    except re.error:
        raise _bad(f"{pattern!r:.80} is no pattern of names to leave out.") from None


def _path(parts: list[bytes]) -> bytes:
    """The expression for a pattern's components."""
    found = b""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == b"**":
            found += b".+" if last else b"(?:.*/)?"
        else:
            found += _name(part) + (b"" if last else b"/")
    return found


def _name(part: bytes) -> bytes:
    found, at = b"", 0
    while at < len(part):
        one = part[at : at + 1]
        at += 1
        if one == b"*":
            found += b"[^/]*"
        elif one == b"?":
            found += b"[^/]"
        elif one == b"[":
            end = part.find(b"]", at + 1 + part.startswith(b"!", at))
            if end < 0:
                found += re.escape(one)
                continue
            inside = part[at:end].replace(b"\\", b"\\\\").replace(b"[", b"\\[")
            inside = b"^" + inside[1:] if inside.startswith(b"!") else inside.replace(b"^", b"\\^")
            found += b"(?!/)[" + inside + b"]"
            at = end + 1
        else:
            found += re.escape(one)
    return found


def _bad(why: str) -> UsageError:
    return UsageError(
        why,
        code="fs.excludes",
        hint="Patterns are as in a .gitignore: '*.log', '/var/cache', 'build/'.",
    )
