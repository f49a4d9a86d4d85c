"""Kernels in the store, and nothing of how they get there: finding one must cost no imports.

A kernel stays at kernels/ARCHITECTURE/RELEASE/: `image`, `NAME.ko` (decompressed) and `kernel.json`,
which lists them, and `wanted`, which says what was looked for. amd64's `image` is a vmlinux, unpacked (bzimage.py). It appears by rename. `default` beside it names the one that was newest when the
default was last asked of the archive.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from crumble_common.errors import UsageError
from crumble_common.messages.image import Kernel
from crumble_ocid.store import Store

ARCHITECTURES = ("riscv64", "arm64", "amd64")
_ALIASES = {"x86_64": "amd64", "aarch64": "arm64"}
_RELEASE = re.compile(r"[0-9][0-9A-Za-z.+~-]{0,120}")


# Modules a guest needs before it has its root file system and its network, or a watchdog, with the kernel option each
# belongs to. A stored kernel that was searched for others is fetched again.
WANTED = {
    "virtio_mmio": "CONFIG_VIRTIO_MMIO",
    "virtio_pci": "CONFIG_VIRTIO_PCI",
    "virtio_console": "CONFIG_VIRTIO_CONSOLE",
    "virtio_rng": "CONFIG_HW_RANDOM_VIRTIO",
    "virtiofs": "CONFIG_VIRTIO_FS",
    "virtio_net": "CONFIG_VIRTIO_NET",
    "sunxi_wdt": "CONFIG_SUNXI_WATCHDOG",
    "wdat_wdt": "CONFIG_WDAT_WDT",
}
WANTED_FILE = "wanted"


def wanted_text(architecture: str) -> str:
    """What is in WANTED_FILE of a kernel that is as we want it now."""
    return "\n".join((*sorted(WANTED), *(["vmlinux"] if architecture == "amd64" else [])))


def kernels_home(store: Store, architecture: str, version: str) -> Path:
    """Where the kernels of an architecture are; UsageError when it or the version cannot be one."""
    architecture = _ALIASES.get(architecture, architecture)
    if architecture not in ARCHITECTURES or not (version == "" or _RELEASE.fullmatch(version)):
        raise UsageError(
            f"There is no kernel {version!r} for {architecture!r}.",
            code="kernel.unknown",
            hint=f"Architectures are {', '.join(ARCHITECTURES)}.",
        )
    return store.root / "kernels" / architecture


def stored_kernel(home: Path, version: str) -> Kernel | None:
    """A kernel that is complete, "" for the default; None for any other."""
    try:
        name = version or (home / "default").read_text("ascii")
        if not _RELEASE.fullmatch(name):
            return None
        if (home / name / WANTED_FILE).read_text("ascii") != wanted_text(home.name):
            return None
        kernel = Kernel(**json.loads((home / name / "kernel.json").read_bytes()))
        paths = [home / name / item for item in (kernel.image, *kernel.modules)]
    except (OSError, ValueError, TypeError):
        return None
    if not all(path.is_file() for path in paths):
        return None
    image, *modules = map(str, paths)
    return replace(kernel, image=image, modules=modules)
