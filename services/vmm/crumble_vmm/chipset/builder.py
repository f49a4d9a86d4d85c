"""The chipset, made by a builder and immutable afterwards (D1).

    builder = ChipsetBuilder()
    builder.add(uart, [Mapping(space.add_mmio("uart", UART_BASE, 0x100), uart)])
    chipset = builder.build()

A name or an address used twice is refused when the builder meets it. Devices start and reset in the
order they were added, and stop in the reverse, so what a device needs is added before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from crumble_common.errors import InternalError
from crumble_vmm.chipset.bus import Bus, Mapping
from crumble_vmm.snapshot.state import NoState


class Device:
    """What the chipset knows of a device. The defaults suit one that only has registers."""

    name: str = ""
    state_type: ClassVar[type[Any]] = NoState
    """The dataclass of its state in a snapshot (snapshot/state.py)."""

    def get_state(self) -> Any:
        """Its state. No vCPU is running, and it is halted."""
        return NoState()

    def set_state(self, state: Any) -> None:
        """Takes over the state of the device it goes on for; before `start`.

        Raises ValueError when the device could never be in it.
        """

    def halt(self) -> None:
        """Has what works for the guest outside this process pause. No vCPU is running."""

    def go_on(self) -> None:
        """Ends `halt`."""

    def pause(self) -> None:
        """The guest stands, for as long as someone wants: its time does. Any thread, also again."""

    def resume(self) -> None:
        """Ends `pause`. Any thread, also again."""

    def start(self) -> None:
        """The machine is about to run: threads, timers and sockets may begin."""

    def stop(self) -> None:
        """The machine has stopped: give everything back. Also after a failed start."""

    def reset(self) -> None:
        """Registers as at power-on. No vCPU is running."""


class RegisterDevice(Device, ABC):
    """A device with one block of registers, which it serves itself (bus.Registers)."""

    @abstractmethod
    def mmio_read(self, offset: int, size: int, /) -> int:
        """See bus.Registers."""

    @abstractmethod
    def mmio_write(self, offset: int, size: int, value: int, /) -> None:
        """See bus.Registers."""


@dataclass(frozen=True, slots=True)
class Chipset:
    """Devices by name in start order, and the bus that reaches them."""

    devices: MappingProxyType[str, Device]
    bus: Bus

    def start(self) -> None:
        """Starts every device; when one fails, those started are stopped again."""
        started: list[Device] = []
        try:
            for device in self.devices.values():
                started.append(device)
                device.start()
        except BaseException:
            for device in reversed(started):
                device.stop()
            raise

    def stand(self, still: bool) -> None:
        """The guest stands, or does not."""
        for device in self.devices.values():
            if still:
                device.pause()
            else:
                device.resume()

    def stop(self) -> None:
        """Stops every device, the last one first."""
        for device in reversed(tuple(self.devices.values())):
            device.stop()

    def reset(self) -> None:
        """Puts every device back to power-on."""
        for device in self.devices.values():
            device.reset()


class ChipsetBuilder:
    """Collects devices; `build` may be called once."""

    def __init__(self) -> None:
        self._devices: dict[str, Device] = {}
        self._mappings: list[Mapping] = []
        self._built = False

    def add(self, device: Device, mappings: Sequence[Mapping] = ()) -> None:
        """Adds a device and where its registers are; raises InternalError on any clash."""
        if self._built:
            raise InternalError(f"The chipset is built; {device.name} is late.", code="vmm.chipset")
        if not device.name or device.name in self._devices:
            raise InternalError(f"Two devices are called {device.name!r}.", code="vmm.chipset")
        for new in mappings:
            for old in self._mappings:
                if new.region.base < old.region.end and old.region.base < new.region.end:
                    raise InternalError(
                        f"{device.name}: {new.region} overlaps {old.region}.", code="vmm.chipset"
                    )
            self._mappings.append(new)
        self._devices[device.name] = device

    def build(self) -> Chipset:
        """The finished chipset."""
        self._built = True
        return Chipset(MappingProxyType(dict(self._devices)), Bus(self._mappings))
