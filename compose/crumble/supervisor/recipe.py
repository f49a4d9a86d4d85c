"""How a VM is made: the one recipe, top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Self

from crumble.supervisor import bootkey, capture, limits, rename
from crumble.supervisor.backend import choose
from crumble.supervisor.images import OnProgress
from crumble.supervisor.latefsd import LateFsd
from crumble.supervisor.materials import stamp
from crumble.supervisor.networks import opened
from crumble.supervisor.recordings import recording
from crumble.supervisor.succession import Netd
from crumble.supervisor.tasks import Task, both, in_thread, limited
from crumble_common.errors import CrumbleError, GuestError, HostError, UsageError
from crumble_common.guest_memory import GuestMemory
from crumble_common.messages.fs import FsConfig, InjectedFile
from crumble_common.messages.image import Image, ImageGet, Kernel, KernelGet
from crumble_common.messages.vm import VirtioFs, VmConfig

if TYPE_CHECKING:
    from crumble.supervisor.origin import Origin
    from crumble.supervisor.vm import Vm

ROOT_TAG = "root"
# What a VM that goes on from a snapshot may take to say so, s.
_WAKE = 30.0
_WATCHDOG_MODULES = frozenset(("watchdog", "sunxi_wdt", "wdat_wdt"))


async def boot(vm: Vm, on_progress: OnProgress) -> None:
    """Takes a VM from its request to a running agent; raises CrumbleError."""
    limit = vm.request.boot_timeout
    if vm.origin is None:
        wanted = "soft" if vm.request.seed else vm.request.hypervisor
        vm.backend = await in_thread(vm.host.loop, lambda: choose(wanted))
        image, kernel = await _materials(vm, on_progress)
        vm.image = image
        vm.boot_key = bootkey.of(vm, image, kernel)
        if origin := vm.host.captures.booted(vm):
            vm.go_on_from(origin)
        else:
            _start(vm, _vm_config(vm, kernel), _fs_config(vm, image))
    if vm.origin is not None:
        limit = min(limit, _WAKE)
        _check_origin(vm)
        await vm.host.captures.check(vm.origin)
        if not (vm.boot_key and await vm.host.reserve.take(vm)):
            _go_on(vm, vm.origin)
    await limited(vm.host.loop, vm.agent, limit, lambda: _no_agent(limit))
    if vm.request.publish:
        await vm.host.networks.listening(vm)
    if vm.origin is not None:
        if vm.network.on and vm.origin.state.net:
            severed = Task(vm.host.networks.sever(vm, vm.origin.state.net))
            severed.then(capture.logged("connections of before go on", vm))
        if vm.late_fsd is None:  # else when its files are wanted
            await rename.rename(vm, vm.origin.about)


def _check_origin(vm: Vm) -> None:
    """UsageError when the back end that is asked for is not the snapshot's."""
    if vm.request.hypervisor not in ("auto", vm.backend.name):
        raise UsageError(
            f"The snapshot was made on {vm.backend.name}, and cannot go on on "
            f"{vm.request.hypervisor}.",
            code="snapshot.hypervisor",
            hint="Leave --hv away.",
        )


def _go_on(vm: Vm, origin: Origin) -> None:
    """From a captured VM's state: no kernel is loaded, nothing is copied."""
    assert vm.image is not None
    kernel = Kernel(vm.backend.architecture, "", "", "", [])
    _start(
        vm,
        dataclasses.replace(_vm_config(vm, kernel), kernel="", restore=origin.state.vm),
        dataclasses.replace(
            _fs_config(vm, vm.image),
            layers=origin.layers,
            injected=[],
            restore=origin.state.fsd,
        ),
    )


def _start(vm: Vm, vm_config: VmConfig, fs_config: FsConfig) -> None:
    """Its memory and its processes."""
    fds = GuestMemory.create(vm.memory).detach()
    for name, fd in fds.items():
        vm.host.fds.put(vm.id, name, fd)
    if vm.origin is not None:
        for name, fd in vm.origin.memory().items():
            fds[name] = vm.host.fds.put(vm.id, name, fd)
    with _Pair() as root, _Pair() as net:
        # vmm first: it has more to do before they meet.
        with recording(vm.request) as given:
            ours = {**fds, **given, "root_fs": root.driver, "net": net.driver}
            _spawn(vm, "vmm", vm_config, ours)
        if vm.origin is not None and LateFsd.suits(vm):
            vm.late_fsd = LateFsd(vm, vm.origin, fs_config, root.device)
        else:
            _spawn(vm, "fsd", fs_config, {**fds, "root_fs": root.device})
        if vm.network.on:
            _connect(vm, {**fds, "net": net.device})


