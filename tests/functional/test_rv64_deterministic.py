"""A deterministic machine boots Linux twice to the same bits, whatever else this host does."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from crumble_native import rv64
from crumble_native.memory import Memory
from framework.assets import busybox, kernel
from framework.soft_machine import SoftMachine, busybox_initramfs

pytestmark = [pytest.mark.guest, pytest.mark.slow]
INIT = """
/bin/busybox mount -t proc proc /proc
/bin/busybox cat /proc/uptime /proc/interrupts /proc/sys/kernel/random/uuid
for n in 1 2 3; do /bin/busybox sleep 0.01; /bin/busybox sha256sum /bin/busybox & done; wait
/bin/busybox poweroff -f
"""


def boot(folder: Path, seed: bytes, disturbed: bool) -> tuple[str, bytes, int]:
    """A hash of memory and state at the end, what was printed, instructions."""
    machine = SoftMachine(128, seed=seed)
    program = folder / "busybox"
    program.write_bytes(busybox())
    initramfs = busybox_initramfs(program, INIT)
    machine.load_linux(kernel().image, initramfs, "quiet cryptomgr.notests console=ttyS0 earlycon")
    over = threading.Event()
    hart = machine.machine.hart(0)

    def disturb() -> None:
        while not over.wait(0.003):
            hart.cancel()

    other = threading.Thread(target=disturb)
    if disturbed:
        other.start()
    while (stop := machine.run_hart(0, lambda: False)).reason == rv64.EXIT_CANCELED:
        pass
    over.set()
    if disturbed:
        other.join()
    assert stop.reason == rv64.EXIT_RESET, stop
    state = hart.get_state()
    whole = hashlib.sha256(machine.ram)
    whole.update(repr((state, machine.machine.get_plic(), machine.machine.time)).encode())
    return whole.hexdigest(), bytes(machine.output), state.instret


def test_two_boots_are_the_same_bits(tmp_path: Path) -> None:
    first = boot(tmp_path, b"s" * 64, disturbed=False)
    second = boot(tmp_path, b"s" * 64, disturbed=True)
    assert first[1:] == second[1:]
    assert first[0] == second[0]
    assert first[1].count(b"busybox") == 3
    assert boot(tmp_path, b"t" * 64, disturbed=False)[0] != first[0]


def test_it_has_one_hart() -> None:
    memory = Memory()
    with pytest.raises(ValueError, match="what a machine can be made of"):
        rv64.Machine(memory, 2, deterministic=True)
