"""Programs of tiny guests, the same for every architecture (quest.py).

A guest runs in its CPU's most usual mode without interrupts: S-mode or EL1 without paging, or 64-bit mode
with memory mapped as it is. It is assembled from `crumble_ir`'s own instructions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from crumble_ir import amd64_assembler as x86
from crumble_ir import arm64_assembler as a64
from crumble_ir import riscv64_assembler as rv

# Device registers that are there on every board: below RAM on one, above it on the other.
MMIO = 0x1000_0000
END = MMIO + 0xFF0
CODE, RESULTS, SECOND = 0x10_0000, 0x20_0000, 0x6000
HANDLERS = 0x30_0000


class Guest(ABC):
    """A program under construction; each method appends what it says."""

    def __init__(self, base: int) -> None:
        self.code = bytearray()
        self.base = base

    def raw(self, code: bytes) -> Guest:
        self.code += code
        return self

    def end(self) -> Guest:
        """Ends `Quest.run`."""
        return self.write(END, 4, 1)

    @abstractmethod
    def write(self, address: int, size: int, value: int) -> Guest:
        """Stores."""

    @abstractmethod
    def read(self, address: int, size: int, to: int) -> Guest:
        """Loads without sign; puts all 64 bits at `to`."""

    @abstractmethod
    def poll(self, address: int, mask: int, wanted: int) -> Guest:
        """Loads 32 bits until those of `mask` are `wanted`."""

    @abstractmethod
    def count(self, address: int) -> Guest:
        """Counts in memory for ever."""

    @abstractmethod
    def crash(self) -> Guest:
        """Does what a CPU cannot go on from."""

    @abstractmethod
    def enable(self, line: int) -> Guest:
        """Lets the controller's input through to the first CPU."""

    @abstractmethod
    def take(self, line: int) -> Guest:
        """Waits for an interrupt of `line`, and takes it."""

    @abstractmethod
    def start_second(self, flag: int) -> Guest:
        """Starts the second CPU, which stores 1 at `flag` and rests; when it is interrupted it stores 2."""

    @abstractmethod
    def interrupt_second(self) -> Guest:
        """Sends the second CPU an interrupt."""

    @abstractmethod
    def clock(self, to: int) -> Guest:
        """Puts the clock's 64 bits at `to`."""

    @abstractmethod
    def sleep(self, ns: int, frequency: int) -> Guest:
        """Sets the CPU's timer, and waits until its interrupt is pending. frequency: of the clock, Hz."""


