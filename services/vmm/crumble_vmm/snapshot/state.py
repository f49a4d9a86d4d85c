"""What a VM is, but for its memory: the blob of `Frozen.state` and `VmConfig.restore`.

One msgpack map. Whoever reads it takes nothing for granted: shapes and types are checked here, ranges
by each device's `set_state`, which raises ValueError. A blob of another format, or of a machine with
other parts, is foreign; one that cannot be is corrupt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import msgpack

from crumble_common.errors import UsageError
from crumble_common.wire import WireError, pack_body, validate

FORMAT = 2
MAX_SIZE = 1 << 20


@dataclass(frozen=True)
class RingState:
    """Where a device is in a queue. next: avail index to serve next. unfinished: heads of chains taken
    and not given back, oldest first.
    """

    next: int = 0
    unfinished: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class QueueState:
    """A queue as the driver set it up, and where the device is in it."""

    size: int
    ready: bool
    descriptors: int
    driver: int
    device: int
    ring: RingState


@dataclass(frozen=True)
class TransportState:
    """A virtio-mmio slot. device: what the device itself has to keep."""

    status: int
    device_features_sel: int
    driver_features_sel: int
    queue_sel: int
    features: int
    generation: int
    interrupt: int
    problem: str
    queues: list[QueueState]
    device: dict[str, Any]


@dataclass(frozen=True)
class PciState:
    """A virtio-pci function. config: its configuration space. msix: table and what waits. vectors: of
    configuration changes, then of each queue.
    """

    transport: TransportState
    config: bytes
    msix: bytes
    vectors: list[int]


@dataclass(frozen=True)
class PortState:
    """A console port. waiting: bytes for the guest that it has not taken."""

    open: bool
    waiting: bytes


@dataclass(frozen=True)
class ConsoleState:
    """virtio-console. control: messages that the driver has not taken."""

    ports: list[PortState]
    control: list[bytes]


@dataclass(frozen=True)
class UartState:
    """The registers of the 16550A, and input the guest has not read."""

    ier: int
    lcr: int
    mcr: int
    scr: int
    divisor: int
    fifo: bool
    thr_interrupt: bool
    input: bytes


@dataclass(frozen=True)
class RtcState:
    """The registers of the clock; offset: ns from the host's time to the guest's, modulo 2^64."""

    offset: int
    time_high: int
    alarm_high: int
    alarm: int
    enabled: bool
    pending: bool
    armed: bool


@dataclass(frozen=True)
class WatchdogState:
    """The registers of the watchdog; left: ms until it would fire."""

    config: int
    mode: int
    count: int
    left: int


@dataclass(frozen=True)
class Pl011State:
    """The registers of the PL011, and input the guest has not read. plain: those that only hold."""

    plain: list[int]
    mask: int
    sent: bool
    input: bytes


@dataclass(frozen=True)
class Pl031State:
    """The registers of the clock; offset: s from the host's time to the guest's, modulo 2^32."""

    offset: int
    match: int
    armed: bool
    enabled: bool
    pending: bool


@dataclass(frozen=True)
class NoState:
    """A device that has nothing to keep."""


@dataclass(frozen=True)
class ProcessState:
    """A process that the session of the captured VM knew."""

    channel: int
    pid: int
    streams: list[int]


@dataclass(frozen=True)
class AgentState:
    """The conversation with the agent. received: the start of a frame. waiting: bytes not yet in the port."""

    ready: bool = False
    last_channel: int = 0
    processes: list[ProcessState] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    received: bytes = b""
    waiting: bytes = b""


@dataclass(frozen=True)
class VmState:
    """All of it. memory: bytes. time: ticks. controller: the interrupt controller's. cpus: a map each, the
    hypervisor's own. console: the last bytes the kernel printed.
    """

    format: int
    architecture: str
    hypervisor: str
    memory: int
    time: int
    controller: bytes
    cpus: list[dict[str, Any]]
    devices: dict[str, dict[str, Any]]
    agent: AgentState
    console: bytes

    def encode(self) -> bytes:
        """The blob; raises UsageError when so much waits in queues that it would be too large."""
        blob = cast("bytes", msgpack.packb(pack_body(self), use_bin_type=True))
        if len(blob) > MAX_SIZE:
            raise UsageError(
                "The VM cannot be captured now: too much input waits for its processes.",
                code="vm.busy",
                hint="Try again when they have read it.",
            )
        return blob

    @classmethod
    def decode(cls, blob: bytes) -> VmState:
        """What encode made; raises UsageError "snapshot.corrupt" or "snapshot.foreign"."""
        if len(blob) > MAX_SIZE:
            raise corrupt(f"it has {len(blob)} bytes")
        try:
            found = msgpack.unpackb(blob, raw=False, strict_map_key=True)
        except Exception as error:  # noqa: BLE001  msgpack raises many kinds for bad bytes
            raise corrupt(f"it is not msgpack: {error}") from None
        if not isinstance(found, dict):
            raise corrupt("it is no map")
        if found.get("format") != FORMAT:
            raise foreign(f"it has format {found.get('format')!r:.20}, this version reads {FORMAT}")
        try:
            return validate(cls, found, "state")
        except (WireError, RecursionError) as error:
            raise corrupt(str(error)) from None


def corrupt(why: str) -> UsageError:
    """The blob cannot be what a VM was."""
    return UsageError(
        f"The snapshot's state is damaged: {why}.",
        code="snapshot.corrupt",
        hint="Remove the snapshot and make it again.",
    )


def foreign(why: str) -> UsageError:
    """The blob is another version's, or of another machine."""
    return UsageError(
        f"The snapshot does not fit: {why}.",
        code="snapshot.foreign",
        hint="Restore it with the version and the machine that it was made with, or make it again.",
    )


def in_range(name: str, value: int, bits: int) -> int:
    """`value` when it is an unsigned number of that many bits; ValueError."""
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} is {value}")
    return value
