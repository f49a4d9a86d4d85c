"""Control data (deb822, Debian Policy 5): stanzas of "Field: value" lines, continued by indented ones."""

from __future__ import annotations

import re
from collections.abc import Iterator

from crumble_common.errors import RemoteError

Stanza = dict[str, str]
_FIELD = re.compile(r"([!-9;-~]+):[ \t]*(.*)")


def damaged(what: str) -> RemoteError:
    """The error for archive data that is not what it should be."""
    return RemoteError(
        f"The Debian archive's {what}.",
        code="debian.data",
        hint="Try again later, or name another mirror in CRUMBLE_DEBIAN_MIRROR.",
    )


def parse_stanzas(text: str) -> Iterator[Stanza]:
    """Stanzas in order; field names in small letters, values' lines stripped and joined by "\\n".

    Raises RemoteError "debian.data" for a line that is neither a field nor a continuation.
    """
    stanza: Stanza = {}
    field = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if not line.strip():
            if stanza:
                yield stanza
            stanza, field = {}, ""
        elif line[0] in " \t":
            if not field:
                raise damaged(f"data has the stray line {line[:60]!r}")
            stanza[field] += "\n" + line.strip()
        elif found := _FIELD.fullmatch(line):
            field = found[1].lower()
            stanza[field] = found[2].strip()
        else:
            raise damaged(f"data has the line {line[:60]!r}, which is no field")
    if stanza:
        yield stanza
