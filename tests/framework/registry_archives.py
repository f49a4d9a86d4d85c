"""Makes archives for tests, good and bad."""

import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass, field

import zstandard


@dataclass
class Item:
    """One member: type as tarfile has it, and whatever else its header says."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    target: str = ""
    mode: int = 0o644
    fields: dict[str, object] = field(default_factory=dict)


def folder(name: str, mode: int = 0o755) -> Item:
    return Item(name, type=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Item:
    return Item(name, type=tarfile.SYMTYPE, target=target, mode=0o777)


def hardlink(name: str, target: str) -> Item:
    return Item(name, type=tarfile.LNKTYPE, target=target)


def tar(*items: Item, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of the items."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for item in items:
            info = tarfile.TarInfo(item.name)
            info.type, info.linkname, info.mode = item.type, item.target, item.mode
            info.size = len(item.data)
            for key, value in item.fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(item.data))
    return out.getvalue()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


PACKERS = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "gzip in two members": lambda data: (
        gzip.compress(data[:700], mtime=0) + gzip.compress(data[700:], mtime=0)
    ),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "zstd in two frames": lambda data: (
        zstandard.ZstdCompressor().compress(data[:700])
        + b"\x50\x2a\x4d\x18\x04\0\0\0skip"
        + zstandard.ZstdCompressor().compress(data[700:])
    ),
}
