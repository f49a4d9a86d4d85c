"""Images and kernels of the real Debian archive, looked at with Debian's own tools."""

import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.network, pytest.mark.slow]

DEBIAN = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("debian") / "store"


def ocid(store: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "crumble_ocid", *arguments, "--store", str(store), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def unpack(store: Path, reference: str, target: Path) -> Path:
    """The image's only layer, unpacked by GNU tar."""
    layout = target.parent / f"{target.name}-layout"
    ocid(store, "export", reference, str(layout))
    digest = ocid(store, "inspect", reference)["manifest"]["layers"][0]["digest"]
    target.mkdir()
    archive = layout / "blobs/sha256" / digest[7:]
    command = ["tar", "-xpf", str(archive), "--numeric-owner", "-C", str(target)]
    subprocess.run(command, check=True)
    shutil.rmtree(layout)
    return target


def test_a_system_for_the_guest(store: Path, tmp_path: Path) -> None:
    image = ocid(store, "pull", "deb:trixie")
    assert image["platform"] == "linux/riscv64" and image["config"]["cmd"] == ["bash"]
    root = unpack(store, "deb:trixie", tmp_path / "root")
    assert "VERSION_CODENAME=trixie" in (root / "etc/os-release").read_text()
    assert (root / "bin/sh").resolve() == (root / "usr/bin/dash").resolve()
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert "root:x:0:0:root:/root:/bin/bash" in (root / "etc/passwd").read_text()
    if shutil.which("qemu-riscv64"):
        shell = ["qemu-riscv64", "-L", str(root), str(root / "usr/bin/dash"), "-c", "echo $((6*7))"]
        assert subprocess.run(shell, capture_output=True, check=True).stdout == b"42\n"


def test_twice_the_same(store: Path, tmp_path: Path) -> None:
    image = ocid(store, "pull", "deb:trixie")
    assert ocid(tmp_path / "second", "pull", "deb:trixie")["digest"] == image["digest"]


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
@pytest.mark.parametrize("suite", ["trixie", "bookworm"])
def test_dpkg_and_apt_are_content(store: Path, tmp_path: Path, suite: str) -> None:
    architecture = DEBIAN.get(platform.machine())
    if architecture is None:
        pytest.skip(f"Debian has no packages for {platform.machine()}")
    reference = f"deb:{suite}/less"
    ocid(store, "pull", reference, "--platform", f"linux/{architecture}")
    root = unpack(store, reference, tmp_path / "root")
    script = (
        "dpkg --audit && dpkg --verify && apt-get check -qq && "
        "echo a b | awk '{print $2}' && su nobody -s /bin/sh -c 'id -un' && readlink /etc/alternatives/pager && "
        # The cache of libraries that is there is what the system makes itself, but for who made it.
        "ldconfig -p > /ours && ldconfig && ldconfig -p | grep -v '^Cache generated' | diff /ours -"
    )
    done = subprocess.run(
        ["chroot", str(root), "/bin/sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("b\nnobody\n/usr/bin/less\n", 0), done.stderr


def test_a_kernel_for_the_guest(store: Path) -> None:
    kernel = ocid(store, "kernel")
    image = Path(kernel["image"]).read_bytes()
    assert image[0x30:0x38] == b"RISCV\0\0\0" and image[0x38:0x3C] == b"RSC\x05"
    names = [Path(path).name for path in kernel["modules"]]
    assert "virtio_mmio.ko" in names
    assert all(Path(path).read_bytes()[:4] == b"\x7fELF" for path in kernel["modules"])
