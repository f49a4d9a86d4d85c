"""One guest on the soft CPU, its console on standard output: what benchmarks run as a process.

python -m benchmarks._soft_guest [--memory MIB] KERNEL INITRAMFS COMMAND_LINE
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from crumble_native import rv64
from framework.soft_machine import SoftMachine


def main() -> int:
    """Boots, copies the console, ends when the guest powers off (0) or cannot go on (1)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=int, default=512)
    parser.add_argument("kernel", type=Path)
    parser.add_argument("initramfs", type=Path)
    parser.add_argument("command_line")
    options = parser.parse_args()
    machine = SoftMachine(memory_mib=options.memory)
    machine.load_linux(options.kernel, options.initramfs.read_bytes(), options.command_line)

    def copied(output: bytearray) -> bool:
        if output:
            sys.stdout.buffer.write(output)
            sys.stdout.buffer.flush()
            output.clear()
        return False

    stop = machine.run_hart(0, lambda: copied(machine.output))
    if stop.reason != rv64.EXIT_RESET:
        print(f"the guest stopped: {stop}, {machine.machine.hart(0).get_state()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
