"""Vectors against qemu-riscv64 on random instructions; see framework/rv64_vector.py.

Invariant: from the same state the same instructions leave the same registers, flags and memory.
"""

from __future__ import annotations

import pytest

from framework.rv64_fuzz import have_qemu
from framework.rv64_vector import check

pytestmark = pytest.mark.skipif(not have_qemu(), reason="qemu-riscv64 (qemu-user) is not installed")


@pytest.mark.parametrize(("vlen", "units"), [(128, 1), (128, 8), (256, 5)])
@pytest.mark.parametrize("seed", range(1, 4))
def test_programs_agree(seed: int, vlen: int, units: int) -> None:
    assert check(seed, 200, units=units, vlen=vlen) == []
