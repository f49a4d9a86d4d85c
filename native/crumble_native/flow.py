"""Steady TCP flows between a driver's rings and sockets of the host, served in C. See native/include/crumble/flow.h."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from crumble_native._core import ffi, lib
from crumble_native.frames import Outgoing
from crumble_native.vring import Virtqueue

FLOWS: int = lib.CRB_FLOWS
TIMER: int = lib.CRB_FLOW_TIMER
WATCH: int = lib.CRB_FLOW_WATCH
RECALL: int = lib.CRB_FLOW_RECALL
ERROR: int = lib.CRB_FLOW_ERROR

# Of crb_flow, in order: what moves, and what does not while it is lent.
TIMES = (
    "ts_recent_at", "srtt", "rttvar", "rto", "timed_at", "rtx_at", "persist_at", "keepalive_at",
    "last_sent", "last_received", "w_max", "w_est", "k", "epoch_start",
)  # fmt: skip
WORDS = (
    "snd_una", "snd_nxt", "snd_wnd", "snd_wl1", "snd_wl2", "max_snd_wnd", "cwnd", "rcv_nxt",
    "rcv_adv", "taken", "ts_recent", "last_ack_sent", "timed_seq",
)  # fmt: skip
_OTHER_TIMES = ("keepalive_idle", "armed_at")
_MORE = ("freed", "credit", "size")
_FIXED = (
    "ssthresh", "mss", "snd_scale", "rcv_scale", "rcv_limit", "rcv_mss", "ts_ok", "ts_offset",
    "max_segment", "grows_in", "grows_at", "room", "fd", "watched", "six",
)  # fmt: skip
_NAMES = (*TIMES, *_OTHER_TIMES, *WORDS, *_MORE, *_FIXED)
_KEY_SIZE: int = lib.CRB_FLOW_KEY
_doubles = len(TIMES) + len(_OTHER_TIMES)
_LAYOUT = struct.Struct(f"@{_doubles}d{len(_NAMES) - _doubles}I{_KEY_SIZE}s")
_MOVING = struct.Struct(f"@{len(TIMES)}d{8 * len(_OTHER_TIMES)}x{len(WORDS) + len(_MORE)}I")
_OFFSETS = [ffi.offsetof("crb_flow", name) for name in (*_NAMES, "key")]
_EXPECTED = [8 * min(i, _doubles) + 4 * max(0, i - _doubles) for i in range(len(_OFFSETS))]
if _OFFSETS != _EXPECTED:
    raise ImportError("crb_flow is not laid out as it is packed")


class Fixed(NamedTuple):
    """What does not change while a flow is lent, and where its counts begin; see crb_flow."""

    keepalive_idle: float
    armed_at: float
    freed: int
    credit: int
    size: int
    ssthresh: int
    mss: int
    snd_scale: int
    rcv_scale: int
    rcv_limit: int
    rcv_mss: int
    ts_ok: bool
    ts_offset: int
    max_segment: int
    grows_in: bool
    grows_at: int
    room: int
    fd: int
    watched: bool


class Moved(NamedTuple):
    """A flow that was taken back. numbers: TIMES and WORDS. sent, received: bytes since it was lent."""

    numbers: tuple[float, ...]
    freed: int
    credit: int
    size: int
    sent: int
    received: int
    ack_due: bool
    blocked: bool


class Burst(NamedTuple):
    """chains: taken, and given back. left: the ring's next frame is not for us."""

    chains: int
    left: bool


