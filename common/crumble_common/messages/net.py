"""`netd`: a virtual network, as it is configured, changed while it runs, and looked at."""

from __future__ import annotations

from typing import Literal

from crumble_common.record import dataclass, field
from crumble_common.wire import message

# What a network looks like unless it is told otherwise.
NETWORK, GATEWAY, HOST, GUEST = "10.0.2.0/24", "10.0.2.1", "10.0.2.2", "10.0.2.15"
NETWORK6 = "fd63:7275:6d62:6c65::/64"
# The largest IP packet that is a multiple of 8 in size: 64 KiB of data are one packet.
MTU = 65_520
# Bytes of a frame that a capture keeps.
SNAPLEN = 262_144
Protocol = Literal["tcp", "udp"]

# The arena in which a `netd` leaves to its successor what it knows (crumble_common.arena). Most of it is
# never touched, and takes no memory.
ARENA, ARENA_VERSION = "netd", 1
ARENA_SIZE = 6 << 30 | 16 << 20


@dataclass(frozen=True)
class Forward:
    """What comes to `host_port` of the host's address `host` goes to `guest_port` of the guest."""

    host_port: int
    guest_port: int
    host: str = "127.0.0.1"
    protocol: Protocol = "tcp"


@dataclass(frozen=True)
class NetPolicy:
    """What a guest may talk to; rules as in crumble_netd.policy. internet: what no rule speaks of, may be.

    rate_out, rate_in: bytes a second from and to the guest. rate_flows: new flows a second. 0: no limit.
    """

    allow: list[str] = field(default_factory=list)
    deny: list[str] = field(default_factory=list)
    internet: bool = True
    rate_out: int = 0
    rate_in: int = 0
    rate_flows: int = 0


@message("net.config")
@dataclass(frozen=True)
class NetConfig:
    """`netd`'s configuration. Fds given at spawn, by name: `socket_fd` (vhost-user), `capture_fd` if any.

    name: the guest's, NAME.internal; so are its aliases. mac: "" learns it from the guest's first frame. resolvers: addresses
    of DNS servers, "" or ADDRESS:PORT; none: those of the host's resolv.conf. capture_fd: gets a packet
    capture of at most `snaplen` bytes a frame. also: further addresses of the gateway. With an empty
    `socket_fd` the network begins without guests, and outlives each of them: see PortAdd.
    """

    socket_fd: str
    name: str = ""
    aliases: list[str] = field(default_factory=list)
    mac: str = ""
    mtu: int = MTU
    network: str = NETWORK
    gateway: str = GATEWAY
    host: str = HOST
    guest: str = GUEST
    network6: str = NETWORK6
    resolvers: list[str] = field(default_factory=list)
    policy: NetPolicy = field(default_factory=NetPolicy)
    forwards: list[Forward] = field(default_factory=list)
    capture_fd: str = ""
    snaplen: int = SNAPLEN
    also: list[str] = field(default_factory=list)


@message("net.port.add")
@dataclass(frozen=True)
class PortAdd:
    """One guest more on a network. Reply: Ok. The fds were handed over, by the names given here (those of
    a MemoryBase by its own names); the fields are those of NetConfig. It is removed when its front end leaves.
    """

    name: str
    socket_fd: str
    guest: str
    mac: str
    mtu: int = MTU
    page_state_fd: str = ""
    memory_base_fds: dict[str, str] = field(default_factory=dict)
    policy: NetPolicy = field(default_factory=NetPolicy)
    forwards: list[Forward] = field(default_factory=list)
    capture_fd: str = ""
    snaplen: int = SNAPLEN
    aliases: list[str] = field(default_factory=list)


@message("net.port.remove")
@dataclass(frozen=True)
class PortRemove:
    """A guest leaves a network: its flows and forwards end. Reply: Ok. Error: "net.guest" when it is not on it."""

    guest: str


@message("net.freeze")
@dataclass(frozen=True)
class NetFreeze:
    """The VM is being captured and stands still: from now on memory that `netd` writes to and that is
    CRB_PAGE_FROZEN is saved to `capture_fd` (a `take_fd` name) first. Reply: NetFrozen. Nothing of the network is
    captured: to a clone its connections are gone. guest: by name; "" where there is but one.
    """

    capture_fd: str
    guest: str = ""


