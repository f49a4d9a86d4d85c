"""Where gdb finds a VM: a listening socket, handed to the VM's `vmm`."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crumble_common.errors import HostError, UsageError
from crumble_common.messages.debug import DebugAddress, DebugStart

if TYPE_CHECKING:
    from crumble.supervisor.vm import Vm


async def start(vm: Vm, wanted: DebugStart) -> Any:
    """Lets gdb connect, and says where."""
    listener, address = listen(vm.host.instance.path, vm.id, wanted.tcp_port)
    with listener:
        vmm = vm.awake()
        vmm.give("debug", listener.fileno())
        await vmm.request(DebugStart(listen_fd="debug"))
    return DebugAddress(address)


def listen(place: Path, vm: str, port: int) -> tuple[socket.socket, str]:
    """A socket in the runtime directory, or on the loopback; and what gdb's `target remote` takes.

    Everybody on this host can connect to a loopback port; the directory is the user's alone.
    """
    if not -1 <= port < 1 << 16:
        raise UsageError(
            f"{port} is not a port.", code="debug.port", hint="Give 0 for any free one."
        )
    listener = socket.socket(socket.AF_UNIX if port < 0 else socket.AF_INET)
    try:
        if port < 0:
            path = place / f"gdb-{vm}"
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            listener.bind(str(path))
            address = str(path)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise HostError(
            f"Cannot listen for a debugger: {error.strerror}.",
            code="debug.listen",
            hint="Choose another port.",
        ) from None
    return listener, address
