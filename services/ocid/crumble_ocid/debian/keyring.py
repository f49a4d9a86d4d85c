"""Whom this host trusts to sign a Debian archive (OpenPGP, RFC 9580), and checking that they did."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crumble_common.errors import HostError, RemoteError

_KEYRINGS = ("usr/share/keyrings/debian-archive-keyring.gpg",
             "usr/share/keyrings/debian-archive-keyring.pgp",
             "etc/apt/trusted.gpg")  # fmt: skip
_TRUSTED_PARTS = "etc/apt/trusted.gpg.d"
_HINT = "Install debian-archive-keyring, or set CRUMBLE_DEBIAN_KEYRING to a keyring file."


def load_keys(signed_by: tuple[str, ...], root: Path = Path("/")) -> list[Any]:
    """The certificates to check against; raises HostError "debian.no_keyring" when there are none.

    signed_by: paths or an armored key, as the source says; $CRUMBLE_DEBIAN_KEYRING overrides it.
    """
    from pysequoia import Cert

    if chosen := os.environ.get("CRUMBLE_DEBIAN_KEYRING"):
        signed_by = (chosen,)
    certificates: list[Any] = []
    for item in signed_by or _defaults(root):
        try:
            armored = "-----BEGIN" in item
            certificates += Cert.split_bytes(item.encode() if armored else Path(item).read_bytes())
        except (OSError, RuntimeError, ValueError, TypeError):  # unreadable, or not keys
            continue
    if not certificates:
        raise HostError(
            "No keys to check the Debian archive's signature with were found.",
            code="debian.no_keyring",
            hint=_HINT,
        )
    return certificates


def verify_inline(signed: bytes, certificates: Iterable[Any], what: str) -> bytes:
    """The text of a cleartext-signed document that one of the keys has signed; raises RemoteError."""
    from pysequoia import verify

    try:
        verified = verify(bytes=signed, store=lambda _: list(certificates))
    except Exception as error:  # noqa: BLE001  pysequoia raises RuntimeError and anyhow-made kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RemoteError(
            f"{what} is not signed by a key this host trusts ({reason[:160]}).",
            code="debian.signature",
            hint=f"{_HINT} If they are current, the mirror is not to be trusted.",
        ) from None
    if not verified.valid_sigs or verified.bytes is None:
        raise RemoteError(f"{what} has no valid signature.", code="debian.signature", hint=_HINT)
    return bytes(verified.bytes)


def _defaults(root: Path) -> list[str]:
    parts = sorted((root / _TRUSTED_PARTS).glob("*"))
    found = [root / name for name in _KEYRINGS]
    found += [path for path in parts if path.suffix in (".gpg", ".asc", ".pgp")]
    return [str(path) for path in found if path.exists()]
