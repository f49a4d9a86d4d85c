"""What the stack asks of whoever does its I/O (`loop.py`), carried out in order.

flow: the stack's number for one exchange with the host side; `loop.py` has a socket for each.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from crumble_netd.header.virtio_net import NOTHING, Offload

Kind = Literal["tcp", "udp", "icmp"]


class Frame(NamedTuple):
    """An Ethernet frame for a guest: headers in one piece, payload as it lies."""

    head: bytes
    payload: list[memoryview]
    offload: Offload = NOTHING

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return len(self.head) + sum(map(len, self.payload))


class Transmit(NamedTuple):
    """Puts a frame on a guest's receive ring."""

    port: int
    frame: Frame


class HostConnect(NamedTuple):
    """Makes a socket of a kind, connected to an address (4 or 16 bytes). Answer: Connected or Failed."""

    flow: int
    kind: Kind
    address: bytes
    port: int


class HostSend(NamedTuple):
    """Writes bytes, or sends one datagram. Answer for streams: Took, when the kernel has them."""

    flow: int
    data: bytes | memoryview


class HostRead(NamedTuple):
    """Allows `size` more bytes to be read; a stream starts with none. Answer: Received or Filled."""

    flow: int
    size: int


class HostShutdown(NamedTuple):
    """No more bytes follow; after those still waiting."""

    flow: int


class HostClose(NamedTuple):
    """Forgets the socket. reset: its peer is to see that this was no orderly end."""

    flow: int
    reset: bool = False


class Adopt(NamedTuple):
    """The connection or peer that came as `token` is `flow` from now on."""

    token: int
    flow: int


class Refuse(NamedTuple):
    """Nobody wants the connection or peer that came as `token`."""

    token: int


Command = Transmit | HostConnect | HostSend | HostRead | HostShutdown | HostClose | Adopt | Refuse
