"""The service with machines of a few instructions: how guests end, and what is said of it."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from crumble_common.errors import CrumbleError, GuestError, UsageError
from crumble_common.messages import vm as messages
from crumble_common.messages.image import ImageList
from crumble_common.messages.vm import ConsoleOutput, VmConfig, VmEvent
from crumble_vmm.boards.riscv64 import WATCHDOG_BASE
from crumble_vmm.chipset.builder import Chipset
from crumble_vmm.chipset.bus import Bus
from crumble_vmm.chipset.lines import Line, Trigger
from crumble_vmm.devices import watchdog
from crumble_vmm.devices.pl011 import Pl011
from crumble_vmm.devices.serial import SerialPort
from crumble_vmm.devices.uart8250 import Uart8250
from crumble_vmm.machine import Machine
from framework.guest_vm import GuestVm
from framework.tiny_kernel import A0, TinyKernel

MIB = 1 << 20


@pytest.fixture
def config(tmp_path: Path) -> Callable[[TinyKernel], VmConfig]:
    def make(kernel: TinyKernel, **fields: Any) -> VmConfig:
        path = tmp_path / "kernel"
        path.write_bytes(kernel.image())
        return VmConfig(vm="vm1", kernel=str(path), memory=64 * MIB, **fields)

    return make


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


Make = Callable[..., VmConfig]


def kernel(*steps: Callable[[TinyKernel], None]) -> TinyKernel:
    made = TinyKernel()
    for step in steps:
        step(made)
    return made


def test_power_off(config: Make) -> None:
    with GuestVm(config(kernel(TinyKernel.power_off))) as vm:
        assert vm.wait_end() == VmEvent("vm1", "poweroff", "The guest powered off.")


def test_reset(config: Make) -> None:
    with GuestVm(config(kernel(TinyKernel.reset))) as vm:
        assert vm.wait_end() == VmEvent("vm1", "reset", "The guest asked for a cold reboot.")


def test_crash(config: Make) -> None:
    with GuestVm(config(kernel(lambda k: k.print("oops\n"), TinyKernel.crash))) as vm:
        event = vm.wait_end()
    assert event.kind == "crash"
    assert "trap vector" in event.detail


def test_panic_is_told(config: Make) -> None:
    text = "[ 1.0] mounting\n[ 1.5] Kernel panic - not syncing: no root\n[ 1.6] Call Trace:\n"
    made = kernel(lambda k: k.print(text), TinyKernel.reset)
    with GuestVm(config(made)) as vm:
        event = vm.wait_end()
    assert event == VmEvent("vm1", "panic", "The guest's kernel panicked: no root.")


def test_a_panic_too_early_for_a_reset(config: Make) -> None:
    text = (
        "Kernel panic - not syncing: no room\n---[ end Kernel panic - not syncing: no room ]---\n"
    )
    with GuestVm(config(kernel(lambda k: k.print(text), TinyKernel.spin))) as vm:
        event = vm.wait_end()
    assert event == VmEvent("vm1", "panic", "The guest's kernel panicked: no room.")


def test_init_that_cannot_go_on(config: Make) -> None:
    made = kernel(lambda k: k.uart("crumble: init failed: no tag.\r\n"), TinyKernel.power_off)
    with GuestVm(config(made)) as vm:
        assert vm.wait_end() == VmEvent("vm1", "failed", "The guest's init failed: no tag.")


def test_console_output_goes_out_when_it_is_wanted(config: Make) -> None:
    made = kernel(
        lambda k: k.print("from SBI, "), lambda k: k.uart("from UART"), TinyKernel.power_off
    )
    for wanted in (True, False):
        with GuestVm(config(made, dmesg=wanted)) as vm:
            vm.wait_end()
            printed = b"".join(e.data for e in vm.events if isinstance(e, ConsoleOutput))
        assert printed == (b"from SBI, from UART" if wanted else b"")


def test_an_agent_that_never_answers(config: Make) -> None:
    with GuestVm(config(kernel(TinyKernel.spin), boot_limit=0.1)) as vm:
        event = vm.wait_end()
    assert event == VmEvent("vm1", "failed", "The guest's agent did not answer within 0.1 s.")


def test_a_watchdog_fires_unless_the_guest_is_paused(config: Make) -> None:
    made = kernel(
        lambda k: k.store(WATCHDOG_BASE + watchdog.MODE, 1 << 4 | watchdog.ENABLE),  # 1 s
        TinyKernel.spin,
    )
    with GuestVm(config(made, watchdog=True)) as vm:
        vm.ask(messages.Pause())
        time.sleep(1.2)
        ends = [event for event in vm.events if isinstance(event, VmEvent)]
        assert [event.kind for event in ends] == ["booting"]
        vm.ask(messages.Resume())
        event = vm.wait_end()
    detail = "The guest's watchdog ended it: nobody fed it for 1 s."
    assert event == VmEvent("vm1", "crash", detail, "guest.watchdog")


@pytest.mark.parametrize("idle", [TinyKernel.spin, TinyKernel.wait])
def test_stop_ends_a_guest_that_runs_or_sleeps(
    config: Make, idle: Callable[[TinyKernel], None]
) -> None:
    with GuestVm(config(kernel(lambda k: k.print("up"), idle), dmesg=True, cpus=3)) as vm:
        vm.wait(ConsoleOutput)
    assert vm.service.stats() == {}


def test_pause_and_resume(config: Make) -> None:
    def count(k: TinyKernel) -> None:
        k.label("again")
        k.load(A0, 0x1000_0005, "lbu")
        k.to("jal", 0, label="again")

    with GuestVm(config(kernel(lambda k: k.print("up"), count), dmesg=True, cpus=2)) as vm:
        vm.wait(ConsoleOutput)
        machine = vm.service.machine
        for _ in range(3):
            machine.pause()
            first = machine.vm.counters()["instructions"]
            assert machine.vm.counters()["instructions"] == first
            machine.resume()
            while machine.vm.counters()["instructions"] == first:
                pass


def test_a_hole_in_the_address_space_stops_nobody(config: Make) -> None:
    def probe(k: TinyKernel) -> None:
        k.load(A0, 0x4000_0000)
        k.store(0x4000_0000, 1)
        k.store(0x1000_1800, 1)
        k.store(0x1000_9000, 1)

    with GuestVm(config(kernel(probe, TinyKernel.power_off))) as vm:
        assert vm.wait_end().kind == "poweroff"


def test_a_guest_that_abuses_its_devices_hurts_only_itself(config: Make) -> None:
    """Every virtio slot is brought up with rings in nowhere, kicked, and the machine goes on."""

    def abuse(k: TinyKernel) -> None:
        for slot in range(2):
            base = 0x1000_1000 + slot * 0x1000
            for status in (1, 3):
                k.store(base + 0x70, status)
            k.store(base + 0x24, 1)
            k.store(base + 0x20, 1)
            k.store(base + 0x70, 11)
            for queue in range(3):
                k.store(base + 0x30, queue)
                k.store(base + 0x38, 8)
                for register in (0x80, 0x84, 0x90, 0x94, 0xA0, 0xA4):
                    k.store(base + register, 0xFFFF_F000)
                k.store(base + 0x44, 1)
            k.store(base + 0x70, 15)
            for queue in (0, 1, 2, 77):
                k.store(base + 0x50, queue)
            k.load(A0, base + 0x70)
            k.uart("R")

    with GuestVm(config(kernel(abuse, TinyKernel.power_off), dmesg=True)) as vm:
        assert vm.wait_end().kind == "poweroff"
        assert b"".join(e.data for e in vm.events if isinstance(e, ConsoleOutput)) == b"RR"
        devices: Any = vm.service.machine.chipset.devices
        assert all(devices[name].problem for name in ("console", "rng"))


def test_requests_before_the_agent_is_ready(config: Make) -> None:
    with GuestVm(config(kernel(TinyKernel.wait))) as vm:
        for request in (
            messages.ProcessStart(["true"]),
            messages.FileRead("/etc/passwd"),
            messages.FileWrite("/x", b""),
        ):
            with pytest.raises(GuestError) as caught:
                vm.ask(request)
            assert caught.value.code == "guest.no_agent"
        with pytest.raises(UsageError):
            vm.ask(messages.ProcessSignal(1, 9))
        with pytest.raises(CrumbleError):
            vm.ask(ImageList())
        vm.tell(messages.ProcessInput(1, b"x"))
        slices = vm.ask(messages.Timeline())
        assert [item.name for item in slices.slices] == [
            "vmm start",
            "memory map",
            "machine build",
            "kernel load",
            "initramfs",
            "sandbox",
        ]
        assert slices.counters["instructions"] >= 0
        vm.ask(messages.Shutdown(1))
        assert vm.wait_end().kind == "poweroff"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"memory": 0}, "vmm.memory"),
        ({"memory": 1 << 40}, "vmm.memory"),
        ({"kernel": "/etc/passwd"}, "vmm.kernel"),
        ({"kernel": "/nowhere"}, "vmm.kernel"),
        ({"hypervisor": "kvm"}, "kvm."),
        ({"cpu_model": "i386"}, "vmm.cpu_model"),
        ({"hypervisor": "soft", "cpu_model": "x86-64-v3"}, "vmm.cpu_model"),
        ({"hypervisor": "soft", "irqchip": "kernel"}, "vmm.irqchip"),
        ({"seed": b"x", "watchdog": True}, "vmm.deterministic"),
        ({"hypervisor": "xen"}, "vmm.hypervisor"),
        ({"cmdline": "x" * 801}, "vmm.cmdline"),
        ({"modules": ["/etc/passwd"]}, "vmm.module"),
    ],
)
def test_what_cannot_be_built(config: Make, fields: dict[str, Any], code: str) -> None:
    good = config(kernel(TinyKernel.power_off))
    changed = {name: getattr(good, name) for name in ("vm", "kernel", "memory")} | fields
    with pytest.raises(CrumbleError) as caught:
        GuestVm(VmConfig(**changed), memory=64 * MIB)
    assert caught.value.code.startswith(code)
    assert caught.value.message.endswith(".")


def test_memory_that_does_not_hold_the_kernel(config: Make) -> None:
    made = TinyKernel(image_size=62 * MIB)
    made.power_off()
    with pytest.raises(UsageError, match="do not hold the kernel and its initramfs"):
        GuestVm(config(made))


@pytest.mark.parametrize("kind", [Pl011, Uart8250])
def test_typing_reaches_the_serial_port_of_any_board(kind: type[SerialPort]) -> None:
    uart = kind("serial", Line("serial", 1, Trigger.LEVEL, lambda _number, _level: None), print)
    machine = Machine.__new__(Machine)  # no guest: arm64 has no back end here
    machine.chipset = Chipset(MappingProxyType({"serial": uart}), Bus(()))
    machine.serial.receive(b"x")
    assert uart.mmio_read(0, 1) == ord("x")
