"""The smallest machine that boots Linux on the soft CPU: RAM, PLIC, a 16550, an FDT.

For tests of the CPU itself; `crumble_vmm.builder` makes the real one.

    machine = SoftMachine(memory_mib=256)
    machine.load_linux(kernel, initramfs, "console=ttyS0")
    machine.run(until=lambda output: b"ready" in output, timeout=60)
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

from crumble_native import rv64
from crumble_native.memory import Memory
from crumble_vmm.boot.fdt import Node, cells, flatten, words
from crumble_vmm.boot.initramfs import Initramfs
from crumble_vmm.boot.kernel_image import load_kernel
from crumble_vmm.boot.ram import Ram
from crumble_vmm.chipset.lines import Line, Trigger
from crumble_vmm.devices.uart8250 import SIZE as UART_SIZE
from crumble_vmm.devices.uart8250 import Uart8250

RAM, PLIC, UART, UART_IRQ = 0x8000_0000, 0x0C00_0000, 0x1000_0000, 10
TIMEBASE = 10_000_000
ISA = "rv64imafdc_zicbom_zicboz_zicntr_zicsr_zifencei_zba_zbb_zbs_sstc_svadu_svvptc"


def busybox_initramfs(busybox: Path, init: str) -> bytes:
    """An initramfs with busybox and the given /init script."""
    archive = Initramfs()
    archive.directory("dev")
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3)
    archive.directory("proc")
    archive.directory("sys")
    archive.directory("tmp")
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.symlink("bin/sh", "busybox")
    archive.file("init", b"#!/bin/sh\n" + init.encode(), 0o755)
    return b"".join(archive.chunks())


class SoftMachine:
    """RAM, harts, UART. `output` is what the guest printed."""

    def __init__(self, memory_mib: int = 256, harts: int = 1, *, seed: bytes = b"") -> None:
        """seed: the guest's entropy; then the machine is deterministic."""
        self.seed = seed or os.urandom(64)
        self.size = memory_mib << 20
        self.ram = mmap.mmap(-1, self.size)
        self.memory = Memory()
        self.memory.add(RAM, self.ram)
        self.machine = rv64.Machine(
            self.memory, harts, timebase=TIMEBASE, plic=PLIC, deterministic=bool(seed)
        )
        self.harts = harts
        self.output = bytearray()
        line = Line("uart", UART_IRQ, Trigger.LEVEL, self.machine.set_line)
        self.uart = Uart8250("uart", line, self.output.extend)

    def fdt(self, command_line: str, initramfs: tuple[int, int]) -> bytes:
        """The device tree blob."""
        root = Node("").set("#address-cells", 2).set("#size-cells", 2)
        root.set("compatible", "riscv-virtio").set("model", "soft-machine")
        chosen = root.add("chosen").set("bootargs", command_line)
        chosen.set("stdout-path", "/soc/serial@10000000").set("rng-seed", self.seed)
        chosen.set("linux,initrd-start", cells(initramfs[0]))
        chosen.set("linux,initrd-end", cells(initramfs[1]))
        root.add(f"memory@{RAM:x}").set("device_type", "memory").set("reg", cells(RAM, self.size))
        cpus = root.add("cpus").set("#address-cells", 1).set("#size-cells", 0)
        cpus.set("timebase-frequency", TIMEBASE)
        for hart in range(self.harts):
            cpu = cpus.add(f"cpu@{hart}").set("device_type", "cpu").set("reg", hart)
            cpu.set("compatible", "riscv").set("riscv,isa", ISA).set("mmu-type", "riscv,sv39")
            cpu.set("riscv,cbom-block-size", 64).set("riscv,cboz-block-size", 64)
            cpu.set("status", "okay")
            controller = cpu.add("interrupt-controller").set("compatible", "riscv,cpu-intc")
            controller.set("#interrupt-cells", 1).set("interrupt-controller")
            controller.set("phandle", 16 + hart)
        soc = root.add("soc").set("#address-cells", 2).set("#size-cells", 2)
        soc.set("compatible", "simple-bus").set("ranges")
        plic = soc.add(f"plic@{PLIC:x}").set("compatible", ["sifive,plic-1.0.0", "riscv,plic0"])
        plic.set("#interrupt-cells", 1).set("#address-cells", 0).set("interrupt-controller")
        plic.set("reg", cells(PLIC, 0x400_0000)).set("riscv,ndev", rv64.PLIC_SOURCES - 1)
        plic.set("phandle", 1)
        contexts = [word for hart in range(self.harts) for word in (16 + hart, 9)]
        plic.set("interrupts-extended", words(*contexts))
        uart = soc.add(f"serial@{UART:x}").set("compatible", "ns16550a")
        uart.set("reg", cells(UART, UART_SIZE)).set("clock-frequency", 3_686_400)
        uart.set("interrupts", UART_IRQ).set("interrupt-parent", 1)
        return flatten(root)

    def load_linux(self, kernel: Path, initramfs: bytes, command_line: str) -> None:
        """Puts kernel, initramfs and FDT into RAM and points hart 0 at the kernel."""
        loaded = load_kernel(kernel, Ram(self.memory, RAM, self.size))
        at = RAM + self.size - (len(initramfs) + 0xFFFFF & ~0xFFFFF)
        self.memory.write(at, initramfs)
        blob = self.fdt(command_line, (at, at + len(initramfs)))
        fdt_at = at - 0x20_0000
        self.memory.write(fdt_at, blob)
        state = self.machine.hart(0).get_state()
        state.x[10], state.x[11], state.pc = 0, fdt_at, loaded.entry
        self.machine.hart(0).set_state(state)

    def serve(self, stop: rv64.Exit) -> int | None:
        """Serves one exit; gives the answer for `run`, or None when the caller should have it."""
        offset = stop.gpa - UART
        if stop.reason == rv64.EXIT_MMIO_READ:
            return self.uart.mmio_read(offset, stop.size) if 0 <= offset < UART_SIZE else 0
        if stop.reason == rv64.EXIT_MMIO_WRITE:
            if 0 <= offset < UART_SIZE:
                self.uart.mmio_write(offset, stop.size, stop.data)
            return 0
        if stop.reason == rv64.EXIT_CONSOLE:
            self.output += self.memory.read(stop.gpa, stop.size)
            return stop.size
        return None

    def run_hart(self, index: int, done: Callable[[], bool]) -> rv64.Exit:
        """Runs one hart until it resets, crashes, is canceled, or `done`."""
        hart = self.machine.hart(index)
        answer: int | None = 0
        while True:
            stop = hart.run(answer or 0)
            answer = self.serve(stop)
            if answer is None or done():
                return stop

    def run(self, until: Callable[[bytearray], bool], timeout: float) -> rv64.Exit:
        """Runs all harts until hart 0's exit is not for us, or the output is as wanted."""
        timer = threading.Timer(timeout, self.machine.hart(0).cancel)
        timer.start()
        others = [
            threading.Thread(target=self.run_hart, args=(index, lambda: False))
            for index in range(1, self.harts)
        ]
        for other in others:
            other.start()
        try:
            return self.run_hart(0, lambda: until(self.output))
        finally:
            timer.cancel()
            for index in range(1, self.harts):
                self.machine.hart(index).cancel()
            for other in others:
                other.join()
