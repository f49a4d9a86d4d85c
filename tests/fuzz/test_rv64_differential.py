"""The soft CPU's engines against qemu-riscv64 on random blocks; see framework/rv64_fuzz.py.

Invariant: from the same state the same instructions leave the same registers, flags, memory and traps.
"""

from __future__ import annotations

import pytest

from framework.rv64_engine import EAGER, INTERPRETER
from framework.rv64_fuzz import Batch, Soft, check, differences, have_qemu

needs_qemu = pytest.mark.skipif(not have_qemu(), reason="qemu-riscv64 (qemu-user) is not installed")


@needs_qemu
@pytest.mark.parametrize("seed", range(1, 5))
def test_blocks_agree(seed: int) -> None:
    """Translated before they first run."""
    assert check(Batch(seed, blocks=2000)) == []


@needs_qemu
@pytest.mark.parametrize("seed", [101, 102])
def test_hot_blocks_agree(seed: int) -> None:
    """Translated when they have run often enough."""
    assert check(Batch(seed, blocks=1000, rounds=20)) == []


@needs_qemu
def test_long_blocks_agree() -> None:
    assert check(Batch(201, blocks=150, units=200)) == []


def test_instructions_that_qemu_does_not_know_agree_between_engines() -> None:
    assert check(Batch(301, blocks=1500, level=2)) == []


def test_a_difference_is_found_where_it_is() -> None:
    batch = Batch(1, blocks=50)
    with batch.program() as path:
        elf = path.read_bytes()
    reference = Soft(elf, INTERPRETER).run()
    assert reference.traps and reference == Soft(elf, EAGER).run()
    other = bytearray(reference.results)
    other[17 * 544 + 8 * 34] ^= 1
    assert [text[:11] for text in differences(batch, bytes(other), reference.results)] == [
        "block 17 f3"
    ]
