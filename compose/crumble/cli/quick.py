"""One question to the daemon over its plain socket, without ZeroMQ and without message classes.

For verbs that must answer at once. The answer is plain values, as crumble_common.wire packs them.
"""

from __future__ import annotations

import socket
import struct

import msgpack

from crumble.supervisor.locate import find_daemon
from crumble_common.errors import BY_FAULT, InternalError, UsageError

_LIMIT = 30.0
_LENGTH = struct.Struct("<I")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def ask(
    kind: str,
    body: dict[str, Any],
    to: str = "",
    *,
    limit: float = _LIMIT,
    on_event: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The body of the answer; raises the error, UsageError "up.none" without a daemon.

    on_event: gets the type and the body of what comes before the answer. limit: s between two frames.
    """
    daemon = find_daemon()
    if not daemon:
        raise UsageError(
            "No supervisor is running.", code="up.none", hint="`crumble up --detach` starts one."
        )
    try:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(limit)
            stream.connect(f"{daemon}/stream")
            frame = msgpack.packb({"t": kind, "id": 1, "b": body, "to": to})
            stream.sendall(_LENGTH.pack(len(frame)) + frame)
            reply = _reply(stream, on_event)
    except OSError as error:
        raise InternalError(
            f"The supervisor does not answer: {error.strerror or error}.",
            code="supervisor.gone",
            hint="`crumble down`, then `crumble up`, restarts it.",
        ) from error
    if problem := reply.get("error"):
        error_type = BY_FAULT.get(problem["fault"], InternalError)
        raise error_type(problem["message"], code=problem["code"], hint=problem["hint"])
    answer: dict[str, Any] = reply["b"]
    return answer


def _reply(
    stream: socket.socket, on_event: Callable[[str, dict[str, Any]], None] | None
) -> dict[str, Any]:
    """The first frame that answers."""
    data = bytearray()
    while True:
        while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
            more = stream.recv(1 << 20)
            if not more:
                raise ConnectionResetError("it closed the connection")
            data += more
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        frame: dict[str, Any] = msgpack.unpackb(data[_LENGTH.size : end])
        if "re" in frame:
            return frame
        if on_event is not None:
            on_event(frame["t"], frame["b"])
        del data[:end]
