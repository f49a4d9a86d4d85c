"""How a VM is made: the one recipe, top to bottom."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from crumble.supervisor import limits
from crumble.supervisor.images import OnProgress
from crumble.supervisor.tasks import Task, both, limited
from crumble_common.errors import GuestError
from crumble_common.guest_memory import GuestMemory
from crumble_common.messages.fs import FsConfig, InjectedFile
from crumble_common.messages.image import Image, ImageGet, Kernel, KernelGet
from crumble_common.messages.vm import VirtioFs, VmConfig

if TYPE_CHECKING:
    from crumble.supervisor.vm import Vm

# The only guests there are so far: what the soft CPU runs.
ARCHITECTURE = "riscv64"
ROOT_TAG = "root"


async def boot(vm: Vm, on_progress: OnProgress) -> None:
    """Takes a VM from its request to a running agent; raises CrumbleError."""
    image, kernel = await _materials(vm, on_progress)
    vm.image = image
    fds = GuestMemory.create(vm.memory).detach()
    for name, fd in fds.items():
        vm.host.fds.put(vm.id, name, fd)
    device_side, driver_side = socket.socketpair()
    with device_side, driver_side:
        # vmm first: it has more to do before they meet.
        _spawn(vm, "vmm", _vm_config(vm, kernel), {**fds, "root_fs": driver_side.fileno()})
        _spawn(vm, "fsd", _fs_config(vm, image), {**fds, "root_fs": device_side.fileno()})
    limit = vm.request.boot_timeout
    await limited(vm.host.loop, vm.agent, limit, lambda: _no_agent(limit))


async def _materials(vm: Vm, on_progress: OnProgress) -> tuple[Image, Kernel]:
    """The image and the kernel, fetched at once where they are missing."""
    request, ask = vm.request, vm.host.images.ask
    get = ImageGet(
        request.image,
        f"linux/{ARCHITECTURE}",
        request.pull,  # type: ignore[arg-type]  # checked where the request arrived
        request.operation,
    )
    if request.kernel:
        return await ask(get, on_progress), Kernel(ARCHITECTURE, "", "", request.kernel, [])
    image = Task(ask(get, on_progress))
    kernel = Task(ask(KernelGet(ARCHITECTURE, "", request.operation), on_progress))
    return await both(image, kernel)


def _spawn(vm: Vm, service: str, config: FsConfig | VmConfig, fds: dict[str, int]) -> None:
    row = vm.host.table[service]
    given = {name: fds[name] for name in row.fds}
    name = f"{service}.{vm.name}"
    vm.adopt(vm.host.services.start(row, name, config, vm.event, given))


def _fs_config(vm: Vm, image: Image) -> FsConfig:
    return FsConfig(
        tag=ROOT_TAG,
        socket_fd="root_fs",
        layers=image.layers,
        upper_limit=limits.written_files(),
        shares=vm.request.shares,
        injected=[
            InjectedFile("/etc/hostname", f"{vm.hostname}\n".encode()),
            InjectedFile("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {vm.hostname}\n".encode()),
            InjectedFile("/etc/resolv.conf", _resolv_conf()),
        ],
    )


def _resolv_conf() -> bytes:
    """The host's; there is no network to use it on yet, but programs expect the file."""
    try:
        with open("/etc/resolv.conf", "rb") as file:
            return file.read(16 << 10)
    except OSError:
        return b""


def _vm_config(vm: Vm, kernel: Kernel) -> VmConfig:
    request = vm.request
    return VmConfig(
        vm=vm.name,
        kernel=os.path.abspath(kernel.image),  # noqa: PTH100  a link stays a link
        memory=vm.memory,
        cpus=request.cpus,
        modules=kernel.modules,
        cmdline=request.cmdline,
        hypervisor=request.hypervisor,
        hostname=vm.hostname,
        dmesg=request.dmesg,
        filesystems=[VirtioFs(ROOT_TAG, "root_fs")],
    )


def _no_agent(limit: float) -> GuestError:
    return GuestError(
        f"The guest's agent did not answer within {limit:g} s.",
        code="guest.no_agent",
        hint="See with --dmesg what its kernel prints, or give it longer with --boot-timeout.",
    )
