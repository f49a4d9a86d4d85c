"""A capture of a running VM, step by step: freeze, collect, thaw; then memory is saved while it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crumble.snapshots import manifest as form
from crumble.snapshots.draft import Draft
from crumble.snapshots.manifest import Manifest, SavedImage
from crumble.snapshots.meter import Tell, silent
from crumble.snapshots.store import State
from crumble.supervisor import lineage
from crumble.supervisor.tasks import Future, limited
from crumble_common import __version__, log
from crumble_common.errors import CrumbleError, GuestError, HostError, InternalError
from crumble_common.messages.fs import FsCaptured, FsFreeze, FsFrozen
from crumble_common.messages.net import NetFreeze, NetFrozen
from crumble_common.messages.vm import Captured, Freeze, Frozen, Sync, Thaw

if TYPE_CHECKING:
    from crumble.supervisor.services import ServiceProcess
    from crumble.supervisor.vm import Vm

# What a guest may stand still at most before the capture is given up, s.
_STILL = 10.0
# What a guest may take to write back its files before a commit, s.
_SYNC = 60.0


@dataclass(frozen=True)
class Frame:
    """A VM at one moment. pause: how long it stood still, s. saved: resolved when `draft` has its memory and files.

    parent: what that builds on; runs: where it then has pages. hostname: the name that the guest's files have.
    """

    draft: Draft
    state: State
    pause: float
    saved: Future[None]
    parent: Manifest | None = None
    runs: bytes = b""
    hostname: str = ""


async def begin(vm: Vm, draft: Draft, *, chained: bool = False) -> Frame:
    """Captures into `draft`; the VM runs again when this returns. Raises CrumbleError: then it runs, too.

    chained: only what was written since the last snapshot in the store, when the VM comes from there.
    """
    while vm.saving is not None and not vm.saving.done:  # one at a time
        await settled(vm.saving)
    vmm, fsd = vm.vmm, vm.fsd
    saved: Future[None] = Future()
    vm.saving, vm.save_error = saved, ""
    try:
        parent = lineage.link_parents(vm, draft) if chained else None
        return await _stand_still(vm, vmm, fsd, draft, saved, parent)
    except BaseException as error:
        saved.fail(error)
        raise


async def _stand_still(
    vm: Vm, vmm: ServiceProcess, fsd: ServiceProcess, draft: Draft, saved: Future[None],
    parent: Manifest | None,
) -> Frame:  # fmt: skip
    loop = vm.host.loop
    nets = [await vm.host.networks.of(vm)] if vm.network.on else []
    for service in (fsd, *(net for net, _ in nets)):
        await service.ready  # a guest is not to stand still for one that starts
    memory = draft.create(form.MEMORY)
    os.ftruncate(memory, vm.memory)
    for service in (vmm, fsd):
        service.give("capture", memory)
    for net, _ in nets:
        net.give(f"capture.{vm.id}", memory)
    fsd.give("index", draft.create(form.INDEX))
    fsd.give("contents", draft.create(form.CONTENTS))
    for name, path in layer_links(vm).items():
        draft.link(name, path)
    hostname = await vm.late_fsd.hostname() if vm.late_fsd else vm.hostname
    vm.lineage, vm.unsaved, runs, connections = None, {Captured}, b"", b""
    began = loop.now()
    frozen: Frozen = await _soon(vm, vmm, Freeze("capture", parent is not None))
    try:
        if parent is not None:
            runs = lineage.frozen_runs(vm)
        for net, guest in nets:
            told: NetFrozen = await _soon(vm, net, NetFreeze(f"capture.{vm.id}", guest))
            connections = told.connections
        files: FsFrozen = await _soon(vm, fsd, FsFreeze("capture", "index", "contents"))
        if files.pending:
            vm.unsaved.add(FsCaptured)
    except BaseException:
        vmm.request(Thaw(abort=True))
        raise
    await _soon(vm, vmm, Thaw())
    pause = loop.now() - began
    log.info("captured", vm=vm.name, pause_ms=round(pause * 1000, 1), changed=files.changed)
    if not files.changed:
        draft.drop(form.INDEX)
        draft.drop(form.CONTENTS)
    state = State(frozen.state, files.state, connections)
    return Frame(draft, state, pause, saved, parent, runs, hostname)


def _soon(vm: Vm, service: ServiceProcess, body: Any) -> Future[Any]:
    def late() -> CrumbleError:
        return InternalError(f"{service.name} does not answer.", code="service.late")

    return limited(vm.host.loop, service.request(body), _STILL, late)


def ended(vm: Vm, event: Captured | FsCaptured) -> None:
    """The memory is saved, or the files; or they will not be."""
    if vm.saving is None or type(event) not in vm.unsaved:
        return  # of one that was given up
    vm.unsaved.discard(type(event))
    vm.save_error = vm.save_error or event.error
    if vm.unsaved:
        return
    if vm.save_error:
        vm.saving.fail(HostError(vm.save_error, code="snapshot.failed"))
    else:
        vm.saving.set(None)


async def files_only(vm: Vm, draft: Draft, excludes: list[str]) -> bool:
    """What the guest has written, as an image's layer; False when that is nothing."""
    await vm.named()
    await limited(vm.host.loop, vm.awake().request(Sync()), _SYNC, _unsynced)
    fsd = vm.fsd
    fsd.give("index", draft.create(form.INDEX))
    fsd.give("contents", draft.create(form.CONTENTS))
    files: FsFrozen = await fsd.request(FsFreeze("", "index", "contents", excludes))
    return files.changed


