"""The gateway's DNS server: internal names, a cache, and the host's resolvers for the rest.

A query of a guest that is not answered here goes to the host's resolvers one after the other, each under a
number and from a socket of its own (RFC 5452); over TCP when the answer is truncated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crumble_netd.commands import HostClose, HostConnect, HostRead, HostSend
from crumble_netd.flow_table import Flow, Key
from crumble_netd.header import Malformed, dns, udp
from crumble_netd.port import Port
from crumble_netd.resolved import GRACE

if TYPE_CHECKING:
    from crumble_netd.layers.ip import Packet
    from crumble_netd.stack import Stack
    from crumble_netd.tcp_flow import TcpFlow

Resolver = tuple[bytes, int]

_TTL = 60  # of internal names, s
_PATIENCE = 2.0  # with one resolver, s
_ROUNDS = 2
_MAX_PENDING = 256
_CACHE, _MAX_TTL, _MAX_NEGATIVE = 1024, 3600, 60
_STREAM_LIMIT = 2 + dns.MAX_MESSAGE


@dataclass(eq=False)
class _Pending:
    """A query on its way. answer: where the response goes."""

    query: bytes
    message: dns.Message
    answer: Callable[[bytes], None]
    identifier: int
    attempts: list[Resolver]
    flow: Flow | None = None
    stream: bool = False
    buffer: bytearray = field(default_factory=bytearray)


class DnsLayer:
    """names: labels below the internal domain → addresses."""

    def __init__(self, stack: Stack, resolvers: list[Resolver]) -> None:
        self._stack = stack
        self._resolvers = resolvers
        self._pending: dict[int, _Pending] = {}
        self._cache: OrderedDict[bytes, tuple[float, float, bytes]] = OrderedDict()
        self._streams: dict[int, bytearray] = {}
        self.names: dict[tuple[bytes, ...], tuple[bytes, ...]] = {}

    # From guests.

    def receive(self, port: Port, packet: Packet, datagram: udp.Udp) -> None:
        """A query over UDP; raises Malformed."""
        query = bytes(datagram.payload)
        message = dns.parse(query)
        limit = message.udp_size()
        source, here = packet.source, packet.destination
        peer = datagram.source

        def answer(response: bytes) -> None:
            if len(response) > limit:
                response = dns.truncated(response, dns.parse(response))
            self._stack.udp.send(port, here, dns_port, source, peer, response)

        dns_port = datagram.destination
        self._ask(port, query, message, answer)

    def stream(self, flow: TcpFlow, data: bytes | memoryview) -> None:
        """Bytes of a connection to port 53 (RFC 7766): queries with their length in front."""
        buffer = self._streams.setdefault(flow.number, bytearray())
        buffer += data
        while len(buffer) >= 2 and len(buffer) >= 2 + int.from_bytes(buffer[:2], "big"):
            end = 2 + int.from_bytes(buffer[:2], "big")
            query = bytes(buffer[2:end])
            del buffer[:end]
            try:
                message = dns.parse(query)
            except Malformed as error:
                flow.port.counts[f"drop.{error.reason}"] += 1
                continue
            self._ask(flow.port, query, message, lambda response: self._write(flow, response))
        if len(buffer) > _STREAM_LIMIT:
            buffer.clear()

    def _write(self, flow: TcpFlow, response: bytes) -> None:
        """Only while the guest reads what it asked for."""
        connection = flow.connection
        if connection is None or connection.block.fin_queued:
            return
        if connection.buffer.size < 2 * _STREAM_LIMIT:
            self._stack.tcp.received(flow, len(response).to_bytes(2, "big") + response)

    def gone(self, flow: Flow) -> None:
        """A connection of a guest ended."""
        self._streams.pop(flow.number, None)

    def _ask(
        self, port: Port, query: bytes, message: dns.Message, answer: Callable[[bytes], None]
    ) -> None:
        if message.flags & dns.RESPONSE:
            raise Malformed("dns.response")
        port.counts["dns.queries"] += 1
        if port.policy.by_name:
            answer = self._watched(port, message, answer)
        found = self._internal(query, message) or self._cached(message, query)
        if found:
            answer(found)
        elif not self._resolvers or len(self._pending) >= _MAX_PENDING:
            answer(dns.answer(query, message, dns.SERVER_FAILURE, []))
        else:
            identifier = int.from_bytes(self._stack.random(2), "big")
            attempts = self._resolvers * _ROUNDS
            self._try(_Pending(query, message, answer, identifier, list(attempts)))

    def _watched(
        self, port: Port, message: dns.Message, answer: Callable[[bytes], None]
    ) -> Callable[[bytes], None]:
        """Notes what the guest is told, before it is told."""

        def watch(response: bytes) -> None:
            try:
                found = dns.parse(response)
            except Malformed:
                return
            now, name = self._stack.now(), message.question.text
            for record in found.records:
                if record.section == 0 and (record.type, record.size) in (
                    (dns.A, 4),
                    (dns.AAAA, 16),
                ):
                    address = response[record.data_at : record.data_at + record.size]
                    port.resolved.add(address, name, now + record.ttl + GRACE)
            self._stack.on_learnt()
            answer(response)

        return watch

    # Internal names.

    def _internal(self, query: bytes, message: dns.Message) -> bytes:
        name, kind = message.question.name, message.question.type
        domain = tuple(self._stack.addresses.domain.encode().split(b"."))
        if name == (b"localhost",) or name[-1:] == (b"localhost",):
            return _addresses(query, message, (bytes((127, 0, 0, 1)), (1).to_bytes(16, "big")))
        if name[-len(domain) :] == domain:
            found = self.names.get(name[: -len(domain)])
            if found is None:
                exists = name == domain
                return dns.answer(query, message, dns.NO_ERROR if exists else dns.NAME_ERROR, [])
            return _addresses(query, message, found)
        if name[-1:] == (b"arpa",):
            return self._reverse(query, message, kind, domain)
        return b""

    def _reverse(
        self, query: bytes, message: dns.Message, kind: int, domain: tuple[bytes, ...]
    ) -> bytes:
        address = _reversed_address(message.question.name)
        if not address or not self._stack.addresses.inside(address):
            return b""
        for name, addresses in self.names.items():
            if address in addresses and kind in (dns.PTR, dns.ANY):
                record = dns.build_record(dns.PTR, _TTL, dns.build_name(name + domain))
                return dns.answer(query, message, dns.NO_ERROR, [record])
        return dns.answer(query, message, dns.NAME_ERROR, [])

    # The host's resolvers.

    def _try(self, pending: _Pending) -> None:
        """Asks the next resolver."""
        stack = self._stack
        self._leave(pending)
        if not pending.attempts:
            pending.answer(dns.answer(pending.query, pending.message, dns.SERVER_FAILURE, []))
            return
        target = pending.attempts[0]
        flow = Flow(Key("udp", -1, b"", 0, *target), stack.nobody, target=target)
        stack.flows.add(flow)
        pending.flow = flow
        self._pending[flow.number] = pending
        stack.timers.set(("dns", flow.number), stack.now() + _PATIENCE)
        message = dns.with_identifier(pending.query, pending.identifier)
        if pending.stream:
            pending.buffer.clear()
            stack.emit(HostConnect(flow.number, "tcp", *target))
            stack.emit(HostSend(flow.number, len(message).to_bytes(2, "big") + message))
            stack.emit(HostRead(flow.number, _STREAM_LIMIT))
        else:
            pending.attempts.pop(0)
            stack.emit(HostConnect(flow.number, "udp", *target))
            stack.emit(HostSend(flow.number, message))

    def _leave(self, pending: _Pending) -> None:
        flow, pending.flow = pending.flow, None
        if flow is not None:
            del self._pending[flow.number]
            self._stack.timers.set(("dns", flow.number), 0)
            self._stack.flows.remove(flow)
            self._stack.emit(HostClose(flow.number))

    def owns(self, flow: Flow) -> bool:
        """Whether a flow is a query of ours."""
        return flow.number in self._pending

    def received(self, flow: Flow, data: bytes) -> None:
        """What a resolver said."""
        pending = self._pending[flow.number]
        if pending.stream:
            pending.buffer += data
            size = int.from_bytes(pending.buffer[:2], "big")
            if len(pending.buffer) < 2 or len(pending.buffer) < 2 + size:
                return
            data = bytes(pending.buffer[2 : 2 + size])
        try:
            response = dns.parse(data)
        except Malformed:
            return  # not an answer to what was asked; another one may come
        ours = pending.message.question
        theirs = response.question
        if (
            response.identifier != pending.identifier
            or not response.flags & dns.RESPONSE
            or (theirs.name, theirs.type, theirs.kind) != (ours.name, ours.type, ours.kind)
        ):
            return
        self._answered(pending, flow.target, data, response)

    def _answered(
        self, pending: _Pending, resolver: Resolver, data: bytes, response: dns.Message
    ) -> None:
        if response.flags & dns.TRUNCATED and not pending.stream:
            pending.stream = True
            pending.attempts.insert(0, resolver)
            self._try(pending)
        elif response.code in (dns.SERVER_FAILURE, dns.REFUSED) and pending.attempts:
            pending.stream = False
            self._try(pending)
        else:
            self._leave(pending)
            self._keep(pending.message, pending.query, data, response)
            pending.answer(dns.with_identifier(data, pending.message.identifier))

    def failed(self, flow: Flow) -> None:
        """A resolver did not answer, or cannot be reached."""
        pending = self._pending[flow.number]
        if pending.stream:
            pending.attempts.pop(0)
            pending.stream = False
        self._try(pending)

    # The cache.

    def _cached(self, message: dns.Message, query: bytes) -> bytes:
        key = _cache_key(message, query)
        entry = self._cache.get(key)
        now = self._stack.now()
        if entry is None or now >= entry[1]:
            return b""
        kept, _, data = entry
        response = dns.parse(data)
        fresh = dns.aged(data, response.records, int(now - kept))
        # The question as this guest wrote it: some check its case (RFC 5452's poor relation, 0x20).
        end = message.question.end
        return message.identifier.to_bytes(2, "big") + fresh[2:12] + query[12:end] + fresh[end:]

    def _keep(self, message: dns.Message, query: bytes, data: bytes, response: dns.Message) -> None:
        life = _lifetime(response)
        if life <= 0 or response.question.end != message.question.end:
            return
        now = self._stack.now()
        self._cache[_cache_key(message, query)] = (now, now + life, data)
        while len(self._cache) > _CACHE:
            self._cache.popitem(last=False)


def _cache_key(message: dns.Message, query: bytes) -> bytes:
    """What makes answers differ: the question, EDNS and its DO bit, RD and CD."""
    question, opt = message.question, message.opt()
    secure = bool(opt and opt.ttl & 0x8000)
    flags = message.flags & (dns.DESIRED | dns.CHECKING_DISABLED)
    name = query[dns.SIZE : question.end].lower()
    return name + flags.to_bytes(2, "big") + bytes((opt is not None, secure))


def _lifetime(response: dns.Message) -> int:
    """Seconds a response may be kept (RFC 1035 §3.2.1, RFC 2308 §5); 0: not at all."""
    if response.flags & dns.TRUNCATED or response.code not in (dns.NO_ERROR, dns.NAME_ERROR):
        return 0
    answers = [record.ttl for record in response.records if record.section == 0]
    if answers and response.code == dns.NO_ERROR:
        return min(*answers, _MAX_TTL)
    authority = [r.ttl for r in response.records if r.section == 1 and r.type == dns.SOA]
    return min(*authority, _MAX_NEGATIVE) if authority else 0


def _addresses(query: bytes, message: dns.Message, addresses: tuple[bytes, ...]) -> bytes:
    wanted = {dns.A: (4,), dns.AAAA: (16,), dns.ANY: (4, 16)}.get(message.question.type, ())
    records = [
        dns.build_record(dns.A if len(address) == 4 else dns.AAAA, _TTL, address)
        for address in addresses
        if len(address) in wanted
    ]
    return dns.answer(query, message, dns.NO_ERROR, records)


def _reversed_address(name: tuple[bytes, ...]) -> bytes:
    """The address that a name below in-addr.arpa or ip6.arpa stands for; b"" when it is none."""
    try:
        if name[-2:] == (b"in-addr", b"arpa") and len(name) == 6:
            return bytes(int(label) for label in reversed(name[:4]))
        if name[-2:] == (b"ip6", b"arpa") and len(name) == 34:
            return bytes.fromhex(b"".join(reversed(name[:32])).decode("ascii"))
    except ValueError:
        pass
    return b""
