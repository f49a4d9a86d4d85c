"""Port forwards to real guests that have IPv4, IPv6 or both: Linux's own sockets, dialled from the host's two loopbacks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import crumble
from crumble.sdk import session
from crumble_common import paths
from crumble_common.publish import parse_forward
from framework import assets

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

IMAGE = "deb:trixie/busybox-static"
CONFIGURED = """
while ! busybox ip -6 addr show dev eth0 scope global | busybox grep inet6 | busybox grep -qv tentative; do
    busybox sleep 0.1
done
# netd knows of an address that it has heard of. Router solicitations and packets tell; a kernel that has a
# router's advertisement already sends none.
busybox ping -6 -c 1 fd63:7275:6d62:6c65::1 >/dev/null
"""
# Answers at one family, or (::) at both, with whom it sees.
SERVER = """
use Socket qw(:DEFAULT IPPROTO_IPV6 IPV6_V6ONLY inet_pton getnameinfo NI_NUMERICHOST NI_NUMERICSERV);
($kind, $family, $at, $only) = @ARGV;
socket(S, $family == 4 ? PF_INET : PF_INET6, $kind eq "tcp" ? SOCK_STREAM : SOCK_DGRAM, 0) or die $!;
setsockopt(S, IPPROTO_IPV6, IPV6_V6ONLY, pack("i", $only)) or die $! if $family == 6;
bind(S, $family == 4 ? sockaddr_in($at, INADDR_ANY) : pack_sockaddr_in6($at, Socket::IN6ADDR_ANY)) or die $!;
exit if fork;
close STDOUT; close STDERR; close STDIN;
sub told { (getnameinfo($_[0], NI_NUMERICHOST | NI_NUMERICSERV))[1] }
if ($kind eq "tcp") {
    listen(S, 9);
    while ($p = accept(C, S)) { syswrite(C, told($p)); close C }
} else {
    while (defined($p = recv(S, $b, 99, 0))) { send(S, told($p), 0, $p) }
}
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assets.pulled(IMAGE)
    monkeypatch.setenv("CRUMBLE_DATA_DIR", str(paths.data_dir()))
    monkeypatch.setenv("CRUMBLE_RUNTIME_DIR", str(tmp_path / "run"))
    yield
    if session._session is not None:
        session._session.close()


def free_port(family: socket.AddressFamily, kind: socket.SocketKind) -> int:
    with socket.socket(family, kind) as sock:
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def told(where: tuple[str, int]) -> bytes:
    """Whom the guest's server sees behind a connection to `where`."""
    with socket.create_connection(where, timeout=30) as peer:
        return peer.recv(99)


def told_by_datagrams(sock: socket.socket) -> bytes:
    """The same, asked until there is an answer."""
    sock.settimeout(1.5)
    for _ in range(20):
        sock.send(b"?")
        try:
            return sock.recv(99)
        except TimeoutError:
            continue
    raise AssertionError("the guest does not answer")


def serve(vm: crumble.VM, kind: str, family: int, port: int, *, only: bool = False) -> None:
    vm.run(["perl", "-e", SERVER, kind, str(family), str(port), str(int(only))], check=True)


GATEWAY4, GATEWAY6 = b"10.0.2.1", b"fd63:7275:6d62:6c65::1"


def test_a_forward_reaches_what_listens() -> None:
    six = free_port(socket.AF_INET6, socket.SOCK_STREAM)
    again = free_port(socket.AF_INET6, socket.SOCK_STREAM)
    with crumble.VM(IMAGE, publish=[f"[::1]:{six}:80", f"[::1]:{again}:81"]) as vm:
        vm.run(CONFIGURED, check=True)
        serve(vm, "tcp", 6, 80)  # at both
        serve(vm, "tcp", 4, 81)
        serve(vm, "tcp", 6, 82, only=True)
        assert told(("::1", six)) == GATEWAY6
        with vm.dial("tcp", 80, timeout=30) as peer:
            assert peer.recv(99) == b"::ffff:" + GATEWAY4
        assert told(("::1", again)) == GATEWAY4  # the guest refuses by IPv6
        with vm.dial("tcp", 82, timeout=30) as peer:
            assert peer.recv(99) == GATEWAY6
        with vm.dial("tcp", 83, timeout=30) as peer, pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_a_guest_with_ipv6_alone_is_reached() -> None:
    assert parse_forward("[::1]:8080:80").host == "::1"
    with crumble.VM(IMAGE) as vm:
        vm.run(CONFIGURED + "busybox ip -4 addr flush dev eth0", check=True)
        serve(vm, "tcp", 6, 80)
        serve(vm, "udp", 6, 7)
        for _ in range(2):
            with vm.dial("tcp", 80, timeout=30) as peer:
                assert peer.recv(99) == GATEWAY6
        with vm.dial("udp", 7) as sock:
            assert told_by_datagrams(sock) == GATEWAY6
