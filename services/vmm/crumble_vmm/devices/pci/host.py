"""The PCI host bridge: ECAM for one bus (PCI Express Base 4.0, §7.2.2) and the window that BARs are in.

Nothing is behind it but functions 0; a guest places their BARs where it wants in the window, and the
window's registers find them there. Any vCPU thread.
"""

from __future__ import annotations

import threading

from crumble_vmm.chipset.builder import Device
from crumble_vmm.chipset.bus import Registers
from crumble_vmm.devices.pci.function import CONFIG_SIZE, Function, host_bridge
from crumble_vmm.hypervisor.address_space import Region

ECAM_SIZE = 1 << 20
_DEVICES = 32
_ABSENT = 0xFFFF_FFFF


class PciHost(Device):
    """Bus 0. Its own function is device 0."""

    name = "pci"

    def __init__(self, window: Region) -> None:
        self.window = window
        self.functions: list[Function] = [host_bridge()]
        self._free = window.base
        self._lock = threading.Lock()

    def add(self, function: Function) -> int:
        """Puts a function on the bus, its BARs into the window; gives its device number."""
        number = len(self.functions)
        assert number < _DEVICES
        for bar, (size, _) in function.bars.items():
            self._free = -(-self._free // size) * size
            function.place(bar, self._free)
            self._free += size
        assert self._free <= self.window.end
        self.functions.append(function)
        return number

    def mmio_read(self, offset: int, size: int, /) -> int:
        """Configuration space. Where no function is, all ones."""
        function = self._function(offset)
        if function is None or size > 4:
            return _ABSENT & (1 << 8 * size) - 1
        with self._lock:
            return function.read(offset % CONFIG_SIZE, size)

    def mmio_write(self, offset: int, size: int, value: int, /) -> None:
        """As mmio_read."""
        function = self._function(offset)
        if function is not None and size <= 4:
            with self._lock:
                function.write(offset % CONFIG_SIZE, size, value)

    def _function(self, offset: int) -> Function | None:
        """Offset: bus, 8 bits; device, 5; function, 3; register, 12."""
        number, inner = divmod(offset // CONFIG_SIZE, 8)
        return self.functions[number] if inner == 0 and number < len(self.functions) else None


class Window:
    """The memory that BARs are decoded in."""

    def __init__(self, host: PciHost) -> None:
        self._host = host

    def mmio_read(self, offset: int, size: int, /) -> int:
        """Where no BAR is, all ones: the master abort of PCI."""
        found = self._find(offset, size)
        if found is None:
            return (1 << 8 * size) - 1
        registers, at = found
        return registers.mmio_read(at, size)

    def mmio_write(self, offset: int, size: int, value: int, /) -> None:
        """As mmio_read."""
        if (found := self._find(offset, size)) is not None:
            registers, at = found
            registers.mmio_write(at, size, value)

    def _find(self, offset: int, size: int) -> tuple[Registers, int] | None:
        """The BAR that is there, and where in it."""
        address = self._host.window.base + offset
        for function in self._host.functions:
            for number, (length, registers) in function.bars.items():
                base = function.bar(number)
                if base is not None and base <= address <= base + length - size:
                    return registers, address - base
        return None
