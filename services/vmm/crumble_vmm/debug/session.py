"""One debugger's session: gdb's commands in, replies out; no I/O (GDB manual, appendix E).

All-stop mode: harts are threads 1, 2, …; while the target runs nothing is answered but an interrupt.
What the machine must do is asked of a `Target`; it calls `stopped` when it has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from crumble_vmm.debug import registers
from crumble_vmm.debug.packets import INTERRUPT, PACKET_SIZE, PacketReader, encode, escape, unescape

SIGINT, SIGTRAP = 2, 5
_MAX_READ = PACKET_SIZE // 2 - 16
_ERROR = b"E01"
# Z and z packets: software and hardware breakpoints are one; watch write, read, access (WATCH_* bits).
_BREAK = (0, 1)
_WATCH = {2: 1, 3: 2, 4: 3}
_HELP = "monitor physical on|off: memory by guest-physical addresses\nmonitor registers: all of a hart\n"


class Target(Protocol):
    """What a debugger needs of a machine. Everything but `interrupt` only while it stands still."""

    cpus: int

    def state(self, cpu: int) -> dict[str, Any]:
        """A vCPU's registers."""

    def set_state(self, cpu: int, state: dict[str, Any]) -> None:
        """Changes them; ValueError for what no vCPU can be."""

    def read(self, cpu: int, address: int, length: int, *, physical: bool) -> bytes:
        """Memory, as much of it as is there."""

    def write(self, cpu: int, address: int, data: bytes, *, physical: bool) -> None:
        """Changes memory; ValueError when it is not there."""

    def go(
        self, step: int | None, breakpoints: set[int], watchpoints: set[tuple[int, int, int]]
    ) -> None:
        """Lets all vCPUs run, or makes one do an instruction. ValueError for too many stops."""

    def interrupt(self) -> None:
        """Makes a running machine stand still."""

    def leave(self) -> None:
        """The debugger goes: the machine runs on as if it had not been there."""


