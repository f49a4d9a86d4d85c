"""Where packages come from: the apt sources of this host, or $CRUMBLE_DEBIAN_MIRROR.

sources.list(5): one-line `*.list` and deb822 `*.sources` files. Only what a Debian archive needs is
read: types deb, addresses http(s), and mirror+file lists of such.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from crumble_common.errors import HostError, RemoteError
from crumble_ocid.debian.control import Stanza, parse_stanzas

_ONE_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)(?:\s+(.*))?")
_NO = ("no", "false", "without", "off", "disable")
_MAX_FILE = 1 << 20


@dataclass(frozen=True)
class Source:
    """A mirror. signed_by: paths of keyrings, or an armored key; empty for the default keyrings."""

    uri: str
    suites: tuple[str, ...] = ()
    signed_by: tuple[str, ...] = ()
    check_valid_until: bool = field(default=True)


def find_sources(suite: str, etc: Path = Path("/etc/apt")) -> list[Source]:
    """Mirrors to ask for `suite`, the likeliest first, no address twice; raises HostError.

    A mirror of one suite usually has the others too, so all are candidates.
    """
    if mirror := os.environ.get("CRUMBLE_DEBIAN_MIRROR"):
        if urlsplit(mirror).scheme not in ("http", "https"):
            raise HostError(
                f"CRUMBLE_DEBIAN_MIRROR is {mirror!r}, which is no http or https address.",
                code="debian.mirror",
                hint="Set it to one, such as http://HOST/debian.",
            )
        return [Source(mirror.rstrip("/"), (suite,))]
    found: dict[str, Source] = {}
    for source in sorted(read_sources(etc), key=lambda item: _unlikeliness(item, suite)):
        found.setdefault(source.uri, source)
    if not found:
        raise HostError(
            "No Debian mirror is known: this host's apt sources name none.",
            code="debian.no_mirror",
            hint="Set CRUMBLE_DEBIAN_MIRROR to the address of a Debian mirror.",
        )
    return list(found.values())


def read_sources(etc: Path) -> Iterator[Source]:
    """Every usable source of an apt configuration; files that cannot be read are passed over."""
    paths = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    for path in paths:
        if path.suffix not in (".list", ".sources"):
            continue
        try:
            text = path.read_bytes()[:_MAX_FILE].decode("utf-8", "replace")
            yield from _deb822(text) if path.suffix == ".sources" else _one_line(text)
        except (OSError, RemoteError):
            continue


def _deb822(text: str) -> Iterator[Source]:
    for stanza in parse_stanzas(text):
        if "deb" in stanza.get("types", "").split() and _enabled(stanza, "enabled"):
            for uri in _addresses(stanza.get("uris", "").split()):
                yield Source(
                    uri,
                    tuple(stanza.get("suites", "").split()),
                    _signed_by(stanza.get("signed-by", "")),
                    _enabled(stanza, "check-valid-until"),
                )


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        found = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if not found:
            continue
        pairs = (word.partition("=") for word in shlex.split(found[1] or ""))
        options = {key.lower(): value for key, _, value in pairs}
        for uri in _addresses([found[2]]):
            yield Source(
                uri,
                (found[3],),
                tuple(filter(None, options.get("signed-by", "").split(","))),
                _enabled(options, "check-valid-until"),
            )


def _addresses(uris: list[str]) -> Iterator[str]:
    for uri in uris:
        if uri.startswith(("http://", "https://")):
            yield uri.rstrip("/")
        elif uri.startswith("mirror+file:"):
            path = Path("/" + uri.removeprefix("mirror+file:").lstrip("/"))
            lines = path.read_bytes()[:_MAX_FILE].decode("utf-8", "replace").splitlines()
            yield from _addresses([line.split()[0] for line in lines if line.strip()])


def _enabled(options: Stanza, name: str) -> bool:
    return options.get(name, "yes").lower() not in _NO


def _signed_by(value: str) -> tuple[str, ...]:
    """Paths, or one armored key whose empty lines are written as "."."""
    if "-----BEGIN" in value:
        return ("\n".join("" if line == "." else line for line in value.strip().splitlines()),)
    return tuple(value.split())


def _unlikeliness(source: Source, suite: str) -> tuple[bool, bool, bool]:
    """Sorts a source with the suite first, those of security updates and non-Debian ones last."""
    partial = all("-" in name or "/" in name for name in source.suites)
    return suite not in source.suites, partial, "debian" not in source.uri
