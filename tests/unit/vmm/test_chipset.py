"""The chipset builder, the bus and the interrupt lines."""

import dataclasses

import pytest

from crumble_common.errors import InternalError
from crumble_vmm.chipset.builder import ChipsetBuilder, Device
from crumble_vmm.chipset.bus import Bus, Mapping
from crumble_vmm.chipset.lines import LineSet, Trigger
from crumble_vmm.hypervisor.address_space import Kind, Region


class Recorder(Device):
    """A device that writes down what happens to it."""

    def __init__(self, name: str, log: list[object], fail: bool = False) -> None:
        self.name, self.log, self.fail = name, log, fail

    def start(self) -> None:
        self.log.append(("start", self.name))
        if self.fail:
            raise OSError("no")

    def stop(self) -> None:
        self.log.append(("stop", self.name))

    def reset(self) -> None:
        self.log.append(("reset", self.name))

    def mmio_read(self, offset: int, size: int) -> int:
        self.log.append((self.name, "read", offset, size))
        return 0x55

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        self.log.append((self.name, "write", offset, size, value))


def region(base: int, size: int) -> Region:
    return Region(f"at {base:#x}", base, size, Kind.MMIO)


def test_bus_routes_by_address_and_ignores_what_nobody_claims() -> None:
    log: list[object] = []
    a, b = Recorder("a", log), Recorder("b", log)
    bus = Bus([Mapping(region(0x2000, 0x10), b), Mapping(region(0x1000, 0x1000), a)])
    assert bus.read(0x1FFC, 4) == 0x55
    bus.write(0x2008, 8, 7)
    assert log == [("a", "read", 0xFFC, 4), ("b", "write", 8, 8, 7)]
    assert bus.unclaimed == 0
    assert bus.read(0x0, 4) == 0
    assert bus.read(0x200C, 8) == 0
    assert bus.read(0x1FFE, 4) == 0
    bus.write(0x5000, 1, 1)
    assert bus.unclaimed == 4
    assert len(log) == 2


def test_builder_refuses_names_and_addresses_used_twice() -> None:
    log: list[object] = []
    builder = ChipsetBuilder()
    device = Recorder("a", log)
    builder.add(device, [Mapping(region(0x1000, 0x100), device)])
    with pytest.raises(InternalError, match="called 'a'"):
        builder.add(Recorder("a", log))
    with pytest.raises(InternalError, match="overlaps"):
        builder.add(Recorder("b", log), [Mapping(region(0x10FF, 1), device)])
    with pytest.raises(InternalError):
        builder.add(Recorder("", log))


def test_chipset_is_immutable_and_ordered() -> None:
    log: list[object] = []
    builder = ChipsetBuilder()
    for name in "abc":
        builder.add(Recorder(name, log))
    chipset = builder.build()
    with pytest.raises(InternalError, match="late"):
        builder.add(Recorder("d", log))
    with pytest.raises(dataclasses.FrozenInstanceError):
        chipset.bus = Bus([])  # type: ignore[misc]  # it must not
    with pytest.raises(TypeError):
        chipset.devices["x"] = Device()  # type: ignore[index]  # it must not
    chipset.start()
    chipset.reset()
    chipset.stop()
    events = [(verb, name) for verb in ("start", "reset") for name in "abc"]
    assert log == [*events, ("stop", "c"), ("stop", "b"), ("stop", "a")]


def test_a_failed_start_stops_what_was_started() -> None:
    log: list[object] = []
    builder = ChipsetBuilder()
    for name in "abc":
        builder.add(Recorder(name, log, fail=name == "b"))
    with pytest.raises(OSError, match="no"):
        builder.build().start()
    assert log == [("start", "a"), ("start", "b"), ("stop", "b"), ("stop", "a")]


def test_lines_belong_to_one_device_each() -> None:
    driven: list[tuple[int, bool]] = []
    lines = LineSet(4, lambda number, level: driven.append((number, level)))
    uart = lines.claim("uart", 2)
    assert uart.trigger is Trigger.LEVEL
    for number in (0, 2, 5):
        with pytest.raises(InternalError):
            lines.claim("other", number)
    assert [lines.allocate("x").number for _ in range(3)] == [1, 3, 4]
    with pytest.raises(InternalError, match="No interrupt line"):
        lines.allocate("y")
    assert [line.number for line in lines.claimed] == [1, 2, 3, 4]
    uart.set(True)
    uart.set(False)
    uart.pulse()
    assert driven == [(2, True), (2, False)] * 2