class GdbSession:
    """The server's side of one connection."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._reader = PacketReader()
        self._breakpoints: set[int] = set()
        self._watchpoints: set[tuple[int, int, int]] = set()
        self._cpu = 0
        self._physical = False
        self._last_stop = self._stop_reply(0, SIGINT)
        self.running = False
        self.over = False

    # ---- In and out

    def receive(self, data: bytes) -> bytes:
        """What to send for what came. Raises ValueError when the peer does not speak gdb's protocol."""
        out = bytearray()
        for body in self._reader.feed(data):
            out += self._reader.answers()
            if body == INTERRUPT:
                if self.running:
                    self._target.interrupt()
                continue
            reply = self._command(body)
            if reply is not None:
                out += encode(reply)
        return bytes(out + self._reader.answers())

    def stopped(self, cpu: int, signal: int, *, watch: int | None = None) -> bytes:
        """The machine stands still: because of that vCPU, behind an access to `watch` if that is given."""
        self.running = False
        self._cpu = cpu
        self._last_stop = self._stop_reply(cpu, signal, watch)
        return encode(self._last_stop)

    def ended(self) -> bytes:
        """The VM is over."""
        self.over, self.running = True, False
        return encode(b"W00")

    @staticmethod
    def _stop_reply(cpu: int, signal: int, watch: int | None = None) -> bytes:
        why = b"" if watch is None else b"watch:%x;" % watch
        return b"T%02x%bthread:%x;" % (signal, why, cpu + 1)

    # ---- Commands

    def _command(self, body: bytes) -> bytes | None:
        handler = self._HANDLERS.get(body[:1])
        if handler is None or self.running:
            return b""
        try:
            return handler(self, body[1:])
        except (ValueError, IndexError, OverflowError):
            return _ERROR

    def _why(self, _: bytes) -> bytes:
        return self._last_stop

    def _read_all(self, _: bytes) -> bytes:
        state = self._target.state(self._cpu)
        return b"".join(registers.read(state, n) for n in range(registers.COUNT)).hex().encode()

    def _write_all(self, body: bytes) -> bytes:
        data, state, at = _unhex(body), self._target.state(self._cpu), 0
        for number in range(registers.COUNT):
            size = registers.size(number)
            if at + size <= len(data):
                registers.write(state, number, data[at : at + size])
            at += size
        self._target.set_state(self._cpu, state)
        return b"OK"

    def _read_one(self, body: bytes) -> bytes:
        number = int(body, 16)
        if number >= registers.COUNT:
            return _ERROR
        return registers.read(self._target.state(self._cpu), number).hex().encode()

    def _write_one(self, body: bytes) -> bytes:
        number, _, value = body.partition(b"=")
        state = self._target.state(self._cpu)
        registers.write(state, int(number, 16), _unhex(value))
        self._target.set_state(self._cpu, state)
        return b"OK"

    def _read_memory(self, body: bytes) -> bytes:
        address, length = (int(part, 16) for part in body.split(b","))
        length = min(length, _MAX_READ)
        data = self._target.read(self._cpu, address, length, physical=self._physical)
        return data.hex().encode() if data or not length else _ERROR

    def _write_memory(self, body: bytes) -> bytes:
        where, _, data = body.partition(b":")
        return self._store(where, _unhex(data))

    def _write_binary(self, body: bytes) -> bytes:
        where, _, data = body.partition(b":")
        return self._store(where, unescape(data))

    def _store(self, where: bytes, data: bytes) -> bytes:
        address, length = (int(part, 16) for part in where.split(b","))
        if len(data) != length:
            return _ERROR
        self._target.write(self._cpu, address, data, physical=self._physical)
        return b"OK"

    def _set_thread(self, body: bytes) -> bytes:
        number = int(body[1:], 16)
        if number > self._target.cpus:
            return _ERROR
        if number > 0:
            self._cpu = number - 1
        return b"OK"

    def _thread_alive(self, body: bytes) -> bytes:
        return b"OK" if 1 <= int(body, 16) <= self._target.cpus else _ERROR

    def _insert(self, body: bytes) -> bytes:
        return self._change_stop(body, insert=True)

    def _remove(self, body: bytes) -> bytes:
        return self._change_stop(body, insert=False)

    def _change_stop(self, body: bytes, *, insert: bool) -> bytes:
        kind, address, size = (int(part, 16) for part in body.split(b";")[0].split(b","))
        if kind in _BREAK:
            (self._breakpoints.add if insert else self._breakpoints.discard)(address)
        elif kind in _WATCH:
            watch = (address, size, _WATCH[kind])
            (self._watchpoints.add if insert else self._watchpoints.discard)(watch)
        else:
            return b""
        return b"OK"

    # ---- Running

    def _continue(self, body: bytes) -> bytes | None:
        return self._go(None, body)

    def _step(self, body: bytes) -> bytes | None:
        return self._go(self._cpu, body)

    def _go(self, step: int | None, address: bytes = b"") -> bytes | None:
        if address:
            state = self._target.state(self._cpu)
            state["pc"] = int(address, 16)
            self._target.set_state(self._cpu, state)
        self._target.go(step, self._breakpoints, self._watchpoints)
        self.running = True
        return None

    def _detach(self, _: bytes) -> bytes:
        self.over = True
        self._target.leave()
        return b"OK"

    def _kill(self, _: bytes) -> None:
        """A debugger that is done with its target: the VM is not its to end."""
        self._detach(b"")

    def _v(self, body: bytes) -> bytes | None:
        if body == b"Cont?":
            return b"vCont;c;C;s;S"
        if body.startswith(b"Cont;"):
            return self._v_cont(body[5:].split(b";"))
        if body.startswith(b"Kill"):
            return self._detach(b"")
        return b""

    def _v_cont(self, actions: list[bytes]) -> bytes | None:
        """A step of one thread wins over what the others should do."""
        for action in actions:
            what, _, thread = action.partition(b":")
            if what[:1] in (b"s", b"S"):
                step = int(thread, 16) - 1 if thread and not thread.startswith(b"-") else self._cpu
                return self._go(step) if 0 <= step < self._target.cpus else _ERROR
        return self._go(None)

    # ---- Queries

    def _query(self, body: bytes) -> bytes:
        name = body.replace(b",", b":", 1).split(b":", 1)[0]
        handler = self._QUERIES.get(name)
        return handler(self, body) if handler else b""

    def _supported(self, _: bytes) -> bytes:
        offered = "qXfer:features:read+;QStartNoAckMode+;vContSupported+;hwbreak-;swbreak-"
        return b"PacketSize=%x;%b" % (PACKET_SIZE, offered.encode())

    def _features(self, body: bytes) -> bytes:
        parts = body.split(b":")
        if parts[1:4] != [b"features", b"read", b"target.xml"]:
            return b"E00"
        offset, length = (int(part, 16) for part in parts[4].split(b","))
        text = registers.description()
        piece = text[offset : offset + min(length, _MAX_READ)]
        return (b"m" if offset + len(piece) < len(text) else b"l") + escape(piece)

    def _threads(self, _: bytes) -> bytes:
        return b"m" + b",".join(b"%x" % (cpu + 1) for cpu in range(self._target.cpus))

    def _thread_text(self, body: bytes) -> bytes:
        cpu = int(body.split(b",")[1], 16) - 1
        if not 0 <= cpu < self._target.cpus:
            return _ERROR
        state = self._target.state(cpu)
        how = "stopped" if state["hsm"] == 1 else "waiting" if state["waiting"] else "running"
        mode = "supervisor" if state["privilege"] else "user"
        return f"hart {cpu}, {mode} mode, {how}".encode().hex().encode()

    def _monitor(self, body: bytes) -> bytes:
        words = _unhex(body.split(b",", 1)[1]).decode("ascii", "replace").split()
        text = _HELP
        if words[:1] == ["physical"] and words[1:] in (["on"], ["off"]):
            self._physical = words[1] == "on"
            text = f"memory is {'guest-physical' if self._physical else 'virtual'}\n"
        elif words == ["registers"]:
            state = self._target.state(self._cpu)
            text = "".join(f"{key} {_shown(value)}\n" for key, value in state.items())
        return text.encode().hex().encode()

    def _no_ack(self, body: bytes) -> bytes:
        if body != b"StartNoAckMode":
            return b""
        self._reader.no_ack = True
        return b"OK"

    _QUERIES: dict[bytes, Callable[[GdbSession, bytes], bytes]] = {
        b"Supported": _supported,
        b"Xfer": _features,
        b"fThreadInfo": _threads,
        b"sThreadInfo": lambda _self, _body: b"l",
        b"ThreadExtraInfo": _thread_text,
        b"C": lambda self, _body: b"QC%x" % (self._cpu + 1),
        b"Attached": lambda _self, _body: b"1",
        b"Rcmd": _monitor,
    }
    _HANDLERS: dict[bytes, Callable[[GdbSession, bytes], bytes | None]] = {
        b"?": _why, b"g": _read_all, b"G": _write_all, b"p": _read_one, b"P": _write_one,
        b"m": _read_memory, b"M": _write_memory, b"X": _write_binary, b"H": _set_thread,
        b"T": _thread_alive, b"Z": _insert, b"z": _remove, b"c": _continue, b"s": _step,
        b"D": _detach, b"k": _kill, b"v": _v, b"q": _query, b"Q": _no_ack,
    }  # fmt: skip


def _unhex(body: bytes) -> bytes:
    return bytes.fromhex(body.decode("ascii"))


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return " ".join(f"{n:#x}" for n in value) if isinstance(value, list) else f"{value:#x}"
