"""MSI-X (PCI Local Bus 3.0, §6.8.2): a table of messages in a BAR, and the pending bits."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from crumble_vmm.devices.pci.function import Function
from crumble_vmm.hypervisor.base import MessageInterrupt

CAPABILITY = 0x11
ENTRY_SIZE = 16
_MASKED = 1
_ENABLE, _MASK_ALL = 1 << 15, 1 << 14
NO_VECTOR = 0xFFFF


class Msix:
    """A function's vectors, each with its way to a LAPIC. Registers: the table."""

    def __init__(
        self,
        function: Function,
        vectors: Sequence[MessageInterrupt],
        bar: int,
        table: int,
        pending: int,
    ) -> None:
        self._function, self._vectors = function, vectors
        self._table = bytearray(struct.pack("<12xI", _MASKED) * len(vectors))
        self._waiting = [False] * len(vectors)
        body = struct.pack("<HII", len(vectors) - 1, table | bar, pending | bar)
        self._at = function.add_capability(CAPABILITY, body, b"\x00\xc0")

    @property
    def enabled(self) -> bool:
        """The driver uses it instead of INTx."""
        return bool(self._control & _ENABLE)

    @property
    def _control(self) -> int:
        # Not by `read`, which is the driver's and takes its owner's lock: this is asked at each interrupt.
        (control,) = struct.unpack_from("<H", self._function.config, self._at + 2)
        return int(control)

    def owns(self, offset: int, size: int) -> bool:
        """These bytes of configuration space are its control."""
        return offset < self._at + 4 and offset + size > self._at

    def vector(self, number: int) -> MessageInterrupt | None:
        """One of them; None for a number that is none's."""
        return self._vectors[number] if number < len(self._vectors) else None

    def send(self, number: int) -> None:
        """An interrupt; one that is masked waits."""
        if number >= len(self._vectors):
            return
        if self._open(number):
            self._vectors[number].send()
        else:
            self._waiting[number] = True

    def update(self) -> None:
        """Control or table have changed: routes, and sends what waited."""
        for number, vector in enumerate(self._vectors):
            address, data, _ = self._entry(number)
            vector.route(address, data) if self._open(number) else vector.route(0, 0)
            if self._open(number) and self._waiting[number]:
                self._waiting[number] = False
                vector.send()

    def _entry(self, number: int) -> tuple[int, int, int]:
        address, data, control = struct.unpack_from("<QII", self._table, number * ENTRY_SIZE)
        return address, data, control

    def _open(self, number: int) -> bool:
        control = self._control
        return control & (_ENABLE | _MASK_ALL) == _ENABLE and not self._entry(number)[2] & _MASKED

    def mmio_read(self, offset: int, size: int, /) -> int:
        """The table: 32 and 64 bits."""
        return int.from_bytes(self._table[offset : offset + size], "little")

    def mmio_write(self, offset: int, size: int, value: int, /) -> None:
        """As mmio_read."""
        if size in (4, 8) and offset + size <= len(self._table):
            self._table[offset : offset + size] = value.to_bytes(size, "little")
            self.update()

    def pending(self, offset: int, size: int) -> int:
        """The pending bits."""
        bits = sum(waits << number for number, waits in enumerate(self._waiting))
        return bits >> 8 * offset & (1 << 8 * size) - 1

    def get_state(self) -> bytes:
        """The table and what waits."""
        return bytes(self._table) + bytes(self._waiting)

    def set_state(self, state: bytes) -> None:
        """What get_state gave; ValueError."""
        if len(state) != len(self._table) + len(self._waiting):
            raise ValueError("an MSI-X table of another size")
        self._table[:] = state[: len(self._table)]
        self._waiting = [byte != 0 for byte in state[len(self._table) :]]