async def _materials(vm: Vm, on_progress: OnProgress) -> tuple[Image, Kernel]:
    """The image and the kernel, fetched at once where they are missing."""
    request, ask = vm.request, vm.host.images.ask
    architecture = vm.backend.architecture
    get = ImageGet(
        request.image,
        f"linux/{architecture}",
        request.pull,  # type: ignore[arg-type]  # checked where the request arrived
        request.operation,
    )
    asked = stamp(architecture)
    known = vm.host.materials.known(request, architecture)
    if known is not None:
        return known
    if request.kernel:
        found = await ask(get, on_progress), Kernel(architecture, "", "", request.kernel, [])
    else:
        image = Task(ask(get, on_progress))
        kernel = Task(ask(KernelGet(architecture, "", request.operation), on_progress))
        found = await both(image, kernel)
    vm.host.materials.remember(request, architecture, found, asked)
    return found


class _Pair:
    """A connection between a device and its driver."""

    def __enter__(self) -> Self:
        self._sockets = socket.socketpair()
        self.device, self.driver = (end.fileno() for end in self._sockets)
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._sockets:
            end.close()


def _connect(vm: Vm, fds: dict[str, int]) -> None:
    """To a `netd` of its own, or to that of its network."""
    path, names = vm.request.capture, vm.host.table["netd"].fds
    with opened(path) if path else contextlib.nullcontext(-1) as capture:
        given = {**fds, "capture": capture} if path else fds
        if vm.network.named is None:
            kept = {name: fd for name, fd in given.items() if name in names and name != "net"}
            vm.netd = Netd(vm, vm.network.netd_config(vm), kept)
            vm.adopt(vm.netd.start(fds["net"]))
        else:
            if path:
                vm.host.fds.put(vm.id, "capture", os.dup(capture))
            vm.host.networks.attach(vm, {name: given[name] for name in names if name in given})


def _spawn(vm: Vm, service: str, config: FsConfig | VmConfig, fds: dict[str, int]) -> None:
    row = vm.host.table[service]
    given = {name: fds[name] for name in row.fds if name in fds}
    name = f"{service}.{vm.name}"
    vm.adopt(vm.host.services.start(row, name, config, vm.event, given))


def _fs_config(vm: Vm, image: Image) -> FsConfig:
    return FsConfig(
        tag=ROOT_TAG,
        socket_fd="root_fs",
        layers=image.layers,
        upper_limit=limits.written_files(),
        lockstep=bool(vm.request.seed),
        shares=vm.request.shares,
        injected=[
            *(InjectedFile(path, data) for path, data in rename.files(vm.hostname).items()),
            InjectedFile("/etc/resolv.conf", vm.network.resolv_conf()),
        ],
    )


def _vm_config(vm: Vm, kernel: Kernel) -> VmConfig:
    request = vm.request
    return VmConfig(
        vm=vm.name,
        kernel=os.path.abspath(kernel.image),  # noqa: PTH100  a link stays a link
        memory=vm.memory,
        cpus=vm.cpus,
        modules=_modules(vm, kernel),
        cmdline=request.cmdline,
        hypervisor=vm.backend.name,
        cpu_model=request.cpu_model,
        transport=vm.transport,
        watchdog=vm.watchdog,
        irqchip=vm.irqchip,
        seed=request.seed.encode(),
        recording="replay" if request.replay else "record" if request.record else "",
        made_of={"image": vm.image.digest} if vm.image else {},
        hostname=vm.hostname,
        dmesg=request.dmesg,
        filesystems=[VirtioFs(ROOT_TAG, "root_fs", LateFsd.suits(vm))],
        network=vm.network.device(),
    )


def _modules(vm: Vm, kernel: Kernel) -> list[str]:
    """Those of the kernel's that this guest needs: loading one takes time."""
    found = vm.network.modules(kernel.modules)
    return [path for path in found if vm.watchdog or Path(path).stem not in _WATCHDOG_MODULES]


def _no_agent(limit: float) -> GuestError:
    return GuestError(
        f"The guest's agent did not answer within {limit:g} s.",
        code="guest.no_agent",
        hint="See with --dmesg what its kernel prints, or give it longer with --boot-timeout.",
    )


def boot_error(problem: BaseException, vm: Vm) -> CrumbleError:
    """Why a VM did not come up, for its requester."""
    if isinstance(problem, CrumbleError):
        return problem
    if isinstance(problem, OSError):
        return HostError(
            f"Cannot make the VM {vm.name}: {problem}.",
            code="host.os",
            hint="Free what it says is lacking, and try again.",
        )
    return UsageError(
        f"The VM {vm.name} was stopped before it was ready.",
        code="vm.stopped",
        hint="Start it again to use it.",
    )