@message("net.frozen")
@dataclass(frozen=True)
class NetFrozen:
    """connections: the guest's TCP connections, as `netd` packs them."""

    connections: bytes


@message("net.sever")
@dataclass(frozen=True)
class NetSever:
    """For a guest that went on from a capture: those of its connections are reset in it. Reply: Ok. Error:
    "net.connections". connections: of NetFrozen. guest: as in NetFreeze.
    """

    connections: bytes
    guest: str = ""


@message("net.reset")
@dataclass(frozen=True)
class NetReset:
    """The guest is about to leave: its flows end, its TCP connections are reset, in it and at the other end, and new
    ones are refused. Reply: Ok. guest: as in NetFreeze.
    """

    guest: str = ""


@message("net.idle")
@dataclass(frozen=True)
class NetIdle:
    """Event: there is nothing to do. Whoever ends this process now, and starts another one with the same arena when the
    guest or somebody else asks for it, loses nothing.
    """


@message("net.rename")
@dataclass(frozen=True)
class NetRename:
    """The only guest is NAME.internal from now on, for each of these; the first is its name here, too. Reply: Ok."""

    names: list[str]


@message("net.forward.add")
@dataclass(frozen=True)
class ForwardAdd:
    """Adds a port forward. Reply: Ok. Error: "net.forward". guest: as in NetFreeze."""

    forward: Forward
    guest: str = ""


@message("net.forward.remove")
@dataclass(frozen=True)
class ForwardRemove:
    """Ends a port forward; connections through it go on. Reply: Ok."""

    forward: Forward
    guest: str = ""


@message("net.service.add")
@dataclass(frozen=True)
class ServiceAdd:
    """The guest's host.internal:`port` is `host_port` of the host's loopback from now on, whatever rules say.
    Reply: Ok. guest: as in NetFreeze.
    """

    port: int
    host_port: int
    protocol: Protocol = "tcp"
    guest: str = ""


@message("net.inspect")
@dataclass(frozen=True)
class NetInspect:
    """Reply: NetState. guest: of this one only; "" for all."""

    guest: str = ""


@message("net.capture.start")
@dataclass(frozen=True)
class CaptureStart:
    """Captures a guest's packets from now on, instead of what was captured before, to `capture_fd` (handed
    over). Reply: Ok.
    """

    capture_fd: str
    guest: str = ""
    snaplen: int = SNAPLEN


@message("net.capture.stop")
@dataclass(frozen=True)
class CaptureStop:
    """Ends a capture. Reply: CaptureStopped. Error: "net.capture" when there is none."""

    guest: str = ""


@message("net.capture.stopped")
@dataclass(frozen=True)
class CaptureStopped:
    """lost: frames that a slow reader, or a full disk, did not take."""

    frames: int
    lost: int


@dataclass(frozen=True)
class FlowInfo:
    """One flow. guest, remote: ADDRESS:PORT as the guest sees them. seconds: since it began."""

    protocol: str
    guest: str
    remote: str
    state: str
    sent: int
    received: int
    seconds: float
    vm: str = ""


@dataclass(frozen=True)
class Refusal:
    """A flow that policy refused. when: seconds since the epoch. names: what the guest had been told it is."""

    when: float
    protocol: str
    address: str
    port: int
    names: list[str]


@dataclass(frozen=True)
class ServiceInfo:
    """The guest's host.internal:`port` is `host_port` of the host's loopback: see ServiceAdd."""

    port: int
    host_port: int
    protocol: Protocol = "tcp"


@dataclass(frozen=True)
class GuestInfo:
    """One guest of a network. refused: the last flows that policy refused. counters: its own, by name. capturing: its packets are captured."""

    name: str
    mac: str
    address: str
    address6: str
    forwards: list[Forward]
    counters: dict[str, int]
    capturing: bool
    refused: list[Refusal] = field(default_factory=list)
    services: list[ServiceInfo] = field(default_factory=list)


@message("net.state")
@dataclass(frozen=True)
class NetState:
    """A network as it is now."""

    forwards: list[Forward]
    flows: list[FlowInfo]
    counters: dict[str, int]
    guests: list[GuestInfo] = field(default_factory=list)
