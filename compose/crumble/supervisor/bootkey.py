"""What a boot snapshot depends on: VMs for which all of this is the same boot to the same moment."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

from crumble.snapshots import manifest as form
from crumble_common import __version__
from crumble_common.messages.image import Image, Kernel

if TYPE_CHECKING:
    from crumble.supervisor.vm import Vm

# Whose code decides what a booted guest looks like, init and agent among it.
_CODE = (
    "crumble_vmm",
    "crumble_fsd",
    "crumble_netd",
    "crumble_common",
    "crumble_ir",
    "crumble_native",
)


def of(vm: Vm, image: Image, kernel: Kernel) -> dict[str, str]:
    """Everything that goes in; empty when such a VM has no boot snapshot."""
    request = vm.request
    if not request.boot_snapshot or request.dmesg or request.shares or request.seed:
        return {}
    if request.kernel and not Path(request.kernel).is_file():
        return {}  # vmm says so
    return {
        "format": str(form.FORMAT),
        "code": code(),
        "architecture": kernel.architecture,
        "hypervisor": vm.backend.name,
        "cpu_model": request.cpu_model,
        "transport": vm.transport,
        "watchdog": str(vm.watchdog),
        "irqchip": vm.irqchip,
        "kernel": kernel.digest or _file(kernel.image),
        "modules": _digest(" ".join(kernel.modules)),
        "cmdline": request.cmdline,
        "image": image.id,
        "layers": _digest(" ".join(layer.index for layer in image.layers)),
        "resolv.conf": hashlib.sha256(vm.network.resolv_conf()).hexdigest(),
        "network": "on" if vm.network.on else "none",
        "cpus": str(vm.cpus),
        "memory": str(vm.memory),
    }


def name(key: dict[str, str]) -> str:
    """The snapshot's."""
    return f"boot-{_digest(json.dumps(key, sort_keys=True))[:20]}"


@functools.cache
def code() -> str:
    """The version, and which files it is made of: they change without it when they are worked on."""
    digest = hashlib.sha256()
    for package in _CODE:
        found = importlib.util.find_spec(package)
        for place in (found.submodule_search_locations or []) if found else []:
            for path in sorted(Path(place).rglob("*")):
                if path.suffix in (".py", ".so"):
                    digest.update(_file(str(path)).encode())
    return f"{__version__} {digest.hexdigest()[:20]}"


def _file(path: str) -> str:
    info = Path(path).stat()
    return f"{path} {info.st_size} {info.st_mtime_ns}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
