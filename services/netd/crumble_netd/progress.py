"""How far a TCP socket of the host has come, as its kernel counts: the truth about bytes whose system call was the
last thing that a process did.

Linux counts what a peer has acknowledged and what has come (TCP_INFO, since 4.1), and says what lies in both
queues: so what a process has written and read, to the byte, is known to whoever has the socket.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import termios
from typing import NamedTuple

# struct tcp_info of linux/tcp.h: tcpi_state, then tcpi_bytes_acked and tcpi_bytes_received.
_COUNTS = struct.Struct("=QQ")
_COUNTS_AT = 120
_TRIES = 100
# enum of linux/tcp_states.h: those in which our FIN is among what was sent, and theirs among what came.
_FIN_WAIT1, _FIN_WAIT2, _TIME_WAIT, _CLOSE, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 4, 5, 6, 7, 8, 9, 11
_SHUT = frozenset((_FIN_WAIT1, _FIN_WAIT2, _TIME_WAIT, _CLOSE, _LAST_ACK, _CLOSING))
_ENDED = frozenset((_TIME_WAIT, _CLOSE, _CLOSE_WAIT, _LAST_ACK, _CLOSING))


class Progress(NamedTuple):
    """Bytes written to a socket and read from it, ever."""

    written: int
    read: int


def of(sock: socket.socket, *, active: bool) -> Progress:
    """Of a connected socket. active: we connected, and our SYN counts as a byte. Raises OSError, too when it broke."""
    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, "the connection broke")
    for _ in range(_TRIES):
        before = _info(sock)
        out, into = _queued(sock, termios.TIOCOUTQ), _queued(sock, termios.FIONREAD)
        if _info(sock) == before:
            state, acked, came = before
            shut, ended = state in _SHUT, state in _ENDED
            return Progress(acked + out - shut - active, came - into - ended)
    raise OSError("the connection does not stand still")


def _info(sock: socket.socket) -> tuple[int, int, int]:
    data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTS_AT + _COUNTS.size)
    if len(data) < _COUNTS_AT + _COUNTS.size:
        raise OSError("this kernel does not count the bytes of a connection")
    return (data[0], *_COUNTS.unpack_from(data, _COUNTS_AT))


def _queued(sock: socket.socket, request: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(sock, request, count)
    return count[0]
