"""Rings that mean harm against the real vmm and fsd: one device needs a reset, everything else goes on."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_vmm.devices.virtio import mmio, transport
from framework.command import eventually
from framework.tiny_kernel import RAM, T1, TinyKernel

NEXT, WRITE, INDIRECT = 1, 2, 4
SLOTS = 0x1000_1000
RNG, FS = 1, 2
QUEUE_OF = {RNG: 0, FS: 1}
RINGS = RAM + (32 << 20)
BUFFER = RAM + (48 << 20)
SIZE = 8
FUSE_INIT = struct.pack("<IIQQIIII", 56, 26, 7, 0, 0, 0, 1, 0) + struct.pack("<IIII", 7, 38, 0, 0)

# Descriptors (address, length, flags, next) by row, and the avail ring's index and first head.
GOOD = ({0: (BUFFER, 64, WRITE, 0)}, 1, 0)
ATTACKS = {
    "a next out of the table": ({0: (BUFFER, 64, NEXT, SIZE + 1)}, 1, 0),
    "a loop of one": ({0: (BUFFER, 64, NEXT, 0)}, 1, 0),
    "a loop of two": ({0: (BUFFER, 64, NEXT, 1), 1: (BUFFER, 64, NEXT, 0)}, 1, 0),
    "an address that is no memory": ({0: (0x10, 64, WRITE, 0)}, 1, 0),
    "an address that wraps around": ({0: ((1 << 64) - 8, 64, WRITE, 0)}, 1, 0),
    "a length beyond memory": ({0: (BUFFER, 0xFFFF_FFFF, WRITE, 0)}, 1, 0),
    "a buffer of no length": ({0: (BUFFER, 0, WRITE, 0)}, 1, 0),
    "a head out of the table": ({0: (BUFFER, 64, WRITE, 0)}, 1, 500),
    "an index far ahead": ({0: (BUFFER, 64, WRITE, 0)}, 0x8000, 0),
    "a table of half a row": ({0: (BUFFER, 8, INDIRECT, 0)}, 1, 0),
    "a table that is no memory": ({0: (0x10, 16, INDIRECT, 0)}, 1, 0),
    "a table without rows": ({0: (BUFFER, 0, INDIRECT, 0)}, 1, 0),
}


class Guest(TinyKernel):
    """A driver of a few instructions, without any care."""

    def register(self, slot: int, offset: int, value: int) -> None:
        self.store(SLOTS + slot * mmio.SIZE + offset, value)

    def begin(
        self, slot: int, rows: dict[int, tuple[int, int, int, int]], ahead: int, head: int
    ) -> None:
        """Resets a device, gives it a ring and kicks it."""
        ring = RINGS + (slot << 20)
        desc, avail, used = ring, ring + 0x1000, ring + 0x2000
        self.register(slot, mmio.STATUS, 0)
        self.register(slot, mmio.STATUS, 3)
        for select, features in ((0, 1 << 28), (1, 1)):  # INDIRECT_DESC; VERSION_1
            self.register(slot, mmio.DRIVER_FEATURES_SEL, select)
            self.register(slot, mmio.DRIVER_FEATURES, features)
        self.register(slot, mmio.STATUS, 11)
        for row, (address, length, flags, after) in rows.items():
            self.store(desc + 16 * row, address, "sd")
            self.store(desc + 16 * row + 8, length, "sw")
            self.store(desc + 16 * row + 12, flags, "sh")
            self.store(desc + 16 * row + 14, after, "sh")
        self.store(used, 0, "sw")
        self.store(avail + 4, head, "sh")
        self.store(avail, ahead << 16, "sw")
        self.register(slot, mmio.QUEUE_SEL, QUEUE_OF[slot])
        self.register(slot, mmio.QUEUE_SIZE, SIZE)
        for place, address in (
            (mmio.QUEUE_DESC, desc),
            (mmio.QUEUE_DRIVER, avail),
            (mmio.QUEUE_DEVICE, used),
        ):
            self.register(slot, place, address)
            self.register(slot, place + 4, 0)
        self.register(slot, mmio.QUEUE_READY, 1)
        self.register(slot, mmio.STATUS, 15)
        self.register(slot, mmio.QUEUE_NOTIFY, QUEUE_OF[slot])

    def until(self, address: int, width: str, bits: int) -> None:
        """Waits until one of `bits` is there."""
        label = f"until{self.here}"
        self.label(label)
        self.load(T1, address, width)
        self.emit("andi", T1, T1, bits)
        self.to("beq", T1, 0, label=label)

    def broken(self, slot: int) -> None:
        self.until(SLOTS + slot * mmio.SIZE + mmio.STATUS, "lw", transport.NEEDS_RESET)

    def served(self, slot: int) -> None:
        self.until(RINGS + (slot << 20) + 0x2002, "lhu", 1)

    def good(self, slot: int) -> None:
        """A request that is answered."""
        if slot == RNG:
            self.begin(RNG, *GOOD)
        else:
            for offset in range(0, len(FUSE_INIT), 8):
                self.store(
                    BUFFER + 4096 + offset, *struct.unpack_from("<Q", FUSE_INIT, offset), "sd"
                )
            chain = {0: (BUFFER + 4096, len(FUSE_INIT), NEXT, 1), 1: (BUFFER, 256, WRITE, 0)}
            self.begin(FS, chain, 1, 0)
        self.served(slot)


@pytest.fixture
def fsd(tmp_path: Path) -> Iterator[str]:
    """The file server, alone, over a directory; it must live to the end."""
    (tmp_path / "root").mkdir()
    path = tmp_path / "fs.sock"
    command = [sys.executable, "-m", "crumble_fsd", "--socket-path", str(path)]
    process = subprocess.Popen(
        [*command, "--shared-dir", str(tmp_path / "root")], stderr=subprocess.PIPE
    )
    eventually(path.exists, "no socket")
    yield str(path)
    process.kill()
    _, stderr = process.communicate()
    assert b"Traceback" not in stderr


@pytest.mark.parametrize(("hostile", "other"), [(RNG, FS), (FS, RNG)])
def test_a_guest_that_breaks_one_device_has_the_others(
    fsd: str, tmp_path: Path, hostile: int, other: int
) -> None:
    """Each attack, the other device's work, then a reset and work for the attacked one."""
    guest = Guest()
    for name, attack in ATTACKS.items():
        guest.begin(hostile, *attack)
        guest.broken(hostile)
        guest.good(other)
        guest.good(hostile)
        guest.print(f"{name}\n")
    guest.power_off()
    kernel = tmp_path / "kernel"
    kernel.write_bytes(guest.image())
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "crumble_vmm",
            "--kernel",
            str(kernel),
            "--memory",
            "128M",
            "--fs",
            fsd,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.decode().splitlines() == list(ATTACKS), done.stderr.decode()
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
