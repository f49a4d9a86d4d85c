"""A suite's InRelease: fetched, its signature verified, and what it promises about indexes.

Debian repository format (wiki: DebianRepository/Format), "Release" files.
"""

from __future__ import annotations

import email.utils
import re
import time
from dataclasses import dataclass

from crumble_common.errors import HostError, RemoteError, UsageError
from crumble_ocid.debian.control import damaged, parse_stanzas
from crumble_ocid.debian.keyring import load_keys, verify_inline
from crumble_ocid.debian.sources import Source, find_sources
from crumble_ocid.progress import QUIET, Reporter
from crumble_ocid.transfer import Transport

_MAX_RELEASE = 8 << 20
_LINE = re.compile(r"([0-9a-f]{64})\s+(\d{1,12})\s+(\S+)")
_CLOCK_SLACK = 86400  # seconds a mirror's clock may be before ours


@dataclass(frozen=True)
class Release:
    """A verified release of a suite on a mirror. files: path → (sha256, size).

    suite: the name it was asked for by; place: its folder below dists/; names: all the folders it is in.
    """

    source: Source
    suite: str
    place: str
    names: tuple[str, ...]
    codename: str
    architectures: list[str]
    by_hash: bool
    files: dict[str, tuple[str, int]]

    @property
    def base(self) -> str:
        """The address index paths are relative to."""
        return f"{self.source.uri}/dists/{self.place}"


def open_release(transport: Transport, suite: str, reporter: Reporter = QUIET) -> Release:
    """The suite's release from the first mirror that has it; raises what the last one failed with."""
    failure: Exception | None = None
    for source in find_sources(suite):
        try:
            release = fetch_release(transport, source, suite, reporter)
        except (RemoteError, HostError) as error:
            failure = failure or error
            continue
        if release is not None:
            return release
    if failure is not None:
        raise failure
    raise UsageError(
        f"No Debian mirror of this host has a suite {suite!r}.",
        code="debian.no_suite",
        hint="Name a suite such as trixie, or set CRUMBLE_DEBIAN_MIRROR to a mirror that has it.",
    )


def fetch_release(
    transport: Transport, source: Source, suite: str, reporter: Reporter = QUIET
) -> Release | None:
    """The suite's verified release on one mirror; None when that has no such suite."""
    url = f"{source.uri}/dists/{suite}/InRelease"
    signed = transport.get(url, _MAX_RELEASE, reporter=reporter)
    if signed is None:
        return None
    text = verify_inline(signed, load_keys(source.signed_by), f"The release file of {suite}")
    return parse_release(text, source, suite)


def parse_release(text: bytes, source: Source, suite: str, now: float | None = None) -> Release:
    """Reads a verified release; raises RemoteError when it is of another suite, expired or damaged."""
    stanza = next(parse_stanzas(text.decode("utf-8", "replace")), {})
    names = (stanza.get("suite", ""), stanza.get("codename", ""))
    if suite not in names:
        raise damaged(f"release file is of {'/'.join(names)}, not of {suite}")
    now = time.time() if now is None else now
    if _time(stanza.get("date")) > now + _CLOCK_SLACK:
        raise HostError(
            f"The release of {suite} is from the future: this host's clock is wrong.",
            code="debian.clock",
            hint="Set the clock.",
        )
    if source.check_valid_until and _time(stanza.get("valid-until"), now) < now:
        raise damaged(f"release of {suite} was valid until {stanza['valid-until']} only")
    files: dict[str, tuple[str, int]] = {}
    for line in stanza.get("sha256", "").splitlines():
        if found := _LINE.fullmatch(line):
            files[found[3]] = (found[1], int(found[2]))
    return Release(
        source,
        suite,
        suite,
        tuple(filter(None, names)),
        stanza.get("codename") or suite,
        stanza.get("architectures", "").split(),
        stanza.get("acquire-by-hash", "").lower() == "yes",
        files,
    )


def _time(text: str | None, missing: float = 0.0) -> float:
    if text is None:
        return missing
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError):
        raise damaged(f"release file has the date {text!r}") from None
