"""Debugging a VM: gdb, traces of what its vCPUs execute, counters."""

from __future__ import annotations

from crumble_common.record import dataclass
from crumble_common.wire import message


@message("vm.debug.start")
@dataclass(frozen=True)
class DebugStart:
    """Lets gdb connect. To the supervisor: tcp_port on the loopback, 0 any; -1 a Unix socket; reply
    DebugAddress. To `vmm`: listen_fd names the listening socket in the inbox; reply Ok. Errors: "debug.backend",
    "debug.busy".
    """

    tcp_port: int = -1
    listen_fd: str = ""


@message("vm.debug.address")
@dataclass(frozen=True)
class DebugAddress:
    """What `target remote` takes."""

    address: str


@message("vm.debug.trace")
@dataclass(frozen=True)
class DebugTrace:
    """Records for `seconds` what a vCPU executes. Reply: DebugTraced. Errors: "debug.backend", "debug.busy"."""

    cpu: int = 0
    count: int = 1000
    seconds: float = 0.1


@message("vm.debug.traced")
@dataclass(frozen=True)
class DebugTraced:
    """The last instructions: u64 pc, u32 instruction, u32 privilege each, little endian, the oldest first."""

    entries: bytes


@message("vm.debug.count")
@dataclass(frozen=True)
class DebugCount:
    """Asks what the soft CPU counted. Reply: DebugCounted. Errors: "debug.backend"."""


@message("vm.debug.counted")
@dataclass(frozen=True)
class DebugCounted:
    """Sums over all vCPUs. fallbacks: operation to how often translated code called a function for it, and how often
    it left the rest of its block to the interpreter.
    """

    counters: dict[str, int]
    fallbacks: dict[str, list[int]]
