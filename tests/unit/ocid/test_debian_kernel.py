"""Kernels out of Debian's packages: with the modules they need, and refused when something is wrong."""

import dataclasses
from pathlib import Path

import pytest

from crumble_common.errors import CrumbleError, HostError, UsageError
from crumble_common.messages.image import KernelGet
from crumble_ocid.kernel_provider import dependency_order
from crumble_ocid.library import Library
from framework.debian_archive import Deb, DebianArchive, base_system
from framework.registry_archives import Item


def module(depends: str) -> bytes:
    """An ELF relocatable object with nothing but a .modinfo section."""
    info = b"license=GPL\0depends=" + depends.encode() + b"\0"
    names = b"\0.shstrtab\0.modinfo\0"
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + (1).to_bytes(2, "little") + (243).to_bytes(2, "little")
        + (1).to_bytes(4, "little") + bytes(16)
        + (64 + len(names) + len(info)).to_bytes(8, "little") + bytes(4)
        + b"".join(n.to_bytes(2, "little") for n in (64, 0, 0, 64, 3, 1))
    )  # fmt: skip

    def section(name: int, kind: int, at: int, size: int) -> bytes:
        fields = (name, kind, 0, 0, at, size, 0, 0, 1, 0)
        widths = (4, 4, 8, 8, 8, 8, 4, 4, 8, 8)
        return b"".join(f.to_bytes(w, "little") for f, w in zip(fields, widths, strict=True))

    sections = (
        section(0, 0, 0, 0)
        + section(1, 3, 64, len(names))
        + section(11, 1, 64 + len(names), len(info))
    )
    return header + names + info + sections


def kernel_package(
    *modules: Item, name: str = "6.1-test", config: str = "CONFIG_VIRTIO_MMIO=m\n"
) -> list[Deb]:
    real = Deb(
        f"linux-image-{name}",
        (
            Item(
                f"./boot/config-{name}",
                f"{config}CONFIG_VIRTIO_FS=y\n# CONFIG_X is not set\n".encode(),
            ),
            Item(f"./boot/vmlinux-{name}", b"MZ kernel"),
            *modules,
        ),
    )
    return [real, Deb("linux-image-riscv64", fields={"Depends": f"linux-image-{name} (= 1.0)"})]


def ko(path: str, depends: str) -> Item:
    return Item(f"./usr/lib/modules/6.1-test/kernel/{path}.ko", module(depends))


def test_a_kernel_and_what_its_modules_need(library: Library, archive: DebianArchive) -> None:
    archive.publish(
        *kernel_package(
            ko("drivers/a/virtio-ring", ""),
            ko("drivers/b/virtio", "virtio-ring"),
            ko("drivers/c/other", ""),
            ko("drivers/virtio/virtio_mmio", "virtio,virtio_ring"),
            ko("drivers/z/later", ""),
        )
    )
    kernel = library.kernel(KernelGet("riscv64"))
    assert kernel.version == "6.1-test" and Path(kernel.image).read_bytes() == b"MZ kernel"
    assert [Path(path).name for path in kernel.modules] == [
        "virtio_ring.ko",
        "virtio.ko",
        "virtio_mmio.ko",
    ]
    assert Path(kernel.modules[0]).read_bytes() == module("")
    asked = len(archive.registry.requests)
    assert (
        library.kernel(KernelGet("riscv64"))
        == kernel
        == library.kernel(KernelGet("riscv64", "6.1-test"))
    )
    assert len(archive.registry.requests) == asked
    left = [path.name for path in library.store.root.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(
        ["lock", "default", "image", "kernel.json", "wanted", *(Path(p).name for p in kernel.modules),
         next(n for n in left if n.endswith(".sqlite"))]
    )  # fmt: skip


def test_a_newer_kernel_comes_when_asked_for(library: Library, archive: DebianArchive) -> None:
    archive.publish(*kernel_package(config=""))
    first = library.kernel(KernelGet("riscv64"))
    archive.publish(*kernel_package(name="6.2-test", config=""))
    assert library.kernel(KernelGet("riscv64")) == first
    assert library.kernel(KernelGet("riscv64"), refresh=True).version == "6.2-test"
    assert library.kernel(KernelGet("riscv64")).version == "6.2-test"
    assert library.kernel(KernelGet("riscv64", "6.1-test")) == first


def test_an_incomplete_kernel_is_fetched_again(library: Library, archive: DebianArchive) -> None:
    archive.publish(*kernel_package(config=""))
    kernel = library.kernel(KernelGet("riscv64"))
    Path(kernel.image).unlink()
    assert library.kernel(KernelGet("riscv64")) == kernel
    assert Path(kernel.image).read_bytes() == b"MZ kernel"


@pytest.mark.parametrize(
    "packages",
    [
        [],
        [Deb("linux-image-riscv64", fields={"Depends": "linux-image-gone"})],
        kernel_package(),
        kernel_package(ko("a/virtio_mmio", "gone")),
        kernel_package(Item("./usr/lib/modules/6.1-test/kernel/virtio_mmio.ko", b"no module")),
        kernel_package(
            Item("./usr/lib/modules/6.1-test/kernel/virtio_mmio.ko.xz", b"\xfd7zXZ\0 bad")
        ),
        [dataclasses.replace(item, items=()) for item in kernel_package()],
    ],
)
def test_bad_kernels_are_refused(
    library: Library, archive: DebianArchive, packages: list[Deb]
) -> None:
    archive.publish(*base_system(), *packages)
    with pytest.raises(CrumbleError) as caught:
        library.kernel(KernelGet("riscv64"))
    assert not isinstance(caught.value, HostError) and "\n" not in str(caught.value)
    assert not [p for p in (library.store.root / "kernels").rglob("*") if p.is_file()]
    assert not list((library.store.root / "work").iterdir())


@pytest.mark.parametrize(
    ("architecture", "version"), [("vax", ""), ("riscv64", "../x"), ("../x", "")]
)
def test_kernels_that_cannot_be_named(library: Library, architecture: str, version: str) -> None:
    with pytest.raises(UsageError) as caught:
        library.kernel(KernelGet(architecture, version))
    assert caught.value.code == "kernel.unknown"


def test_modules_that_need_each_other_are_all_there() -> None:
    assert set(dependency_order({"a": module("b"), "b": module("a")})) == {"a", "b"}
