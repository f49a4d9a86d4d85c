"""What loaders put into RAM: a file's bytes without its holes, and what of it there is to map ahead."""

import mmap
import os
from pathlib import Path

import pytest

from crumble_native.memory import Memory
from crumble_vmm.boot.ram import Ram

SIZE, HOLE, PAGE = 4 << 20, 1 << 20, 4096


def ram(*, file: bool) -> Ram:
    memory = Memory()
    fd = os.memfd_create("ram")
    os.ftruncate(fd, SIZE)
    memory.add(0, mmap.mmap(fd, SIZE))
    return Ram(memory, 0, SIZE, fd if file else -1)


@pytest.fixture
def sparse(tmp_path: Path) -> int:
    """Data, a hole, data, a hole up to the end."""
    path = tmp_path / "kernel"
    with path.open("wb") as out:
        out.write(b"a" * PAGE)
        out.seek(PAGE + HOLE)
        out.write(b"b" * PAGE)
        out.truncate(2 * (PAGE + HOLE))
    return os.open(path, os.O_RDONLY)


@pytest.mark.parametrize("file", [True, False])
def test_holes_are_left_out(sparse: int, file: bool) -> None:
    target = ram(file=file)
    size = 2 * (PAGE + HOLE)
    assert target.copy_from(sparse, 0, size, PAGE) == size
    data = bytes(target.window(PAGE, size))
    assert data == os.pread(sparse, size, 0)
    assert target.filled[:-1] == [(PAGE, PAGE), (2 * PAGE + HOLE, PAGE)]


def test_only_what_was_asked_for_is_copied(sparse: int) -> None:
    target = ram(file=True)
    assert target.copy_from(sparse, 100, 50, PAGE) == 50
    assert target.copy_from(sparse, 2 * PAGE, 100, 2 * PAGE) == 100
    assert target.filled == [(PAGE, 50)]
    assert bytes(target.window(PAGE - 1, 52)) == b"\0" + b"a" * 50 + b"\0"


def test_a_file_that_is_too_short_is_told(sparse: int) -> None:
    target = ram(file=True)
    assert target.copy_from(sparse, 0, SIZE - PAGE, PAGE) == 2 * (PAGE + HOLE)
    assert target.copy_from(sparse, SIZE, 100, PAGE) == 0
