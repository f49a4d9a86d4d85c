"""What is remembered is what `ocid` would say; when that may not be, it is asked."""

import os
from pathlib import Path

import pytest

from crumble.supervisor.materials import Materials, stamp
from crumble_common.messages.client import VmCreate
from crumble_common.messages.fs import Layer
from crumble_common.messages.image import Image, ImageConfig, Kernel

ARCHITECTURE = "riscv64"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRUMBLE_DATA_DIR", str(tmp_path))
    made = tmp_path / "store"
    for name in ("references", "kernels/riscv64", "layers"):
        (made / name).mkdir(parents=True)
    for path in (tmp_path, made):
        path.chmod(0o700)
    for name in ("layers/1.index", "layers/1.contents", "kernel"):
        (made / name).touch()
    return made


def found(store: Path) -> tuple[Image, Kernel]:
    layer = Layer(str(store / "layers/1.index"), str(store / "layers/1.contents"))
    image = Image("id", "digest", "a", "linux/riscv64", 1, "", ImageConfig(), [layer])
    return image, Kernel(ARCHITECTURE, "6", "sha256:1", str(store / "kernel"), [])


def test_an_answer_holds_until_the_store_changes(store: Path) -> None:
    materials, request = Materials(), VmCreate("a")
    assert materials.known(request, ARCHITECTURE) is None
    for change in ("references", "kernels", "kernels/riscv64"):
        materials.remember(request, ARCHITECTURE, found(store), stamp(ARCHITECTURE))
        assert materials.known(request, ARCHITECTURE) == found(store)
        os.utime(store / change, ns=(1, len(change)))
        assert materials.known(request, ARCHITECTURE) is None


def test_what_changed_while_ocid_was_asked_is_asked_again(store: Path) -> None:
    materials, request = Materials(), VmCreate("a")
    asked = stamp(ARCHITECTURE)
    os.utime(store / "references", ns=(1, 1))
    materials.remember(request, ARCHITECTURE, found(store), asked)
    assert materials.known(request, ARCHITECTURE) is None


@pytest.mark.parametrize("name", ["layers/1.index", "layers/1.contents", "kernel"])
def test_what_is_gone_is_asked_for(store: Path, name: str) -> None:
    materials, request = Materials(), VmCreate("a")
    materials.remember(request, ARCHITECTURE, found(store), stamp(ARCHITECTURE))
    (store / name).unlink()
    assert materials.known(request, ARCHITECTURE) is None


@pytest.mark.parametrize(
    "other",
    [
        VmCreate("b"),
        VmCreate("a", kernel="/k"),
        VmCreate("a", pull="always"),
        VmCreate("a", pull="never"),
        VmCreate("oci:/a"),
        VmCreate("docker-archive:/a"),
    ],
)
def test_another_question_is_asked(store: Path, other: VmCreate) -> None:
    materials = Materials()
    materials.remember(VmCreate("a"), ARCHITECTURE, found(store), stamp(ARCHITECTURE))
    if other.image.endswith(":/a"):
        materials.remember(other, ARCHITECTURE, found(store), stamp(ARCHITECTURE))
    assert materials.known(other, ARCHITECTURE) is None
    assert materials.known(VmCreate("a"), "amd64") is None
