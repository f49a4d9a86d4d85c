"""The guest's executable is compiled once, and only a whole one is used."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from crumble_ir import CompileError
from crumble_vmm.guest import build, module_path
from crumble_vmm.guest.build import source_digest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory, and no memory of earlier builds."""
    monkeypatch.setenv("CRUMBLE_DATA_DIR", str(tmp_path))
    build.cache_clear()
    return tmp_path / "guest"


@pytest.mark.parametrize("arch", ["riscv64", "arm64", "amd64"])
def test_compiled_once_then_read(arch: str, cache: Path) -> None:
    image = build(arch)
    (file,) = cache.iterdir()
    assert file.read_bytes() == image
    assert source_digest()[:32] in file.name
    file.write_bytes(b"\x7fELF changed")
    assert build(arch) is image
    build.cache_clear()
    assert build(arch) == b"\x7fELF changed"


def test_what_is_no_executable_is_compiled_anew(cache: Path) -> None:
    image = build("riscv64")
    (file,) = cache.iterdir()
    file.write_bytes(b"")
    build.cache_clear()
    assert build("riscv64") == image
    assert file.read_bytes() == image


def test_a_cache_that_cannot_be_written_is_done_without(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError("full")

    monkeypatch.setattr("os.replace", refuse)
    assert build("riscv64").startswith(b"\x7fELF")
    assert list(cache.iterdir()) == []


def test_the_executable(cache: Path) -> None:
    begin = time.process_time()
    image = build("riscv64")
    assert time.process_time() - begin < 3, "compiling should take about 0.2 s"
    assert len(image) < 80_000
    file = ELFFile(io.BytesIO(image))
    assert file.get_machine_arch() == "RISC-V"
    names = {symbol.name for symbol in file.get_section_by_name(".symtab").iter_symbols()}
    assert {"_start", "init.main", "agent.run", "table"} <= names


def test_an_unknown_architecture(cache: Path) -> None:
    with pytest.raises(CompileError, match="no back end for vax"):
        build("vax")


def test_modules_load_in_the_order_of_their_names() -> None:
    paths = [module_path(index, name) for index, name in enumerate("zyx" * 4)]
    assert paths[0] == "modules/00-z.ko"
    assert sorted(paths) == paths
