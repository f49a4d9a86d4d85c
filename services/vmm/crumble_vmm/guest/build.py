"""The guest's /init: compiled once for each architecture and source, then kept in the data directory."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from functools import lru_cache
from pathlib import Path

from crumble_common.errors import HostError
from crumble_common.paths import data_dir, private_dir

ROOT_MODULE = "crumble_vmm.guest.init"
# ELF magic and a plausible size: a torn file is compiled anew, not booted.
_MAGIC = b"\x7fELF"


@lru_cache
def build(arch: str) -> bytes:
    """The executable for `arch`, from the cache or compiled now (about 0.1 s).

    Raises CompileError for an architecture there is no back end for.
    """
    path = private_dir(data_dir() / "guest") / f"init-{arch}-{source_digest()[:32]}"
    cached = _read(path)
    if cached is not None:
        return cached
    # The compiler is imported only when there is something to compile.
    from crumble_ir import compile_module

    image = compile_module(ROOT_MODULE, arch)
    _write(path, image)
    return image


@lru_cache
def source_digest() -> str:
    """A digest of everything the executable is made from: the sources here, and the compiler."""
    spec = importlib.util.find_spec("crumble_ir")
    assert spec is not None and spec.origin is not None
    folders = [Path(__file__).parent, Path(spec.origin).parent]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _read(path: Path) -> bytes | None:
    try:
        image = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(
            f"Cannot read {path}: {error.strerror}.",
            code="host.cache",
            hint="Remove it; it is made again.",
        ) from error
    return image if image.startswith(_MAGIC) else None


def _write(path: Path, image: bytes) -> None:
    """Whole or not at all; a directory that cannot be written only costs the next run some time."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(image)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink()
                raise
    except OSError:
        pass


def module_path(index: int, name: str) -> str:
    """Where init looks for the `index`-th kernel module in the initramfs: it loads them by name."""
    return f"modules/{index:02d}-{name}.ko"
