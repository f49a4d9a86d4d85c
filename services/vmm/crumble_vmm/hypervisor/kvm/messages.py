"""The kernel's routing table: what interrupts are messages, and those that devices send."""

from __future__ import annotations

from crumble_native import kvm
from crumble_vmm.hypervisor.base import MessageInterrupt

# Address and data; and whose it is, for an ITS.
Message = tuple[int, int]
NONE: Message = (0, 0)


class Routes:
    """Numbered `pins` and up. pins: numbers of the kernel's controller. fds: call fds of each message."""

    def __init__(self, vm: kvm.Vm, pins: int, count: int = 0) -> None:
        """count: how many there are already."""
        self._vm, self._pins = vm, pins
        self._messages = [(*NONE, 0)] * count
        self.fds = [0] * count

    def add(self, device: int = 0) -> MessageInterrupt:
        """One more, of what has this requester ID; 0: nobody asks."""
        self._messages.append((*NONE, 0))
        self.fds.append(0)
        return _Message(self, len(self.fds) - 1, device)

    def send(self, message: Message, device: int = 0) -> None:
        """Now."""
        self._vm.signal_msi(*message, device)

    def irqfd(self, index: int, fd: int, *, on: bool) -> None:
        """The kernel sends it when `fd` rings; or no longer."""
        self._vm.irqfd(self._pins + index, fd, on=on)
        self.fds[index] += 1 if on else -1

    def set(self, index: int, message: Message, device: int = 0) -> None:
        """The kernel sends it for call fds; one that rang while there was no message is made up for."""
        unmasked = self._messages[index][:2] == NONE != message
        self._messages[index] = (*message, device)
        self._vm.set_routes(self._pins, self._messages)
        if unmasked and self.fds[index]:
            self.send(message, device)


class _Message(MessageInterrupt):
    """An entry of the table."""

    def __init__(self, routes: Routes, index: int, device: int) -> None:
        self._routes, self._index, self._device = routes, index, device
        self._message = NONE

    def route(self, address: int, data: int) -> None:
        if (address, data) != self._message:
            self._message = address, data
            self._routes.set(self._index, self._message, self._device)

    def send(self) -> None:
        if self._message != NONE:
            self._routes.send(self._message, self._device)

    def add_call_fd(self, fd: int) -> None:
        self._routes.irqfd(self._index, fd, on=True)

    def remove_call_fd(self, fd: int) -> None:
        self._routes.irqfd(self._index, fd, on=False)
