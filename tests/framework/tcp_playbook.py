"""Dialogues with one TCP connection, written as packetdrill's are.

    Playbook().run('''
        < S 0 win 1000 mss 1000         the peer's segment arrives
        > SA 0 ack 1                    we send this, next
        < A 1 ack 1 win 1000
        = Established                   the application hears this, next
        ! write 500                     the application does this
        > AP 1+500 ack 1
        @ 1.0                           time passes, with its timers
    ''')

Flags are S A F R P; sequence numbers count from each side's ISS, `+N` is the length. `win`, `mss`, `scale`, `sackok`,
`sack A-B,C-D`, `ts V/E` may follow; what is not written of our own segments is not looked at. A line that expects is
compared with the next thing the connection did; at a line that acts, and at the end, nothing may be left over.
"""

from __future__ import annotations

from typing import Any

from crumble_netd.header import tcp
from crumble_netd.header.tcp import Options, Segment
from crumble_netd.tcp.connection import Connection
from crumble_netd.tcp.outputs import Data, Ended, Freed, Output, Send
from crumble_netd.tcp.settings import Settings

OURS, THEIRS = 5_000, 4_000_000_000
_FLAGS = {"S": tcp.SYN, "A": tcp.ACK, "F": tcp.FIN, "R": tcp.RST, "P": tcp.PSH}
SETTINGS = Settings(mss=1000, rcv_start=10_000, rcv_max=10_000, rcv_scale=0)


class Playbook:
    """One connection, passive unless `! open` is the first line."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.connection = Connection(OURS, settings)
        self.now = 100.0
        self._heard: list[Output] = []

    def run(self, script: str) -> Playbook:
        """Plays the dialogue; an AssertionError names the line that failed."""
        for line in filter(None, map(str.strip, script.splitlines())):
            kind, _, rest = line.partition(" ")
            {"<": self._peer, ">": self._sent, "=": self._told, "!": self._act, "@": self._wait}[
                kind
            ](rest.strip(), line)
        self._silent("the end")
        return self

    def _collect(self) -> None:
        self._heard += self.connection.take()

    def _silent(self, where: str) -> None:
        self._collect()
        assert not self._heard, f"before {where!r}: {self._shown()}"

    def _shown(self) -> list[str]:
        return [show(output) for output in self._heard]

    def _next(self, line: str) -> Output:
        self._collect()
        assert self._heard, f"nothing happened where {line!r} was expected"
        return self._heard.pop(0)

    # Lines.

    def _peer(self, text: str, line: str) -> None:
        self._silent(line)
        segment = _parse(text)
        if self.connection.block.state == 0 and segment.flags & tcp.SYN:
            self.connection.accept(segment, self.now)
        else:
            self.connection.arrive(segment, self.now)

    def _sent(self, text: str, line: str) -> None:
        output = self._next(line)
        assert isinstance(output, Send), f"{line!r}: {show(output)}"
        wanted, words = _fields(text), text.split()
        found: dict[str, Any] = {
            "flags": output.flags,
            "seq": (output.seq - OURS) & 0xFFFFFFFF,
            "length": sum(map(len, output.payload)),
            "ack": (output.ack - THEIRS) & 0xFFFFFFFF,
            "win": output.window,
            "mss": output.options.mss,
            "scale": output.options.scale,
            "sackok": output.options.sack_ok,
            "sack": tuple(((a - THEIRS) & 0xFFFFFFFF, (b - THEIRS) & 0xFFFFFFFF)
                          for a, b in output.options.sack),
            "ts": output.options.timestamps,
        }  # fmt: skip
        for name, value in wanted.items():
            assert found[name] == value, f"{line!r}: {show(output)} ({name})"
        assert words

    def _told(self, text: str, line: str) -> None:
        output = self._next(line)
        shown = show(output)
        assert shown == text, f"{line!r}: {shown}"

    def _act(self, text: str, line: str) -> None:
        self._silent(line)
        verb, *words = text.split()
        connection, now = self.connection, self.now
        if verb == "write":
            connection.write(bytes(int(words[0])), now)
        elif verb == "consumed":
            connection.consumed(int(words[0]), now)
        elif verb == "paused":
            connection.paused = True
        else:
            getattr(connection, verb)(now)

    def _wait(self, text: str, line: str) -> None:
        """Expectations that follow are of what happened meanwhile, timers at their own times."""
        self._silent(line)
        end = self.now + float(text)
        while 0 < self.connection.deadline() <= end:
            self.now = self.connection.deadline()
            self.connection.tick(self.now)
        self.now = end


def _fields(text: str) -> dict[str, Any]:
    words = text.split()
    found: dict[str, Any] = {"flags": sum(_FLAGS[letter] for letter in words[0])}
    seq, _, length = words[1].partition("+")
    found["seq"], found["length"] = int(seq), int(length or 0)
    rest = iter(words[2:])
    for word in rest:
        if word == "sackok":
            found[word] = True
        elif word == "sack":
            blocks = (block.split("-") for block in next(rest).split(","))
            found[word] = tuple((int(a), int(b)) for a, b in blocks)
        elif word == "ts":
            value, echo = next(rest).split("/")
            found[word] = (int(value), int(echo))
        else:
            found[word] = int(next(rest))
    return found


def _parse(text: str) -> Segment:
    fields = _fields(text)
    sack = tuple(
        ((a + OURS) & 0xFFFFFFFF, (b + OURS) & 0xFFFFFFFF) for a, b in fields.get("sack", ())
    )
    options = Options(
        fields.get("mss"), fields.get("scale"), fields.get("sackok", False), sack, fields.get("ts")
    )
    seq = (fields["seq"] + THEIRS) & 0xFFFFFFFF
    ack = (fields.get("ack", 0) + OURS) & 0xFFFFFFFF
    window = fields.get("win", 10_000)
    payload = memoryview(bytes(fields["length"]))
    return Segment(1, 2, seq, ack, fields["flags"], window, options, payload)


def show(output: Output) -> str:
    """An output as it is written in a dialogue."""
    if isinstance(output, Send):
        flags = "".join(letter for letter, bit in _FLAGS.items() if output.flags & bit)
        size = sum(map(len, output.payload))
        seq, ack = (output.seq - OURS) & 0xFFFFFFFF, (output.ack - THEIRS) & 0xFFFFFFFF
        return f"> {flags} {seq}+{size} ack {ack} win {output.window} {output.options}"
    if isinstance(output, Data):
        return f"Data {len(output.data)}"
    if isinstance(output, Freed):
        return f"Freed {output.size}"
    if isinstance(output, Ended):
        return f"Ended {output.reason}"
    return type(output).__name__


ESTABLISHED = """
    < S 0 win 10000 mss 1000
    > SA 0 ack 1 mss 1000
    < A 1 ack 1 win 10000
    = Established
"""
SACK = """
    < S 0 win 20000 mss 1000 sackok
    > SA 0 ack 1 sackok
    < A 1 ack 1 win 20000
    = Established
"""


def established(script: str, *, opening: str = ESTABLISHED) -> Playbook:
    return Playbook().run(opening).run(script)
