"""Debian version numbers (Debian Policy 5.6.12): [epoch:]upstream[-revision], and their order."""

from __future__ import annotations

import functools
import re

_PARTS = re.compile(r"(\D*)(\d*)")
_END = 0  # the end of a part sorts after "~" and before everything else


@functools.lru_cache(maxsize=8192)
def version_key(text: str) -> tuple[object, ...]:
    """A key that sorts as dpkg compares; ill-formed epochs count as 0."""
    epoch, colon, rest = text.partition(":")
    if not colon:
        epoch, rest = "0", text
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    number = int(epoch) if epoch.isdecimal() and len(epoch) < 10 else 0
    return number, _part_key(upstream), _part_key(revision)


def _part_key(text: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Alternating words and numbers, one pair at least ("" is "0"), then the end as an empty pair,
    which sorts after "~" and before all else."""
    found = [(word, digits) for word, digits in _PARTS.findall(text) if word or digits]
    pairs = [
        ((*map(_order, word), _END), int(digits[:4000] or 0))
        for word, digits in found or [("", "")]
    ]
    return (*pairs, ((_END,), 0))


def _order(character: str) -> int:
    """Letters before all others, "~" before the end of the text."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 0x110000


def satisfies(version: str, operator: str, wanted: str) -> bool:
    """True when `version` fulfils a relation: <<, <=, =, >=, >>, or "" for any (Policy 7.1)."""
    have, want = version_key(version), version_key(wanted)
    return {
        "": True,
        "<<": have < want,
        "<=": have <= want,
        "=": have == want,
        ">=": have >= want,
        ">>": have > want,
        "<": have <= want,  # the old spellings
        ">": have >= want,
    }[operator]
