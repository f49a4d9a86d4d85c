"""What is pure of arm64 on KVM: the order in which a GIC is set, and the routes of messages."""

import pytest

from crumble_vmm.hypervisor.kvm.arm64_state import gic_registers, gic_version
from crumble_vmm.hypervisor.kvm.messages import Routes

# KVM_DEV_ARM_VGIC_GRP_*
DISTRIBUTOR, CPU_INTERFACE_V2, CONTROL, REDISTRIBUTOR, ITS = 1, 2, 4, 5, 8
TABLES, CTLR = (CONTROL, 2), (ITS, 0)
PINS, DEVICE, MESSAGE = 64, 3 << 3, (0x0809_0040, 7)


@pytest.mark.parametrize(("version", "its"), [(2, False), (3, False), (3, True)])
def test_every_register_is_set_once(version: int, its: bool) -> None:
    registers = gic_registers(version, 64, 2, its=its)
    assert len(registers) == len(set(registers))
    groups = {group for group, _ in registers}
    assert (CPU_INTERFACE_V2 in groups) == (version == 2)
    assert (REDISTRIBUTOR in groups) == (version == 3)
    assert (ITS in groups) == its


def test_states_of_versions_are_told_apart() -> None:
    for cpus in range(1, 9):
        for version, its in ((2, False), (3, False), (3, True)):
            size = 8 * len(gic_registers(version, 64, cpus, its=its))
            assert gic_version(bytes(size), 64, cpus) == version
            assert gic_version(bytes(size - 8), 64, cpus) == 0
    assert gic_version(b"", 64, 1) == 0


def test_each_cpu_has_its_own_private_interrupts() -> None:
    enabled = [at for group, at in gic_registers(2, 64, 2, its=False) if at & 0xFFFFFFFF == 0x100]
    assert enabled == [0x100, 1 << 32 | 0x100]


def test_an_its_reads_its_tables_when_it_knows_where_they_are_and_starts_then() -> None:
    """arm-vgic-its.rst, "ITS Restore Sequence"; a redistributor takes LPIs when it knows of them."""
    order = gic_registers(3, 64, 2, its=True)
    assert order[-2:] == [TABLES, CTLR]
    at = order.index
    assert at((ITS, 0x80)) < at((ITS, 0x90)) < at(TABLES), "GITS_CBASER takes GITS_CREADR back"
    for cpu in (0, 1 << 32):
        assert at((REDISTRIBUTOR, cpu | 0x7C)) < at((REDISTRIBUTOR, cpu)) < at((ITS, 0x80))


class Table:
    """What the kernel was told."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int, int]] = []
        self.routes: tuple[int, list[tuple[int, int, int]]] = (0, [])
        self.fds: dict[int, int] = {}

    def signal_msi(self, address: int, data: int, device: int = 0) -> None:
        self.sent.append((address, data, device))

    def set_routes(self, pins: int, messages: list[tuple[int, int, int]]) -> None:
        self.routes = pins, list(messages)

    def irqfd(self, gsi: int, fd: int, *, on: bool = True) -> None:
        self.fds[fd] = gsi if on else -1


def test_messages_come_after_the_pins_and_name_their_device() -> None:
    table = Table()
    routes = Routes(table, PINS)  # type: ignore[arg-type]
    routes.add(DEVICE)
    message = routes.add(DEVICE)
    message.add_call_fd(9)
    message.send()
    assert table.fds == {9: PINS + 1} and table.sent == [], "there is nothing to send yet"
    message.route(*MESSAGE)
    assert table.routes == (PINS, [(0, 0, 0), (*MESSAGE, DEVICE)])
    assert table.sent == [(*MESSAGE, DEVICE)], "the eventfd may have rung before"
    message.route(*MESSAGE)
    message.send()
    assert table.sent == [(*MESSAGE, DEVICE)] * 2
    message.remove_call_fd(9)
    assert table.fds == {9: -1}
