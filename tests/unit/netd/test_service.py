"""crumble-netd as a process, driven over vhost-user without a guest; its peers are real sockets of the host."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crumble_netd.addresses import packed
from crumble_netd.header import dns, icmp, udp, virtio_net
from framework.net_client import OFFLOADS, PLAIN, NetClient
from framework.netd_guest import GATEWAY, GATEWAY6, HOST, HOST6

Start = Callable[..., NetClient]


@pytest.fixture
def start() -> Iterator[Start]:
    """A netd of its own for each client; it ends when its front end leaves."""
    made: list[tuple[NetClient, subprocess.Popen[str]]] = []

    def run(*arguments: str, features: int = OFFLOADS, **options: int) -> NetClient:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "crumble_netd", "--fd", str(theirs.fileno()), *arguments],
                pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        client = NetClient(ours, features=features, **options)
        client.process = process  # type: ignore[attr-defined]
        made.append((client, process))
        return client

    yield run
    for client, process in made:
        client.close()
        _, errors = process.communicate(timeout=20)
        assert process.returncode in (0, -signal.SIGKILL), errors
        assert "Traceback" not in errors


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A listening socket on the host's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(20)
        yield made


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def in_thread(call: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("features", "buffer"),
    [
        (OFFLOADS, 4096), (OFFLOADS, 66_000), (PLAIN, 0), (PLAIN | virtio_net.F_MRG_RXBUF, 1536),
        (OFFLOADS & ~virtio_net.F_MTU, 4096), (OFFLOADS & ~virtio_net.F_MRG_RXBUF, 0),
    ],
    ids=["all", "large buffers", "none", "merged only", "mtu 1500", "not merged"],
)  # fmt: skip
def test_bytes_both_ways_are_the_same_bytes(
    start: Start, server: socket.socket, features: int, buffer: int
) -> None:
    client = start("--allow", "host", features=features, buffer=buffer)
    data = random.Random(1).randbytes(1_500_000)
    got = bytearray()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            writer = in_thread(lambda: connection.sendall(data[::-1]))
            while piece := connection.recv(1 << 16):
                got.extend(piece)
            writer.join()

    thread = in_thread(serve)
    stream = client.connect((HOST, port_of(server)))
    stream.send(data)
    stream.shutdown()
    answer = stream.read_all(60)
    thread.join()
    assert got == data
    assert answer == data[::-1]


def test_ipv6_reaches_the_same_loopback(start: Start, server: socket.socket) -> None:
    client = start("--allow", "host")
    stream = client.connect((HOST6, port_of(server)))
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"hello")
    assert stream.read_all() == b"hello"


def test_many_connections_at_once(start: Start, server: socket.socket) -> None:
    client = start("--allow", "host")
    count = 60

    def serve() -> None:
        for _ in range(count):
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(100))

    thread = in_thread(serve)
    streams = [client.start((HOST, port_of(server))) for _ in range(count)]
    for number, stream in enumerate(streams):
        stream.send(b"%d" % number)
    for number, stream in enumerate(streams):
        assert stream.read_all() == b"%d" % number
    thread.join()


def test_nobody_listens_and_not_allowed_are_refused(start: Start, server: socket.socket) -> None:
    port = port_of(server)
    client = start("--allow", f"host:{port}")
    with pytest.raises(ConnectionError, match="refused"):
        client.connect((HOST, port + 1))
    server.close()
    with pytest.raises(ConnectionError, match="refused"):
        client.connect((HOST, port))
    with pytest.raises(ConnectionError, match="refused"):
        client.connect((packed("169.254.169.254"), 80))


def test_a_host_that_does_not_read_stops_the_guest(start: Start, server: socket.socket) -> None:
    client = start("--allow", "host")
    stream = client.connect((HOST, port_of(server)))
    connection, _ = server.accept()
    data = random.Random(2).randbytes(12_000_000)
    stream.send(data)
    with pytest.raises(TimeoutError):
        stream.wait(lambda: stream.idle, 1.0)
    got = bytearray()

    def read() -> None:
        while piece := connection.recv(1 << 16):
            got.extend(piece)

    thread = in_thread(read)
    stream.shutdown()
    stream.wait(lambda: stream.connection.block.fin_sent and stream.idle, 60)
    thread.join()
    connection.close()
    assert stream.read_all() == b""
    assert got == data


def test_a_guest_that_does_not_read_stops_the_host(start: Start, server: socket.socket) -> None:
    client = start("--allow", "host")
    stream = client.connect((HOST, port_of(server)))
    connection, _ = server.accept()
    connection.settimeout(0.5)
    stream.reading = False
    with pytest.raises(TimeoutError), connection:
        while True:
            client.pump(0.001)
            connection.sendall(bytes(1 << 20))
    assert stream.count <= 2 << 20


def test_resets_go_through_both_ways(start: Start, server: socket.socket) -> None:
    client = start("--allow", "host")
    stream = client.connect((HOST, port_of(server)))
    connection, _ = server.accept()
    stream.abort()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    stream = client.connect((HOST, port_of(server)))
    connection, _ = server.accept()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    stream.wait(lambda: bool(stream.ended))
    assert stream.ended == "reset"


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return port_of(sock)


def test_forwards(start: Start) -> None:
    tcp_port, udp_port = free_port(), free_port(socket.SOCK_DGRAM)
    client = start("-p", f"{tcp_port}:80", "-p", f"127.0.0.1:{udp_port}:53/udp")
    client.listen(80)
    client.guest.arp(GATEWAY)
    client.packet("arp")
    with socket.create_connection(("127.0.0.1", tcp_port), timeout=20) as peer:
        stream = client.accept(80)
        assert stream.remote == GATEWAY
        peer.sendall(b"question")
        assert stream.read(8) == b"question"
        stream.send(b"answer")
        stream.shutdown()
        client.wait(lambda: stream.connection.block.fin_sent)
        assert peer.recv(100) == b"answer"
        assert peer.recv(100) == b""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(20)
        peer.sendto(b"question", ("127.0.0.1", udp_port))
        packet = client.packet("udp")
        assert isinstance(packet.message, udp.Udp)
        assert bytes(packet.message.payload) == b"question"
        client.guest.udp((packet.source, packet.message.source), b"answer", 53)
        client.pump()
        assert peer.recv(100) == b"answer"


def test_a_guest_that_refuses_resets_a_forwards_peer(start: Start) -> None:
    port = free_port()
    client = start("-p", f"{port}:80")
    client.guest.arp(GATEWAY)
    client.packet("arp")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        client.pump(0.5)
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_a_port_that_is_taken_is_a_sentence(server: socket.socket) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crumble_netd", "--fd", str(server.fileno()),
         "-p", f"{port_of(server)}:80"],
        pass_fds=[server.fileno()], capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"Cannot listen at 127.0.0.1 port {port_of(server)}/tcp" in done.stderr


def query(name: str, kind: int, identifier: int = 7) -> bytes:
    labels = tuple(label.encode() for label in name.split("."))
    head = identifier.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0"
    return head + dns.build_name(labels) + kind.to_bytes(2, "big") + b"\0\1"


def ask(client: NetClient, name: str, kind: int, to: bytes = GATEWAY) -> tuple[int, list[bytes]]:
    client.guest.udp((to, 53), query(name, kind))
    packet = client.packet("udp")
    assert isinstance(packet.message, udp.Udp)
    data = bytes(packet.message.payload)
    message = dns.parse(data)
    assert message.identifier == 7
    found = [data[r.data_at : r.data_at + r.size] for r in message.records if r.section == 0]
    return message.code, found


def test_internal_names(start: Start) -> None:
    client = start("--name", "box")
    assert ask(client, "host.internal", dns.A) == (0, [HOST])
    assert ask(client, "HOST.internal", dns.AAAA, GATEWAY6) == (0, [HOST6])
    assert ask(client, "box.internal", dns.A) == (0, [packed("10.0.2.15")])
    assert ask(client, "other.internal", dns.A) == (dns.NAME_ERROR, [])
    code, (name,) = ask(client, "1.2.0.10.in-addr.arpa", dns.PTR)
    assert (code, name) == (0, b"\7gateway\10internal\0")


def test_other_names_are_asked_of_the_hosts_resolver_and_kept(start: Start) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind(("127.0.0.1", 0))
        resolver.settimeout(20)
        client = start("--dns", f"127.0.0.1:{port_of(resolver)}")

        def answer() -> None:
            data, peer = resolver.recvfrom(1000)
            message = dns.parse(data)
            record = dns.build_record(dns.A, 300, b"\1\2\3\4")
            wrong = dns.with_identifier(data, message.identifier ^ 1)
            resolver.sendto(dns.answer(wrong, dns.parse(wrong), 0, []), peer)
            resolver.sendto(dns.answer(data, message, 0, [record]), peer)

        thread = in_thread(answer)
        assert ask(client, "example.org", dns.A) == (0, [b"\1\2\3\4"])
        thread.join()
        assert ask(client, "EXAMPLE.org", dns.A) == (0, [b"\1\2\3\4"])  # nobody answers any more


def test_truncated_answers_are_asked_again_over_tcp(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stream_server, socket.socket(
        socket.AF_INET, socket.SOCK_DGRAM
    ) as resolver:  # fmt: skip
        port = port_of(stream_server)
        resolver.bind(("127.0.0.1", port))
        client = start("--dns", f"127.0.0.1:{port}")

        def answer() -> None:
            data, peer = resolver.recvfrom(1000)
            message = dns.parse(data)
            resolver.sendto(dns.answer(data, message, 0, [], dns.TRUNCATED), peer)
            connection, _ = stream_server.accept()
            with connection:
                again = connection.recv(1000)[2:]
                records = [dns.build_record(dns.A, 300, bytes((1, 1, 1, n))) for n in range(100)]
                response = dns.answer(again, dns.parse(again), 0, records)
                connection.sendall(len(response).to_bytes(2, "big") + response)

        thread = in_thread(answer)
        client.guest.udp((GATEWAY, 53), query("large.org", dns.A))
        packet = client.packet("udp")
        assert isinstance(packet.message, udp.Udp)
        message = dns.parse(bytes(packet.message.payload))
        assert message.flags & dns.TRUNCATED  # the guest's turn: it asks us over TCP
        thread.join()
        stream = client.connect((GATEWAY, 53))
        ours = query("large.org", dns.A)
        stream.send(len(ours).to_bytes(2, "big") + ours)
        size = int.from_bytes(stream.read(2), "big")
        assert sum(r.section == 0 for r in dns.parse(stream.read(size)).records) == 100


def test_captures(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "guest.pcap"
    client = start("--pcap", str(path))
    client.guest.ping(GATEWAY)
    kinds = [client.packet("icmp").message.type for _ in range(2)]  # type: ignore[attr-defined]
    assert kinds == [icmp.ROUTER_ADVERTISEMENT, icmp.ECHO_REPLY]
    data = path.read_bytes()
    assert data[:4] == b"\x4d\x3c\xb2\xa1"
    assert data.count(b"ping") == 2


def test_what_a_guest_breaks_is_its_own(start: Start) -> None:
    client = start()
    client.tx.driver.set_available(0, 9999)
    client.tx.driver.set_avail_idx(1)
    os.eventfd_write(client.tx.kick_fd, 1)
    assert client.tx.broken(timeout=10)
    assert client.process.poll() is None  # type: ignore[attr-defined]


def test_capabilities_and_wrong_words(server: socket.socket) -> None:
    command = [sys.executable, "-m", "crumble_netd"]
    done = subprocess.run([*command, "--print-capabilities"], capture_output=True, check=True)
    assert json.loads(done.stdout)["type"] == "net"
    for words, says in (
        (["--allow", "nonsense"], "'nonsense' is no network rule"),
        (["-p", "80"], "'80' is no port forward"),
        (["--guest", "10.0.3.1"], "not in the network"),
        (["--mtu", "70000"], "an MTU of 70000"),
    ):
        done_text = subprocess.run(
            [*command, "--fd", str(server.fileno()), *words],
            pass_fds=[server.fileno()], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done_text.returncode == 1
        assert says in done_text.stderr