class Flows:
    """Flows lent to the C core: by index, below FLOWS. outgoing: of the driver that they go to.

    ends: MAC addresses as in a frame from the guest. left: the driver may leave checksums to the device; large4,
    large6: and send large segments. cut4, cut6: it takes none; fill: and wants checksums.
    """

    def __init__(
        self, outgoing: Outgoing, ends: bytes, *, left: bool, large4: bool, large6: bool,
        cut4: bool, cut6: bool, fill: bool,
    ) -> None:  # fmt: skip
        found = lib.crb_flows_new()
        if found == ffi.NULL:
            raise MemoryError("there is no memory for flows")
        self.handle: Any = ffi.gc(found, lib.crb_flows_free)
        self._outgoing = outgoing  # as long as we are
        self._views: dict[int, tuple[Any, ...]] = {}
        self._left: Any = ffi.new("bool *")
        table = self.handle
        table.ends, table.out = ends, outgoing.handle
        table.left, table.gso4, table.gso6 = left, large4, large6
        table.cut4, table.cut6, table.fill = cut4, cut6, fill
        size = ffi.sizeof("crb_flow") * FLOWS
        self._memory = memoryview(ffi.buffer(table.flows, size)).cast("B")

    @property
    def live(self) -> int:
        """How many are lent."""
        return int(self.handle.n_live)

    @property
    def blocked(self) -> bool:
        """There was no room in the driver's ring for some."""
        return bool(self.handle.n_blocked)

    @property
    def waiting(self) -> bool:
        """There is something for `events` or `check`."""
        table = self.handle
        return bool(table.n_events or table.broken or table.pushed)

    def lend(
        self, index: int, numbers: tuple[float, ...], fixed: Fixed, key: bytes,
        ring: memoryview, notes: tuple[memoryview, memoryview] | None,
    ) -> bool:  # fmt: skip
        """numbers: TIMES and WORDS. key: addresses and ports as in a segment from the guest. notes: words that
        say which numbers hold, and the numbers. False when it cannot be.
        """
        flow = self.handle.flows[index]
        at = index * ffi.sizeof("crb_flow")
        moving, times = len(TIMES), len(_OTHER_TIMES)
        _LAYOUT.pack_into(
            self._memory, at, *numbers[:moving], *fixed[:times], *numbers[moving:], *fixed[times:],
            len(key) != 12, key,
        )  # fmt: skip
        views = [ffi.from_buffer(ring), *(ffi.from_buffer(part) for part in notes or ())]
        flow.ring = ffi.cast("uint8_t *", views[0])
        flow.turns = ffi.cast("uint64_t *", views[1]) if notes else ffi.NULL
        flow.numbers = ffi.cast("uint8_t *", views[2]) if notes else ffi.NULL
        if not lib.crb_flow_lend(self.handle, index):
            return False
        self._views[index] = tuple(views)
        return True

    def recall(self, index: int) -> Moved:
        """Takes it back."""
        lib.crb_flow_recall(self.handle, index)
        del self._views[index]
        flow = self.handle.flows[index]
        values = _MOVING.unpack_from(self._memory, index * ffi.sizeof("crb_flow"))
        freed, credit, size = values[-3:]
        return Moved(
            values[:-3], freed, credit, size, flow.sent, flow.received, flow.ack_due, flow.blocked
        )

    def burst(self, tx: Virtqueue, rx: Virtqueue, now: float) -> Burst:
        """Serves what the driver sends; raises the queue's error when its ring is broken."""
        chains = lib.crb_flows_burst(self.handle, tx.handle, rx.handle, now, self._left)
        if chains < 0:
            raise tx.broken(chains)
        return Burst(chains, self._left[0])

    def read(self, index: int, rx: Virtqueue, now: float) -> None:
        """A flow's socket is readable."""
        lib.crb_flow_read(self.handle, index, rx.handle, now)

    def push(self, index: int, rx: Virtqueue, now: float) -> None:
        """A flow may have something to send."""
        lib.crb_flow_push(self.handle, index, rx.handle, now)

    def unblock(self, rx: Virtqueue, now: float) -> None:
        """There is room in the driver's ring."""
        lib.crb_flows_unblock(self.handle, rx.handle, now)

    def check(self, rx: Virtqueue) -> bool:
        """Whether something was put on the driver's ring since the last call; raises its error when it is broken."""
        table = self.handle
        if table.broken:
            raise rx.broken(table.broken)
        pushed, table.pushed = bool(table.pushed), False
        return pushed

    def events(self) -> list[tuple[int, int, int]]:
        """Flows that want to be looked at: index, why, errno."""
        table = self.handle
        if not table.n_events:
            return []
        found = []
        for index in ffi.unpack(table.events, table.n_events):
            flow = table.flows[index]
            if flow.live and flow.why:
                found.append((index, int(flow.why), int(flow.error)))
                flow.why = 0
        table.n_events = 0
        return found

    def deadline(self, index: int) -> float:
        """When a flow's first timer is due; from now on that is what it is waited for."""
        flow = self.handle.flows[index]
        due = min((at for at in (flow.rtx_at, flow.persist_at, flow.keepalive_at) if at), default=0)
        flow.armed_at = due
        return float(due)

    def watch(self, index: int) -> bool:
        """Whether a flow's socket is to be watched; from now on it is, or is not."""
        flow = self.handle.flows[index]
        flow.watched = wanted = bool(flow.credit) and not flow.more
        return wanted

    def counts(self) -> tuple[int, int, int, int, int]:
        """Frames and bytes from the driver, and to it, and frames too large for it, since the last call."""
        table = self.handle
        found = (table.rx_frames, table.rx_bytes, table.tx_frames, table.tx_bytes, table.too_large)
        table.rx_frames = table.rx_bytes = table.tx_frames = table.tx_bytes = table.too_large = 0
        return found
