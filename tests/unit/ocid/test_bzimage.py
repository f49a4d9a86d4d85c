"""What is unpacked from a bzImage, and that nothing else is."""

import gzip
import lzma
import struct
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble_common.errors import RemoteError
from crumble_ocid.bzimage import unpack

KERNEL = b"\x7fELF" + bytes(range(256)) * 600 + bytes(400_000) + b"end"
SIZE = struct.pack("<I", len(KERNEL))
PACKED = {
    "gzip": gzip.compress(KERNEL),
    "xz": lzma.compress(KERNEL) + SIZE,
    "zstd": zstandard.compress(KERNEL) + SIZE,
}


def bzimage(payload: bytes, *, sectors: int = 4, version: int = 0x20F, offset: int = 700) -> bytes:
    head = bytearray(((sectors or 4) + 1) * 512 + offset)
    head[0x1F1] = sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<II", head, 0x248, offset, len(payload))
    return bytes(head) + payload + b"behind it"


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "image", tmp_path / "vmlinux"


@pytest.mark.parametrize("sectors", [0, 4, 39])
@pytest.mark.parametrize("kind", PACKED)
def test_the_kernel_is_unpacked(places: tuple[Path, Path], kind: str, sectors: int) -> None:
    image, target = places
    image.write_bytes(bzimage(PACKED[kind], sectors=sectors))
    assert unpack(image, target)
    assert target.read_bytes() == KERNEL
    assert target.stat().st_blocks * 512 < len(KERNEL) - 200_000, "its zeros are holes"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ" + bytes(4096),
        bzimage(PACKED["gzip"], version=0x207),
        bzimage(b"LZ4 or whatever"),
        bzimage(gzip.compress(b"no kernel")),
        bzimage(gzip.compress(b"")),
        bzimage(PACKED["zstd"])[:2000],
    ],
)
def test_anything_else_stays_as_it_is(places: tuple[Path, Path], data: bytes) -> None:
    image, target = places
    image.write_bytes(data)
    assert not unpack(image, target)
    assert not target.exists()


@pytest.mark.parametrize("kind", PACKED)
def test_a_damaged_one_is_refused(places: tuple[Path, Path], kind: str) -> None:
    image, target = places
    image.write_bytes(bzimage(PACKED[kind][:-40]))
    with pytest.raises(RemoteError, match=r"truncated|damaged"):
        unpack(image, target)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kind=st.sampled_from(sorted(PACKED)), at=st.integers(0, 4000), value=st.integers(0, 255))
def test_no_byte_does_more_than_an_error(tmp_path: Path, kind: str, at: int, value: int) -> None:
    data = bytearray(bzimage(PACKED[kind]))
    data[at % len(data)] = value
    (tmp_path / "image").write_bytes(data)
    target = tmp_path / "vmlinux"
    target.unlink(missing_ok=True)
    try:
        done = unpack(tmp_path / "image", target)
    except RemoteError:
        return
    assert done == target.exists()
