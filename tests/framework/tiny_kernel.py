"""A riscv64 kernel of a few instructions, for tests of a machine that need no Linux.

    kernel = TinyKernel()
    kernel.print("hello\\n")
    kernel.power_off()
    path.write_bytes(kernel.image())

It starts as Linux does: S-mode, a0 the hart, a1 the device tree, no paging.
"""

from __future__ import annotations

import struct

from framework.rv64_asm import Assembler

RAM = 0x8000_0000
LOAD_OFFSET = 2 << 20
ENTRY = RAM + LOAD_OFFSET
IMAGE_SIZE = 1 << 20
HEADER_SIZE = 64
UART = 0x1000_0000
T0, T1, T2, A0, A1, A2, A6, A7 = 5, 6, 7, 10, 11, 12, 16, 17

DBCN, SRST = 0x4442434E, 0x53525354


class TinyKernel(Assembler):
    """The program; `image` gives the file."""

    def __init__(self, image_size: int = IMAGE_SIZE) -> None:
        super().__init__(ENTRY + HEADER_SIZE)
        self._image_size = image_size
        self._texts = 0
        self._tails: list[tuple[str, bytes]] = []

    def sbi(self, extension: int, function: int, *arguments: int) -> None:
        """An SBI call; the answer is in a0 and a1."""
        for register, value in enumerate(arguments, A0):
            self.li(register, value)
        self.li(A6, function)
        self.li(A7, extension)
        self.emit("ecall")

    def print(self, text: str) -> None:
        """By the debug console (SBI v2.0, chapter 12)."""
        label = f"text{len(self._tails)}"
        self._tails.append((label, text.encode()))
        self.to("la", A1, label=label)
        self.emit("addi", T0, A1, 0)
        self.li(A0, len(text.encode()))
        self.emit("addi", A1, T0, 0)
        self.li(A2, 0)
        self.li(A6, 0)
        self.li(A7, DBCN)
        self.emit("ecall")

    def uart(self, text: str) -> None:
        """By the UART's transmit register."""
        for byte in text.encode():
            self.store(UART, byte, "sb")

    def store(self, address: int, value: int, width: str = "sw") -> None:
        """A store to a device."""
        self.li(T0, address)
        self.li(T1, value)
        self.emit(width, T1, T0, 0)

    def load(self, register: int, address: int, width: str = "lw") -> None:
        """A load from a device."""
        self.li(T0, address)
        self.emit(width, register, T0, 0)

    def power_off(self) -> None:
        """SRST, shutdown."""
        self.sbi(SRST, 0, 0, 0)

    def reset(self) -> None:
        """SRST, cold reboot."""
        self.sbi(SRST, 0, 1, 0)

    def crash(self) -> None:
        """A trap whose vector traps."""
        self.li(T0, 0x4)
        self.emit("csrrw", 0, "stvec", T0)
        self.emit("ebreak")

    def spin(self) -> None:
        """For ever."""
        label = f"spin{self.here}"
        self.label(label)
        self.to("jal", 0, label=label)

    def wait(self) -> None:
        """For ever, asleep."""
        label = f"wait{self.here}"
        self.label(label)
        self.emit("wfi")
        self.to("jal", 0, label=label)

    def image(self) -> bytes:
        """The file: Linux's Image header, whose first instruction jumps over it, and the program."""
        for label, data in self._tails:
            self.label(label)
            self.raw(data)
        self._tails = []
        self.align(4)
        jump = Assembler(ENTRY)
        jump.emit("jal", 0, HEADER_SIZE)
        header = struct.pack(
            "<4s4xQQQI12x8s4s4x",
            jump.code(),
            LOAD_OFFSET,
            self._image_size,
            0,
            2,
            b"RISCV\0\0\0",
            b"RSC\x05",
        )
        assert len(header) == HEADER_SIZE
        return header + self.code()
