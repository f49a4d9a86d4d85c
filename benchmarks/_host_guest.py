"""What the peers' guests run as init: says that it is up, and then, again and again, that it is alive.

In crumble_ir's dialect (common/crumble_ir/README.md). Its stdout is the console. It does not sleep: QEMU 7.2 does not
set a riscv64 guest's timer when it restores one.
"""

from __future__ import annotations

from crumble_ir.dialect import i32, u64

# A few milliseconds' worth.
_TURNS = 1_000_000


def main() -> i32:
    print("UP")
    turns = u64(0)
    while True:
        turns += 1
        if turns % _TURNS == 0:
            print(".")
    return 0
