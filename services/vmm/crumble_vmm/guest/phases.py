"""When each phase of init began, told to the host in READY. In the dialect of crumble_ir."""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir.dialect import array, i64, ptr, static, u8, u32, u64
from crumble_ir.runtime import memory
from crumble_vmm.guest import state

LIMIT = 512

data = static(array[u8, LIMIT])
size = static(i64)


def mark(name: ptr[u8]) -> None:
    """The phase `name` begins: u64 ns of CLOCK_MONOTONIC, u32 length, name."""
    global size
    count = memory.length(name)
    assert size + 12 + count <= LIMIT
    now = u64(state.now())
    target = data + size
    state.put32(target, u32(now))
    state.put32(target + 4, u32(now >> 32))
    state.put32(target + 8, u32(count))
    memory.copy(target + 12, name, count)
    size += 12 + count
