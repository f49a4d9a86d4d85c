"""Compiles dialect sources and runs them: natively, or under qemu's user emulation."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from crumble_ir import compile_text

ARCHES = ("amd64", "arm64", "riscv64")
HEAD = "from crumble_ir import linux\nfrom crumble_ir.dialect import *\n"


@lru_cache
def emulator(arch: str) -> tuple[str, ...] | None:
    """The words that run an executable of `arch` here, or None."""
    native = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}.get(platform.machine())
    if arch == native:
        return ()
    qemu = {"riscv64": "qemu-riscv64", "arm64": "qemu-aarch64", "amd64": "qemu-x86_64"}[arch]
    found = shutil.which(qemu) or shutil.which(f"{qemu}-static")
    return (found,) if found else None


def runner(arch: str) -> tuple[str, ...]:
    """As emulator(); skips the test when there is none."""
    words = emulator(arch)
    if words is None:
        pytest.skip(f"nothing here runs {arch} executables: install qemu-user")
    return words


def run(
    source: str,
    arch: str,
    *arguments: str,
    stdin: bytes = b"",
    features: tuple[str, ...] = (),
    head: str = HEAD,
) -> subprocess.CompletedProcess[bytes]:
    """Compiles `source` (after `head`) and runs it."""
    words = runner(arch)
    image = compile_text(head + source, arch, features)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program")
        path.write_bytes(image)
        path.chmod(0o755)
        return subprocess.run(
            [*words, str(path), *arguments],
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )


def output(source: str, arch: str, **options: Any) -> str:
    """What the program printed; fails unless it ended with 0."""
    done = run(source, arch, **options)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.decode()


def evaluate(body: str, arch: str, before: str = "", **options: object) -> str:
    """What the statements `body` print as the body of main."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    source = f"{before}\ndef main(stack: ptr[u64]) -> i32:\n{lines}\n    return 0\n"
    return output(source, arch, **options)
