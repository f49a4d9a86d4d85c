"""The soft CPU against qemu-riscv64 on random instruction streams; see framework/rv64_differential.py.

Invariant: from the same state the same instructions leave the same registers, flags and memory.
"""

from __future__ import annotations

import pytest

from framework.rv64_differential import check, have_qemu

pytestmark = pytest.mark.skipif(not have_qemu(), reason="qemu-riscv64 (qemu-user) is not installed")


@pytest.mark.parametrize("seed", range(1, 7))
def test_streams_agree(seed: int) -> None:
    """Each block runs once: the interpreter, cold."""
    assert check(seed, 250) == []


@pytest.mark.parametrize("seed", range(101, 105))
def test_repeated_streams_agree(seed: int) -> None:
    """Each block runs often enough to be translated where there is a translator."""
    assert check(seed, 150, repeats=60) == []


def test_long_blocks_agree() -> None:
    assert check(201, 40, units=300) == []
