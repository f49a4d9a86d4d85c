"""The newc writer, against its own reading and against cpio."""

import shutil
import subprocess
from pathlib import Path

import pytest

from crumble_common.errors import InternalError
from crumble_vmm.boot.initramfs import Initramfs


def sample() -> Initramfs:
    archive = Initramfs()
    archive.file("init", b"\x7fELF...", 0o755)
    archive.character_device("dev/console", 5, 1)
    archive.file("modules/00-virtio_mmio.ko", b"x" * 4097)
    archive.file("modules/empty", b"")
    archive.symlink("bin", "usr/bin")
    return archive


def parse(data: bytes) -> list[tuple[str, list[int], bytes]]:
    """A reader written from the kernel's buffer-format.rst."""
    found, at = [], 0
    while True:
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        assert data[at + 110 + fields[11] - 1] == 0
        start = (at + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            assert start == len(data)
            return found
        found.append((name, fields, data[start : start + fields[6]]))
        at = (start + fields[6] + 3) & ~3


def test_archive_reads_back_with_parents_first() -> None:
    data = b"".join(sample().chunks())
    found = parse(data)
    assert [name for name, _, _ in found] == [
        "init",
        "dev",
        "dev/console",
        "modules",
        "modules/00-virtio_mmio.ko",
        "modules/empty",
        "bin",
    ]
    by_name = {name: (fields, content) for name, fields, content in found}
    assert by_name["init"][0][1] == 0o100755
    assert by_name["init"][1] == b"\x7fELF..."
    assert by_name["dev/console"][0][1] == 0o020600
    assert by_name["dev/console"][0][9:11] == [5, 1]
    assert by_name["dev"][0][1] == 0o040755
    assert by_name["bin"][1] == b"usr/bin"
    numbers = [fields[0] for _, fields, _ in found]
    assert len(set(numbers)) == len(numbers)


def test_size_is_known_beforehand_and_the_bytes_do_not_vary() -> None:
    data = b"".join(sample().chunks())
    assert sample().size == len(data)
    target = bytearray(len(data) + 8)
    assert sample().write_into(memoryview(target)) == len(data)
    assert bytes(target) == data + bytes(8)
    with pytest.raises(ValueError, match="needs"):
        sample().write_into(memoryview(bytearray(len(data) - 1)))


@pytest.mark.parametrize("path", ["/etc", "a//b", "../x", "a/./b", "", "a/"])
def test_odd_paths_are_refused(path: str) -> None:
    with pytest.raises(InternalError):
        Initramfs().file(path, b"")


def test_a_path_is_added_once() -> None:
    archive = sample()
    with pytest.raises(InternalError):
        archive.file("init", b"")


@pytest.mark.skipif(not shutil.which("cpio"), reason="cpio is not installed")
def test_cpio_agrees(tmp_path: Path) -> None:
    archive = Initramfs()
    archive.file("a/b", b"content")
    archive.symlink("a/l", "b")
    done = subprocess.run(
        ["cpio", "-idm", "--quiet"],
        input=b"".join(archive.chunks()),
        cwd=tmp_path,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a/l").read_bytes() == b"content"