class RiscvGuest(Guest):
    """S-mode. t0 to t2 are 5 to 7."""

    PLIC = 0x0C00_0000

    def write(self, address: int, size: int, value: int) -> Guest:
        self.code += rv.constant(5, address) + rv.constant(6, _signed(value))
        return self.raw(rv.store(f"i{8 * size}", 6, 5, 0))

    def read(self, address: int, size: int, to: int) -> Guest:
        kind = "i64" if size == 8 else f"u{8 * size}"
        self.code += rv.constant(5, address) + rv.load(kind, 6, 5, 0) + rv.constant(5, to)
        return self.raw(rv.store("i64", 6, 5, 0))

    def poll(self, address: int, mask: int, wanted: int) -> Guest:
        self.code += rv.constant(5, address) + rv.constant(7, mask) + rv.constant(28, wanted)
        loop = rv.load("u32", 6, 5, 0) + rv.op("and", 6, 6, 7)
        return self.raw(loop + _or(rv.branch("ne", 6, 28), rv.branch_distance(-len(loop))))

    def count(self, address: int) -> Guest:
        self.code += rv.constant(5, address)
        loop = rv.load("i64", 6, 5, 0) + rv.addi(6, 6, 1) + rv.store("i64", 6, 5, 0)
        return self.raw(loop + _or(rv.jal(0), rv.jump_distance(-len(loop))))

    def crash(self) -> Guest:
        return self.raw(rv.UNIMP)

    def enable(self, line: int) -> Guest:
        self.write(self.PLIC + 4 * line, 4, 1)
        return self.write(self.PLIC + 0x2000, 4, 1 << line)

    def take(self, line: int) -> Guest:
        claim = self.PLIC + 0x20_0004
        return self.poll(claim, 0xFFFF_FFFF, line).write(claim, 4, line)

    def wait(self) -> RiscvGuest:
        """Rests until there is an external interrupt."""
        return self._wait(1 << 9)

    def _wait(self, kinds: int) -> RiscvGuest:
        """csrw sie, t0; wfi."""
        self.code += rv.constant(5, kinds)
        self.code += (0x1042_9073).to_bytes(4, "little") + (0x1050_0073).to_bytes(4, "little")
        return self

    def _wait_pending(self, kind: int) -> RiscvGuest:
        """Until the interrupt is in sip, whatever else woke it: csrr t1, sip; and; beq."""
        self._wait(kind)
        loop = (0x1440_2373).to_bytes(4, "little") + rv.op("and", 6, 6, 5)
        self.code += loop + _or(rv.branch("eq", 6, 0), rv.branch_distance(-len(loop)))
        return self

    def _call(self, extension: int, *arguments: int) -> Guest:
        """SBI's function 0."""
        for register, value in ((17, extension), (16, 0), *enumerate(arguments, 10)):
            self.code += rv.constant(register, value)
        return self.raw(rv.ECALL)

    def interrupt_second(self) -> Guest:
        return self._call(0x73_5049, 1, 1)  # sbi_send_ipi: a mask, from hart 1 on

    def clock(self, to: int) -> Guest:
        self.code += (0xC010_2373).to_bytes(4, "little") + rv.constant(5, to)  # rdtime t1
        return self.raw(rv.store("i64", 6, 5, 0))

    def sleep(self, ns: int, frequency: int) -> Guest:
        self.code += (0xC010_2573).to_bytes(4, "little")  # rdtime a0
        self.code += rv.constant(5, ns * frequency // 10**9) + rv.op("add", 10, 10, 5)
        self.code += rv.constant(17, 0x5449_4D45) + rv.constant(16, 0)  # sbi_set_timer
        return self.raw(rv.ECALL)._take_interrupt(5)

    def _take_interrupt(self, kind: int) -> RiscvGuest:
        """Rests until its trap, and goes on there; not by sip, in which QEMU 7.2 does not show it to a guest."""
        resting = b"".join(
            word.to_bytes(4, "little")
            for word in (
                0x1053_1073,
                0x1001_6073,
                0x1050_0073,
            )  # csrw stvec, t1; csrsi sstatus; wfi
        ) + _or(rv.jal(0), rv.jump_distance(-4))
        self.code += rv.constant(5, 1 << kind) + (0x1042_9073).to_bytes(4, "little")
        # auipc t1: the trap's handler is behind what follows.
        self.code += rv.auipc(6) + rv.addi(6, 6, 8 + len(resting)) + resting
        # csrw sie, zero; csrr t1, scause; anything else stays here
        self.code += (0x1040_1073).to_bytes(4, "little") + (0x1420_2373).to_bytes(4, "little")
        self.code += rv.constant(7, kind - (1 << 63))
        return self.raw(_or(rv.branch("ne", 6, 7), rv.branch_distance(0)))

    def start_second(self, flag: int) -> Guest:
        hart, resume = RiscvGuest(self.base), self.base + SECOND
        hart.write(flag, 4, 1)
        hart._wait_pending(1 << 1).write(flag, 4, 2).count(self.base + RESULTS + 0x800)
        for at in range(0, len(hart.code), 4):
            (word,) = memoryview(bytes(hart.code[at : at + 4])).cast("I")
            self.write(resume + at, 4, word)
        return self._call(0x48_534D, 1, resume, 0)  # sbi_hart_start: hart, address, opaque


class X86Guest(Guest):
    """64-bit mode. rax, rcx and rdx are in use."""

    IOAPIC, LAPIC = 0xFEC0_0000, 0xFEE0_0000
    FIRST_VECTOR, TIMER, NMI = 0x40, 0x70, 2

    def write(self, address: int, size: int, value: int) -> Guest:
        self.code += x86.mov_constant(x86.RAX, address) + x86.mov_constant(x86.RCX, value)
        return self.raw(x86.store(size, x86.RCX, x86.RAX, 0))

    def read(self, address: int, size: int, to: int) -> Guest:
        self.code += x86.mov_constant(x86.RAX, address)
        self.code += x86.load(f"u{8 * size}", x86.RCX, x86.RAX, 0)
        return self.raw(x86.mov_constant(x86.RAX, to) + x86.store(8, x86.RCX, x86.RAX, 0))

    def poll(self, address: int, mask: int, wanted: int) -> Guest:
        self.code += x86.mov_constant(x86.RAX, address) + x86.mov_constant(x86.RDX, mask)
        self.code += x86.mov_constant(x86.RBX, wanted)
        loop = x86.load("u32", x86.RCX, x86.RAX, 0) + x86.alu("and", x86.RCX, x86.RDX)
        loop += x86.alu("cmp", x86.RCX, x86.RBX) + x86.jump_if("ne")
        return self.raw(loop[:-4] + (-len(loop)).to_bytes(4, "little", signed=True))

    def count(self, address: int) -> Guest:
        self.code += x86.mov_constant(x86.RAX, address)
        loop = x86.load("u64", x86.RCX, x86.RAX, 0) + x86.alu_constant("add", x86.RCX, 1)
        loop += x86.store(8, x86.RCX, x86.RAX, 0) + x86.JUMP
        return self.raw(loop[:-4] + (-len(loop)).to_bytes(4, "little", signed=True))

    def crash(self) -> Guest:
        return self.raw(x86.UD2)

    def _vector(self, line: int) -> int:
        return self.FIRST_VECTOR + line

    def enable(self, line: int) -> Guest:
        self.write(self.LAPIC + 0xF0, 4, 0x1FF)
        for register, value in ((0x11 + 2 * line, 0), (0x10 + 2 * line, self._vector(line))):
            self.write(self.IOAPIC, 4, register).write(self.IOAPIC + 0x10, 4, value)
        return self

    def take(self, line: int) -> Guest:
        """Looks whether it is pending; with interrupts off nothing takes it away."""
        vector = self._vector(line)
        bit = 1 << vector % 32
        return self.poll(self.LAPIC + 0x200 + vector // 32 * 0x10, bit, bit)

    def start_second(self, flag: int) -> Guest:
        # Real mode at SECOND: mov byte [flag], 1; again: hlt; jmp again. Its NMI: mov byte [flag], 2; iret
        assert flag < 1 << 16
        set_flag = b"\xc6\x06" + flag.to_bytes(2, "little")
        for at, code in (
            (SECOND, set_flag + b"\x01\xf4\xeb\xfd"),
            (SECOND + 0x20, set_flag + b"\x02\xcf\x90\x90"),
            (4 * self.NMI, (SECOND + 0x20).to_bytes(4, "little") + bytes(4)),
        ):
            self.write(at, 8, int.from_bytes(code, "little"))
        self.write(self.LAPIC + 0xF0, 4, 0x1FF)
        return self._to_second(0x4500)._to_second(0x4600 | SECOND >> 12)  # INIT, SIPI

    def _to_second(self, command: int) -> X86Guest:
        """By the interrupt command register."""
        self.write(self.LAPIC + 0x310, 4, 1 << 24).write(self.LAPIC + 0x300, 4, command)
        return self

    def interrupt_second(self) -> Guest:
        """An NMI: in real mode it cannot reach its LAPIC, which takes no other until it is enabled."""
        return self._to_second(0x4400)

    def clock(self, to: int) -> Guest:
        """rdtsc; shl rdx, 32; or rax, rdx"""
        self.code += b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0" + x86.mov(x86.RCX, x86.RAX)
        return self.raw(x86.mov_constant(x86.RAX, to) + x86.store(8, x86.RCX, x86.RAX, 0))

    def sleep(self, ns: int, frequency: int) -> Guest:
        """One shot of the LAPIC's timer."""
        for register, value in ((0xF0, 0x1FF), (0x3E0, 0xB), (0x320, self.TIMER), (0x380, ns)):
            self.write(self.LAPIC + register, 4, value)
        bit = 1 << self.TIMER % 32
        return self.poll(self.LAPIC + 0x200 + self.TIMER // 32 * 0x10, bit, bit)

    def rest_with_handler(self, line: int, address: int, *, level: bool) -> Guest:
        """Rests with interrupts on; each of `line` stores 1 at `address` and ends itself."""
        vector, idt = self._vector(line), HANDLERS + 0x1000
        handler = X86Guest(self.base).write(address, 4, 1).write(self.LAPIC + 0xB0, 4, 0)
        handler.raw(b"\x48\xcf")  # iretq
        code = bytes(handler.code).ljust(-(-len(handler.code) // 8) * 8, b"\x90")
        for at in range(0, len(code), 8):
            self.write(HANDLERS + at, 8, int.from_bytes(code[at : at + 8], "little"))
        gate = HANDLERS & 0xFFFF | 0x10 << 16 | 0x8E00 << 32 | HANDLERS >> 16 << 48
        self.write(idt + 16 * vector, 8, gate).write(idt + 16 * vector + 8, 8, 0)
        self.write(HANDLERS + 0x800, 8, 0xFFF | idt << 16).write(HANDLERS + 0x808, 4, 0)
        pointer = (HANDLERS + 0x800).to_bytes(4, "little")
        self.raw(b"\x0f\x01\x1c\x25" + pointer + x86.mov_constant(x86.RSP, HANDLERS + 0x4000))
        self.enable(line)
        if level:
            self.write(self.IOAPIC + 0x10, 4, vector | 1 << 15)
        return self.raw(b"\xfb\xf4\xeb\xfc")  # sti; again: hlt; jmp again


class Arm64Guest(Guest):
    """EL1 without paging. x5 to x7 and x28 are in use."""

    DISTRIBUTOR, REDISTRIBUTORS, FIRST, SGI = 0x0800_0000, 0x080A_0000, 32, 5
    CPU_ON = 0xC400_0003
    HVC = (0xD400_0002).to_bytes(4, "little")

    def write(self, address: int, size: int, value: int) -> Guest:
        self.code += a64.constant(5, address) + a64.constant(6, value)
        return self.raw(a64.store(f"i{8 * size}", 6, 5, 0))

    def read(self, address: int, size: int, to: int) -> Guest:
        self.code += a64.constant(5, address) + a64.load(f"u{8 * size}", 6, 5, 0)
        return self.raw(a64.constant(5, to) + a64.store("i64", 6, 5, 0))

    def poll(self, address: int, mask: int, wanted: int) -> Guest:
        self.code += a64.constant(5, address) + a64.constant(7, mask) + a64.constant(28, wanted)
        loop = a64.load("u32", 6, 5, 0) + a64.op("and", 6, 6, 7) + a64.compare(6, 28)
        return self.raw(loop + _or(a64.branch_if("ne"), a64.branch_distance(-len(loop))))

    def count(self, address: int) -> Guest:
        self.code += a64.constant(5, address)
        loop = a64.load("i64", 6, 5, 0) + a64.add_constant(6, 6, 1) + a64.store("i64", 6, 5, 0)
        return self.raw(loop + _or(a64.B, a64.jump_distance(-len(loop))))

    def crash(self) -> Guest:
        """ldp from a device: no syndrome says what to do."""
        return self.raw(a64.constant(5, MMIO) + (0xA940_0000 | 7 << 10 | 5 << 5 | 6).to_bytes(4, "little"))  # fmt: skip

    def _bit(self, register: int, line: int) -> tuple[int, int]:
        number = self.FIRST + line
        return self.DISTRIBUTOR + register + number // 32 * 4, 1 << number % 32

    def enable(self, line: int) -> Guest:
        """As an edge."""
        number = self.FIRST + line
        self.write(self.DISTRIBUTOR, 4, 0x12)
        self.write(self.DISTRIBUTOR + 0xC00 + number // 16 * 4, 4, 2 << number % 16 * 2)
        return self.write(self._bit(0x100, line)[0], 4, self._bit(0x100, line)[1])

    def take(self, line: int) -> Guest:
        """Looks whether it is pending, and ends that."""
        pending, bit = self._bit(0x200, line)
        return self.poll(pending, bit, bit).write(pending + 0x80, 4, bit)

    def start_second(self, flag: int) -> Guest:
        other, entry = Arm64Guest(self.base), self.base + SECOND
        pending = self.REDISTRIBUTORS + 0x2_0000 + 0x1_0200  # the second's GICR_ISPENDR0
        other.write(flag, 4, 1).poll(pending, 1 << self.SGI, 1 << self.SGI)
        other.write(flag, 4, 2).count(self.base + RESULTS + 0x800)
        for at in range(0, len(other.code), 4):
            self.write(entry + at, 4, int.from_bytes(other.code[at : at + 4], "little"))
        for register, value in enumerate((self.CPU_ON, 1, entry, 0)):
            self.code += a64.constant(register, value)
        return self.raw(self.HVC)

    def interrupt_second(self) -> Guest:
        """Of a GICv3: msr icc_sgi1r_el1, x6."""
        self.code += a64.constant(6, self.SGI << 24 | 1 << 1)
        return self.raw((0xD518_CBA6).to_bytes(4, "little"))

    def frequency(self, to: int) -> Guest:
        """Puts the clock's at `to`: mrs x6, cntfrq_el0."""
        self.code += (0xD53B_E006).to_bytes(4, "little") + a64.constant(5, to)
        return self.raw(a64.store("i64", 6, 5, 0))

    def clock(self, to: int) -> Guest:
        """isb; mrs x6, cntvct_el0."""
        self.code += (0xD503_3FDF).to_bytes(4, "little") + (0xD53B_E046).to_bytes(4, "little")
        return self.raw(a64.constant(5, to) + a64.store("i64", 6, 5, 0))

    def sleep(self, ns: int, frequency: int) -> Guest:
        """The virtual timer: msr cntv_tval_el0, x5; msr cntv_ctl_el0, x6; until its ISTATUS: mrs x7, cntv_ctl_el0."""
        self.code += a64.constant(5, ns * frequency // 10**9) + a64.constant(6, 1)
        self.code += (0xD51B_E305).to_bytes(4, "little") + (0xD51B_E326).to_bytes(4, "little")
        self.code += a64.constant(28, 4)
        loop = (0xD53B_E327).to_bytes(4, "little") + a64.op("and", 7, 7, 28) + a64.compare(7, 28)
        return self.raw(loop + _or(a64.branch_if("ne"), a64.branch_distance(-len(loop))))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _or(word: bytes, bits: int) -> bytes:
    return (int.from_bytes(word, "little") | bits).to_bytes(4, "little")
