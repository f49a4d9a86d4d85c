"""Content digests (OCI image-spec, descriptor.md#digests): "sha256:…" or "sha512:…", lower-case hex."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_CHUNK = 1 << 20


def is_digest(text: str) -> bool:
    """True for a digest of a supported algorithm."""
    return _DIGEST.fullmatch(text) is not None


def hasher(digest: str) -> _Hash:
    """A hash object of the digest's algorithm."""
    return hashlib.new(digest.partition(":")[0], usedforsecurity=True)


def digest_bytes(data: bytes) -> str:
    """The sha256 digest of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_file(path: Path, algorithm: str = "sha256") -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def matches(data: bytes, digest: str) -> bool:
    """True when `data` has this digest."""
    hashed = hasher(digest)
    hashed.update(data)
    return hashed.hexdigest() == digest.partition(":")[2]
