"""The files that name a guest: those of one that went on from a snapshot still have the old name."""

from __future__ import annotations

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
    old = files(about.hostname)
    for path, data in files(vm.hostname).items():
        if about.kind == "boot":
            # Nobody can have. Requests are served in order: the first process finds it done.
            vm.vmm.request(FileWrite(path, data))
            continue
        try:
            found: FileData = await vm.vmm.request(FileRead(path))
            if found.data == old[path]:
                await vm.vmm.request(FileWrite(path, data))
        except CrumbleError as error:
            log.info("guest keeps the old name", vm=vm.name, path=path, why=error)
