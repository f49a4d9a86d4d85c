"""Networks that VMs share, with real guests on them: names, reach, isolation, forwards and captures that come and go."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crumble_common import paths
from framework import assets
from framework.command import World
from framework.ports import free_port

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

RED, BLUE = "test-red", "test-blue"
IMAGE = "deb:trixie/busybox-static"
# Answers each datagram, of either version, with itself in capitals.
ECHO = (
    "use Socket qw(:all); socket(S,PF_INET6,SOCK_DGRAM,0); setsockopt(S,IPPROTO_IPV6,IPV6_V6ONLY,0);"
    "bind(S,pack_sockaddr_in6(7,inet_pton(AF_INET6,'::'))) or die;"
    "while(my $p=recv(S,my $b,999,0)){send(S,uc $b,0,$p)}"
)
SERVER = f"""
echo hello > /tmp/index.html
busybox httpd -p '[::]:80' -h /tmp
exec perl -e "{ECHO.replace("$", chr(92) + "$")}"
"""
# Sends a datagram to NAME's port 7 by version AF and prints the answer.
ASK = (
    "use Socket qw(:all); my($e,@r)=getaddrinfo('web.internal',7,{family=>AF,socktype=>SOCK_DGRAM});"
    "socket(S,$r[0]{family},SOCK_DGRAM,0); connect(S,$r[0]{addr}); send(S,'quiet',0);"
    "alarm 9; recv(S,my $b,99,0); print $b"
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    assets.pulled(IMAGE)
    made = World(tmp_path, "crumble.cli.main")
    made.environment["CRUMBLE_DATA_DIR"] = str(paths.data_dir())
    made.run("network", "rm", RED, BLUE)  # of a run that was killed
    yield made
    made.run("down")
    made.end()
    made.run("network", "rm", RED, BLUE)
    made.assert_nothing_left()


def ran(world: World, *words: str) -> str:
    done = world.run(*words)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def networks(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ran(world, "network", "ls", "--json"))
    return found


def fetch(port: int, host: str = "127.0.0.1") -> bytes:
    with socket.create_connection((host, port), timeout=10) as peer:
        peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: peer.recv(4096), b"")).rpartition(b"\r\n")[2]


def ask_udp(port: int, family: int, host: str) -> bytes:
    with socket.socket(family, socket.SOCK_DGRAM) as peer:
        peer.settimeout(10)
        peer.connect((host, port))
        peer.send(b"loud")
        return peer.recv(99)


def test_vms_share_a_network(world: World) -> None:
    ran(world, "network", "create", RED, "--subnet", "10.99.0.0/24")
    ran(world, "network", "create", BLUE, "--internal", "--subnet", "172.30.0.0/28")
    web, udp = free_port(), free_port()
    world.up()
    ran(world, "run", "-d", "--name", "web", "--network", RED, "-p", f"{web}:80",
        IMAGE, "sh", "-c", SERVER)  # fmt: skip
    ran(world, "run", "-d", "--name", "one", "--network", RED, IMAGE, "sleep", "1000")
    ran(world, "run", "-d", "--name", "far", "--network", BLUE, IMAGE, "sleep", "1000")

    (six,) = [item["subnet6"] for item in networks(world) if item["name"] == RED]
    script = f"""
    until busybox ip -6 addr show scope global | busybox grep -q inet6 &&
        busybox ping -6 -c 1 -W 1 web.internal >&2; do :; done  # addresses come by router advertisements
    for address in 10.99.0.3 web web.internal [{six.removesuffix("/64")[:-1]}463:aff:fe63:3]; do
        busybox wget -q -T 9 -O - http://$address/
    done
    for version in 4 6; do
        busybox ping -$version -c 1 -q web.internal | busybox grep -c '1 packets received'
    done
    perl -e "{ASK.replace("AF,", "AF_INET,", 1).replace("$", chr(92) + "$")}"; echo
    perl -e "{ASK.replace("AF,", "AF_INET6,", 1).replace("$", chr(92) + "$")}"; echo
    busybox nslookup 10.99.0.3 | busybox grep -c 'name = web.internal'
    """
    output = ran(world, "exec", "one", "sh", "-c", script)
    assert output.split() == ["hello"] * 4 + ["1", "1", "QUIET", "QUIET", "1"]

    # The other network is another world: its names and its addresses.
    script = """
    busybox nslookup web.internal >/dev/null 2>&1 || echo no name
    busybox ping -c 1 -w 1 -q 10.99.0.3 >/dev/null || echo no way
    busybox wget -q -T 2 -O - http://10.99.0.3/ 2>/dev/null || echo refused
    busybox ip -4 addr show eth0 | busybox grep -o 'inet [0-9./]*'
    """
    assert ran(world, "exec", "far", "sh", "-c", script).splitlines() == [
        "no name", "no way", "refused", "inet 172.30.0.3/28",
    ]  # fmt: skip

    refused = json.loads(ran(world, "net", "refused", "far", "--json"))
    assert {("tcp", "10.99.0.3", 80)} <= {(r["protocol"], r["address"], r["port"]) for r in refused}

    # A guest that takes another's address is heard by nobody.
    script = """
    busybox ip addr flush dev eth0; busybox ip addr add 10.99.0.3/24 dev eth0
    busybox ping -c 1 -w 1 -q 10.99.0.1 >/dev/null || echo not heard
    busybox ip addr flush dev eth0; busybox ip addr add 10.99.0.4/24 dev eth0
    busybox ping -c 1 -w 5 -q 10.99.0.1 >/dev/null && echo heard
    """
    assert ran(world, "exec", "one", "sh", "-c", script).splitlines() == ["not heard", "heard"]

    forwards(world, web, udp)
    captures(world)
    flows = json.loads(ran(world, "network", "inspect", RED))
    assert [guest["name"] for guest in flows["guests"]] == ["web", "one"]
    assert flows["guests"][1]["counters"]["drop.spoofed"] > 0

    # A fork has an address of its own.
    ran(world, "fork", "one", "--name", "two")
    script = "busybox ip -4 addr show eth0 | busybox grep -o 'inet [0-9./]*'; busybox wget -q -T 9 -O - http://web/"
    assert ran(world, "exec", "two", "sh", "-c", script).splitlines() == [
        "inet 10.99.0.5/24",
        "hello",
    ]

    refused = world.run("network", "rm", RED)
    assert refused.returncode != 0
    assert "is used by one, two, web" in refused.stderr
    ran(world, "down")
    shown = {item["name"]: item for item in networks(world)}
    assert shown[RED]["internet"] and not shown[BLUE]["internet"]
    assert shown[RED]["leases"]["web"] == "10.99.0.3"
    ran(world, "network", "rm", RED, BLUE)


def forwards(world: World, web: int, udp: int) -> None:
    """Added and removed while the guest runs."""
    assert fetch(web) == b"hello\n"
    ran(world, "port", "web", "add", f"[::1]:{web}:80", f"{udp}:7/udp", f"[::1]:{udp}:7/udp")
    assert ran(world, "port", "web").splitlines() == [
        f"80/tcp -> 127.0.0.1:{web}", f"80/tcp -> [::1]:{web}",
        f"7/udp -> 127.0.0.1:{udp}", f"7/udp -> [::1]:{udp}",
    ]  # fmt: skip
    assert fetch(web, "::1") == b"hello\n"
    assert ask_udp(udp, socket.AF_INET, "127.0.0.1") == b"LOUD"
    assert ask_udp(udp, socket.AF_INET6, "::1") == b"LOUD"
    flows = json.loads(ran(world, "net", "flows", "web", "--json"))
    assert [(flow["protocol"], flow["guest"], flow["received"]) for flow in flows] == [
        ("udp", "10.99.0.3:7", 4), ("udp", "10.99.0.3:7", 4),
    ]  # fmt: skip
    ran(world, "port", "web", "rm", f"{web}:80")
    with pytest.raises(ConnectionRefusedError):
        fetch(web)
    assert fetch(web, "::1") == b"hello\n"
    assert "not forwarded" in world.run("port", "web", "rm", f"{web}:80").stderr
    taken = world.run("port", "one", "add", f"[::1]:{web}:80")
    assert "Cannot listen at ::1" in taken.stderr


def captures(world: World) -> None:
    """To a file, cut, and to a pipe."""
    path = world.scratch.parent / "one.pcap"
    ran(world, "net", "capture", "one", str(path), "--snaplen", "60")
    ran(world, "exec", "one", "busybox", "wget", "-q", "-O", "/dev/null", "http://10.99.0.3/")
    stopped = world.run("net", "capture", "one", "--stop")
    assert stopped.returncode == 0
    records = list(parsed(path.read_bytes()))
    assert stopped.stderr.startswith(f"{len(records)} frames, 0 lost")
    assert max(kept for kept, _ in records) == 60 < max(size for _, size in records)

    process = world.start("net", "capture", "one", "-")
    assert process.stdout is not None
    assert process.stdout.read(4) == b"\x4d\x3c\xb2\xa1"
    ran(world, "exec", "one", "busybox", "ping", "-c", "1", "10.99.0.3")
    world.run("net", "capture", "one", "--stop")
    rest = process.stdout.read()
    assert sum(size == 98 for _, size in parsed(b"\x4d\x3c\xb2\xa1" + rest)) == 2
    assert process.wait(30) == 0


def parsed(data: bytes) -> Iterator[tuple[int, int]]:
    """Bytes kept and there of each frame."""
    assert struct.unpack_from("<IHH", data) == (0xA1B23C4D, 2, 4)
    at = 24
    while at < len(data):
        _, _, kept, size = struct.unpack_from("<IIII", data, at)
        yield kept, size
        at += 16 + kept
    assert at == len(data)
