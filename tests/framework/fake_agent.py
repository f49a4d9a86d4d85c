"""The guest's side of the agent protocol, played by a test.

agent = FakeAgent(session)
agent.files[b"/etc/passwd"] = b"..."
session.start(...)
events = agent.run()        # answers file requests by itself, keeps the rest in `frames`
events = agent.say(ToHost.STARTED, channel, argument=42)
"""

from __future__ import annotations

import errno
import struct
from typing import Any

from crumble_vmm.agent.events import Event
from crumble_vmm.agent.session import AgentSession
from crumble_vmm.guest.protocol import Frame, FrameReader, ToGuest, ToHost


class FakeAgent:
    """Reads what the session sends; files live in a dict."""

    def __init__(self, session: AgentSession) -> None:
        self.session = session
        self.files: dict[bytes, bytearray] = {}
        self.frames: list[Frame] = []
        self._reader = FrameReader()

    def say(
        self, kind: int, channel: int = 0, argument: int = 0, flags: int = 0, payload: bytes = b""
    ) -> list[Event]:
        """Sends one frame; gives what the session made of it, and of the answers it led to."""
        frame = Frame(kind, channel, argument, flags, payload)
        return [*self.session.receive(frame.encode()), *self.run()]

    def run(self) -> list[Event]:
        """Answers every file request there is."""
        events: list[Event] = []
        while data := self.session.take():
            for frame in self._reader.feed(data):
                answer = self._answer(frame)
                if answer is None:
                    self.frames.append(frame)
                else:
                    events += self.session.receive(answer.encode())
        return events

    def _answer(self, frame: Frame) -> Frame | None:
        if frame.type == ToGuest.FILE_READ:
            (offset,) = struct.unpack_from("<Q", frame.payload)
            return self._read(frame, frame.payload[8:], offset)
        if frame.type == ToGuest.FILE_WRITE:
            offset, length = struct.unpack_from("<QI", frame.payload)
            path = frame.payload[12 : 12 + length]
            file = self.files.setdefault(path, bytearray())
            if offset == 0:
                file.clear()
            file[offset:] = frame.payload[12 + length :]
            return Frame(ToHost.FILE_DONE, frame.channel)
        return None

    def _read(self, frame: Frame, path: bytes, offset: int) -> Frame:
        if path not in self.files:
            return Frame(ToHost.FILE_DONE, frame.channel, errno.ENOENT)
        data = bytes(self.files[path][offset : offset + frame.argument])
        end = offset + len(data) >= len(self.files[path])
        return Frame(ToHost.FILE_DATA, frame.channel, int(end), payload=data)

    def expect(self, kind: ToGuest) -> Frame:
        """Takes the oldest frame, which must be of this type."""
        frame = self.frames.pop(0)
        assert frame.type == kind, (frame, kind)
        return frame


def parse_spawn(payload: bytes) -> dict[str, Any]:
    """A SPAWN's payload, read as the agent reads it."""
    flags, rows, cols, uid, gid, n_groups = struct.unpack_from("<IHHIII", payload)
    at = 20
    groups = struct.unpack_from(f"<{n_groups}I", payload, at)
    at += 4 * n_groups
    (credit,) = struct.unpack_from("<I", payload, at)
    at += 4

    def string() -> bytes:
        nonlocal at
        (length,) = struct.unpack_from("<I", payload, at)
        found = payload[at + 4 : at + 4 + length]
        assert payload[at + 4 + length] == 0
        at += 5 + length
        return found

    def strings() -> list[bytes]:
        nonlocal at
        (count,) = struct.unpack_from("<I", payload, at)
        at += 4
        return [string() for _ in range(count)]

    made: dict[str, object] = {
        "flags": flags, "rows": rows, "cols": cols, "uid": uid, "gid": gid, "groups": groups,
        "credit": credit, "cwd": string(), "argv": strings(), "env": strings(),
    }  # fmt: skip
    assert at == len(payload)
    return made
