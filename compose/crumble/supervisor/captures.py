"""What the supervisor does with snapshots: of boots, by name, for forks, and as images."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from crumble.snapshots import manifest as form
from crumble.snapshots.manifest import StoredFile
from crumble.snapshots.store import Store
from crumble.snapshots.verify import is_trusted, verify_and_trust
from crumble.supervisor import bootkey, capture
from crumble.supervisor.origin import Origin
from crumble.supervisor.progress import Saving, Telling
from crumble.supervisor.rehearsal import rehearse
from crumble.supervisor.tasks import Future, Task, in_thread
from crumble_common import log
from crumble_common.errors import CrumbleError, UsageError
from crumble_common.messages import client as messages
from crumble_common.messages.image import Image, ImageCommit

if TYPE_CHECKING:
    from crumble.supervisor.clients import Client
    from crumble.supervisor.supervisor import Supervisor
    from crumble.supervisor.vm import Vm

T = TypeVar("T")

_MAX_FORKS = 1000
# New VMs of a fork that start at once, for each processor.
_AT_ONCE = 4


class Captures:
    """One supervisor's. Everything is called in its loop."""

    def __init__(self, host: Supervisor, store: Store) -> None:
        self._host = host
        self._store = store
        self._making: set[str] = set()
        self._distrusted: set[str] = set()
        self._background: set[Future[Any]] = set()
        self._checking: dict[Path, Future[None]] = {}

    def named(self, name: str) -> Origin:
        """A snapshot in the store, to go on from."""
        return Origin.of(self._store.open(self._store.full_name(name)))

    async def check(self, origin: Origin) -> None:
        """Looks at every byte of a snapshot, unless that was done before; GuestError "snapshot.corrupt"."""
        snapshot = origin.snapshot
        if snapshot is None or is_trusted(snapshot):
            return
        work = self._checking.get(snapshot.path)  # who is not the first one waits for that
        if work is None or work.done:
            work = self.in_thread(lambda: verify_and_trust(snapshot))
            self._checking = {**self._unchecked(), snapshot.path: work}
        await capture.settled(work)
        work.result()

    def _unchecked(self) -> dict[Path, Future[None]]:
        return {path: work for path, work in self._checking.items() if not work.done}

    # Boot snapshots.

    def booted(self, vm: Vm) -> Origin | None:
        """What a VM like `vm` was when it had booted, if there is that. A damaged one is dropped."""
        if not vm.boot_key or (name := bootkey.name(vm.boot_key)) in self._distrusted:
            return None
        try:
            return Origin.of(self._store.open(name))
        except CrumbleError as error:
            if error.code != "snapshot.unknown":
                self._drop(name, error)
            return None

    def sweep(self) -> None:
        """At the start: what supervisors that were killed had begun."""
        with contextlib.suppress(CrumbleError, OSError):  # somebody else's, or read-only
            self._store.sweep()

    def distrust(self, vm: Vm, error: CrumbleError) -> None:
        """A VM could not go on from its boot snapshot: nobody else shall try."""
        name = bootkey.name(vm.boot_key)
        self._distrusted.add(name)
        self._drop(name, error)

    def _drop(self, name: str, why: CrumbleError) -> None:
        log.warning("boot snapshot dropped", snapshot=name, why=why)
        try:
            self._store.remove(name)
        except CrumbleError as error:
            log.warning("boot snapshot stays", snapshot=name, why=error)

    async def boot(self, vm: Vm) -> None:
        """Captures a VM that has just booted, for those to come. Never fails."""
        name = bootkey.name(vm.boot_key)
        if name in self._making | self._distrusted:
            return
        self._making.add(name)
        try:
            await rehearse(vm)
            frame = await self._begin(vm)
        except BaseException as error:
            self._making.discard(name)
            if not isinstance(error, CrumbleError):
                raise
            log.warning("no boot snapshot", vm=vm.name, why=error)
            return
        about = capture.about(vm, frame, "boot", name, vm.boot_key)
        self._in_background(self._keep_boot(vm, frame, about))

    async def _keep_boot(self, vm: Vm, frame: capture.Frame, about: form.Manifest) -> None:
        try:
            await capture.keep(vm, frame, about)
            await self.in_thread(self._store.shrink)
            log.info("boot snapshot kept", vm=vm.name, snapshot=about.name)
        except CrumbleError as error:
            log.warning("no boot snapshot", vm=vm.name, why=error)
        finally:
            self._making.discard(about.name)

    def _in_background(self, work: Coroutine[Any, None, Any]) -> None:
        self._wait_for(Task(work))

    def in_thread(self, call: Callable[[], T]) -> Future[T]:
        """What `call` gives, in a thread that the supervisor does not end without."""
        return self._wait_for(in_thread(self._host.loop, call))

    def _wait_for(self, work: Future[T]) -> Future[T]:
        if not work.done:
            self._background.add(work)
            work.then(lambda _: self._background.discard(work))
        return work

    async def finish(self) -> None:
        """Waits for what goes on in the background; the VMs have ended."""
        while self._background:
            await capture.settled(next(iter(self._background)))

    # Requests.

    async def create(self, client: Client, vm: Vm, name: str) -> messages.SnapshotMade:
        """A snapshot with a name."""
        self._check_name(name)
        telling = Telling(client, "snapshot")
        frame = await self._saved(vm, telling, chained=True)

        def tell(*how_far: Any) -> None:
            self._host.loop.call_soon_threadsafe(lambda: telling.tell(*how_far))

        made = await capture.keep(vm, frame, capture.about(vm, frame, "user", name, {}), tell)
        info = (self._store.path / name / form.MEMORY).stat()
        return messages.SnapshotMade(made.name, frame.pause, info.st_blocks * 512)

    def _check_name(self, name: str) -> None:
        if not form.NAME.fullmatch(name) or name.startswith("boot-"):
            raise UsageError(
                f"{name!r} cannot be a snapshot's name.",
                code="snapshot.name",
                hint="Use letters, digits, dots, hyphens and underscores, and do not begin with boot-.",
            )
        if name in self._store.names():
            raise UsageError(
                f"There is a snapshot {name} already.",
                code="snapshot.exists",
                hint=f"Choose another name, or `crumble snapshot rm {name}` first.",
            )

    async def _begin(self, vm: Vm) -> capture.Frame:
        draft = self._store.begin()
        try:
            return await capture.begin(vm, draft)
        except BaseException:
            draft.discard()
            raise

    async def _saved(self, vm: Vm, telling: Telling, *, chained: bool = False) -> capture.Frame:
        """A capture whose memory and files are in the draft."""
        draft = self._store.begin()
        try:
            with Saving(vm, draft, telling):
                frame = await capture.begin(vm, draft, chained=chained)
                await frame.saved
                return frame
        except BaseException:
            draft.discard()
            raise

    async def fork(self, client: Client, vm: Vm, request: messages.Fork) -> messages.Forked:
        """More of a running VM."""
        if not 1 <= request.count <= _MAX_FORKS:
            raise UsageError(
                f"A VM cannot be forked {request.count} times at once.",
                code="fork.count",
                hint=f"Choose a number from 1 to {_MAX_FORKS}.",
            )
        began = self._host.loop.now()
        telling = Telling(client, "fork")
        frame = await self._saved(vm, telling)
        try:
            origin = self._unnamed(vm, frame)
        except BaseException:
            frame.draft.discard()
            raise
        origin.take()
        try:
            vms = await self._make_all(client, vm, request, origin, telling)
        finally:
            origin.release()
        infos = [made.info() for made in vms]
        return messages.Forked(infos, frame.pause, self._host.loop.now() - began)

    def _unnamed(self, vm: Vm, frame: capture.Frame) -> Origin:
        """Used by clones only, and gone with the last of them."""
        draft = frame.draft
        about = capture.about(vm, frame, "user", vm.name, {})
        layer = {name: StoredFile(0) for name in (form.INDEX, form.CONTENTS) if name in draft.fds}
        about = dataclasses.replace(about, files=layer)
        return Origin(about, frame.state, draft.path, draft.discard)

    async def _make_all(
        self, client: Client, vm: Vm, request: messages.Fork, origin: Origin, telling: Telling
    ) -> list[Vm]:
        made: list[Vm] = []
        width = _AT_ONCE * (os.cpu_count() or 1)
        try:
            for start in range(0, request.count, width):
                numbers = range(start, min(start + width, request.count))
                tasks = [
                    Task(self._host.make(client, _clone(vm, request, number), origin))
                    for number in numbers
                ]
                for task in tasks:
                    await capture.settled(task)
                made += [task.result() for task in tasks if not task.failed]
                for task in tasks:
                    task.result()
                if len(made) < request.count:
                    telling.tell("clones", len(made), request.count, "VMs")
        except BaseException:
            for one in made:
                one.stop(0)
            raise
        return made

    async def commit(self, client: Client, vm: Vm, request: messages.Commit) -> Image:
        """An image of what a VM's files are now."""
        if vm.image is None:
            raise UsageError(f"The VM {vm.name} is still starting.", code="vm.not_running")
        draft = self._store.begin()
        try:
            changed = await capture.files_only(vm, draft, request.excludes)
            work = ImageCommit(
                base=vm.image.digest,
                index=str(draft.path / form.INDEX) if changed else "",
                contents=str(draft.path / form.CONTENTS) if changed else "",
                reference=request.reference,
                config=request.config,
                comment=request.comment,
            )
            image: Image = await self._host.images.ask(
                work, lambda event: client.deliver(event, "images")
            )
            return image
        finally:
            await self.in_thread(draft.discard)


def _clone(vm: Vm, request: messages.Fork, number: int) -> messages.VmCreate:
    name = request.name
    if name and request.count > 1:
        name = f"{name}-{number + 1}"
    assert vm.image is not None
    return dataclasses.replace(
        vm.request, name=name, hostname="", image=vm.request.image or vm.image.reference,
        snapshot="", detach=request.detach, main=None, dmesg=False, publish=[], capture="",
    )  # fmt: skip