def _unsynced() -> CrumbleError:
    return GuestError(
        f"The guest did not write back its files within {_SYNC:g} s.",
        code="guest.late",
        hint="Try again when it is less busy.",
    )


def about(vm: Vm, frame: Frame, kind: str, name: str, key: dict[str, str]) -> Manifest:
    """What there is to say about a VM that is captured."""
    image = vm.image
    if image is None:
        raise GuestError(f"The VM {vm.name} is still starting.", code="vm.not_running")
    return Manifest(
        kind=kind,
        name=name,
        created=time.time(),
        cpus=vm.cpus,
        memory=vm.memory,
        hostname=frame.hostname,
        image=SavedImage(
            reference=image.reference,
            digest=image.digest,
            id=image.id,
            config=image.config,
            layers=[layer_name(layer.index) for layer in image.layers],
        ),
        files={},
        key=key,
        network=vm.network.kind,
        architecture=vm.backend.architecture,
        hypervisor=vm.backend.name,
        transport=vm.transport,
        watchdog=vm.watchdog,
        irqchip=vm.irqchip,
        shares=[share.target for share in vm.request.shares],
        crumble=__version__,
    )


def layer_name(path: str) -> str:
    """The name that the image store has for a layer; any other's own."""
    return path.rpartition("/")[2].removesuffix(".index")


def layer_links(vm: Vm) -> dict[str, str]:
    """Its image's layers that only the snapshot has which it went on from: ours, too, from now on."""
    found = {}
    if vm.origin is not None:
        home = f"{vm.origin.path}/"
        for number, layer in enumerate(vm.origin.image_layers):
            if layer.index.startswith(home):
                found[f"image-{number}.index"] = layer.index
                found[f"image-{number}.contents"] = layer.contents
    return found


async def keep(vm: Vm, frame: Frame, manifest: Manifest, tell: Tell = silent) -> Manifest:
    """Waits for the memory and publishes; the draft is gone in any case. Raises CrumbleError.

    tell: how far the sums are, from another thread.
    """
    captures, store = vm.host.captures, vm.host.store

    def publish() -> Manifest:
        if frame.parent is None:
            return store.publish(frame.draft, manifest, frame.state, tell=tell)
        runs = lineage.thicken(frame.draft, frame.runs)
        made = lineage.named(manifest, frame.parent)
        return store.publish(frame.draft, made, frame.state, runs, tell)

    try:
        await frame.saved
        made = await captures.in_thread(publish)
        if vm.saving is frame.saved:  # no other capture has begun
            vm.lineage = made
        return made
    finally:
        await captures.in_thread(frame.draft.discard)


async def settled(future: Future[Any]) -> None:
    """Waits, whatever comes of it."""
    done: Future[None] = Future()
    future.then(lambda _: done.set(None))
    await done


def logged(call: str, vm: Vm) -> Callable[[Future[Any]], None]:
    """For what goes on in the background: a failure is a line in the log."""

    def look(done: Future[Any]) -> None:
        try:
            done.result()
        except BaseException as error:  # noqa: BLE001  the VM goes on
            log.warning(call, vm=vm.name, error=error)

    return look
