"""The files that name a guest: those of one that went on from a snapshot still have the old name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from crumble.snapshots.manifest import Manifest
from crumble_common import log
from crumble_common.errors import CrumbleError
from crumble_common.messages.vm import FileData, FileRead, FileWrite

if TYPE_CHECKING:
    from crumble.supervisor.vm import Vm


def files(hostname: str) -> dict[str, bytes]:
    """By path."""
    hosts = f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n"
    return {"/etc/hostname": f"{hostname}\n".encode(), "/etc/hosts": hosts.encode()}


async def rename(vm: Vm, about: Manifest) -> None:
    """Writes them anew. Those that somebody has changed are theirs: they stay."""
    if vm.hostname == about.hostname:
        return
    new, old = files(vm.hostname), files(about.hostname)
    if about.kind == "boot":
        for path, data in new.items():
            # Nobody can have. Requests are served in order: the first process finds it done.
            vm.vmm.request(FileWrite(path, data))
        return
    read = {path: vm.vmm.request(FileRead(path)) for path in new}
    written = {}
    for path, answer in read.items():
        with _told(vm, path):
            found: FileData = await answer
            if found.data == old[path]:
                written[path] = vm.vmm.request(FileWrite(path, new[path]))
    for path, answer in written.items():
        with _told(vm, path):
            await answer


@contextlib.contextmanager
def _told(vm: Vm, path: str) -> Iterator[None]:
    try:
        yield
    except CrumbleError as error:
        log.info("guest keeps the old name", vm=vm.name, path=path, why=error)
