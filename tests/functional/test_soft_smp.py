"""A real Linux on several harts of the soft CPU, with threads that race for everything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from crumble_vmm.boot.initramfs import Initramfs
from framework import rv64_engine
from framework.assets import kernel
from framework.rv64_engine import EAGER, HOT, INTERPRETER
from framework.soft_machine import SoftMachine

COMPILER = "riscv64-linux-gnu-gcc"
SOURCE = Path(__file__).with_name("smp_torture.c")
COMMAND_LINE = "console=ttyS0 quiet cryptomgr.notests panic=-1"

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER}")


@pytest.fixture(scope="module")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    program = tmp_path_factory.mktemp("smp") / "torture"
    subprocess.run([COMPILER, "-static", "-O2", "-o", program, SOURCE, "-lpthread"], check=True)
    archive = Initramfs()
    archive.directory("dev")
    archive.character_device("dev/console", 5, 1)
    archive.file("init", program.read_bytes(), 0o755)
    return b"".join(archive.chunks())


@pytest.mark.parametrize("engine", [INTERPRETER, HOT, EAGER])
def test_threads_see_what_others_did(initramfs: bytes, engine: str) -> None:
    with rv64_engine.engine(engine):
        machine = SoftMachine(memory_mib=256, harts=2)
    machine.load_linux(kernel().image, initramfs, COMMAND_LINE)
    machine.run(lambda output: b"@@OK" in output or b"@@BAD" in output, timeout=180)
    assert b"@@OK" in machine.output
