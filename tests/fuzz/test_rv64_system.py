"""The soft CPU's engines against each other in S- and U-mode; see framework/rv64_system.py.

Invariant: whatever a guest does with traps, CSRs, page tables and its own code, every engine takes the
same traps at the same instruction counts and leaves the same registers and memory.
"""

import pytest

from framework.rv64_system import check


@pytest.mark.parametrize("seed", range(1, 13))
def test_kernels_agree(seed: int) -> None:
    assert check(seed) == []


@pytest.mark.parametrize("seed", [101, 102])
def test_long_blocks_agree(seed: int) -> None:
    assert check(seed, units=100, traps=1500) == []
