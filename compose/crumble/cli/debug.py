"""`crumble debug gdb VM`, `crumble debug trace VM`, `crumble debug counters VM`."""

from __future__ import annotations

import struct
from typing import Any

from crumble.cli import quick
from crumble.cli.parser import Parser

_ENTRY = struct.Struct("<QII")


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("debug", "Debugs a VM that runs on the soft CPU.", _EPILOG)
    parser.add_argument("what", choices=("gdb", "trace", "counters"), metavar="gdb|trace|counters")
    parser.add_argument("vm", metavar="VM")
    parser.add_argument(
        "--port",
        type=int,
        default=-1,
        help="gdb: a TCP port of this host (0 any) instead of a Unix socket",
    )
    parser.add_argument("--cpu", type=int, default=0, help="trace: which vCPU (0)")
    parser.add_argument(
        "--count", type=int, default=1000, help="trace: how many instructions (1000)"
    )
    parser.add_argument("--seconds", type=float, default=0.1, help="trace: for how long (0.1)")
    options = parser.parse_args(arguments)
    target = f"vm:{options.vm}"
    if options.what == "gdb":
        answer = quick.ask("vm.debug.start", {"tcp_port": options.port}, to=target)
        print(f"target remote {answer['address']}")
        return 0
    if options.what == "counters":
        _print_counters(quick.ask("vm.debug.count", {}, to=target))
        return 0
    wanted = {"cpu": options.cpu, "count": options.count, "seconds": options.seconds}
    answer = quick.ask("vm.debug.trace", wanted, to=target)
    for pc, insn, privilege in _ENTRY.iter_unpack(answer["entries"]):
        word = f"{insn:08x}" if insn & 3 == 3 else f"{insn & 0xFFFF:04x}"
        print(f"{'US'[privilege]} {pc:016x} {word}")
    return 0


def _print_counters(answer: dict[str, Any]) -> None:
    for name, count in answer["counters"].items():
        print(f"{name:20} {count:14}")
    print(f"\n{'translated code':20} {'called':>14} {'left':>14}")
    for name, counts in sorted(answer["fallbacks"].items(), key=lambda item: -sum(item[1])):
        print(f"{name:20} {counts[0]:14} {counts[1]:14}")


_EPILOG = """\
gdb    prints the command with which gdb (gdb-multiarch) connects. The VM stands still meanwhile.
trace  prints the last instructions of a vCPU: mode (U or S), address, the instruction's bytes.
counters  prints what the vCPUs counted, and per operation what translated code did not do itself:
       called a function for, left to the interpreter.
"""
