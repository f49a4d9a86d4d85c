"""Networks of real guests: Linux's own TCP/IP on our `netd`, in Crumble's VMs and in QEMU's."""

from __future__ import annotations

import hashlib
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_common import paths
from framework import assets
from framework.command import World
from framework.qemu_guest import QemuGuest
from framework.tftp_server import tftp_server

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

IMAGE = "deb:trixie/busybox-static"
# No zeros: busybox posts a string.
DATA = bytes(range(1, 251)) * 12_000
SIZE = len(DATA)


class Site(http.server.BaseHTTPRequestHandler):
    """Gives SIZE bytes for a GET, and for a POST the number of bytes that came."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(SIZE))
        self.end_headers()
        self.wfile.write(DATA)

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        count = len(self.rfile.read(left))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"%d bytes" % count)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base has it
        pass


@pytest.fixture
def site() -> Iterator[int]:
    """A web server on the host's loopback; its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    assets.pulled(IMAGE)
    made = World(tmp_path, "crumble.cli.main")
    made.environment["CRUMBLE_DATA_DIR"] = str(paths.data_dir())
    yield made
    made.end()
    made.assert_nothing_left()


def shell(world: World, script: str, *options: str) -> str:
    """What a script in a guest printed, after `options` of `crumble run`."""
    done = world.run("run", *options, IMAGE, "busybox", "sh", "-c", script)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


@pytest.mark.parametrize("boot", [("--no-snapshot",), ()], ids=["booted", "gone on"])
def test_a_guest_uses_the_network(world: World, site: int, boot: tuple[str, ...]) -> None:
    output = shell(
        world,
        f"""
        busybox wget -q -O /tmp/got http://host.internal:{site}/ && busybox wc -c < /tmp/got
        busybox md5sum < /tmp/got
        busybox wget -q -O - --post-file /tmp/got http://10.0.2.2:{site}/; echo
        busybox ping -c 2 -q gateway.internal | busybox grep received
        while ! busybox ip -6 route | busybox grep -q default; do busybox sleep 0.1; done
        busybox ping -c 1 -q fd63:7275:6d62:6c65::1 | busybox grep received
        busybox nslookup nothing.internal >/dev/null 2>&1 || echo no such name
        busybox wget -q -T 5 -O - http://169.254.169.254/ 2>/dev/null || echo no metadata
        busybox wget -q -T 5 -O - http://host.internal:{site + 1 if site < 65535 else 1}/ 2>/dev/null || echo not allowed
        """,
        *boot, "--allow", f"host:{site}",
    )  # fmt: skip
    assert output.splitlines() == [
        str(SIZE), f"{hashlib.md5(DATA).hexdigest()}  -", f"{SIZE} bytes",
        "2 packets transmitted, 2 packets received, 0% packet loss",
        "1 packets transmitted, 1 packets received, 0% packet loss",
        "no such name", "no metadata", "not allowed",
    ]  # fmt: skip


def test_a_guest_s_datagrams_go_both_ways(world: World) -> None:
    """Small, large and the largest, hundreds each way."""
    with tftp_server({"in": DATA[:500_000]}) as server:
        script = f"""
        for size in 1000 9000 65464; do
            busybox tftp -g -b $size -r in -l /tmp/got 10.0.2.2 {server.port} || exit 1
            busybox md5sum < /tmp/got
            busybox tftp -p -b $size -l /tmp/got -r out$size 10.0.2.2 {server.port} || exit 2
        done
        """
        output = shell(world, script, "--allow", f"host:{server.port}/udp")
        md5 = hashlib.md5(DATA[:500_000]).hexdigest()
        assert output.splitlines() == [f"{md5}  -"] * 3
        assert all(data == DATA[:500_000] for data in server.files.values())
        assert len(server.files) == 4


def test_a_guest_without_a_network_has_none(world: World) -> None:
    output = shell(world, "busybox ls /sys/class/net; cat /etc/resolv.conf", "--network", "none")
    assert output == "lo\n"


def test_a_server_in_a_guest_is_reached_through_a_forward(world: World) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    process = world.start(
        "run", "-p", f"{port}:80", IMAGE, "busybox", "sh", "-c",
        "echo served | busybox nc -l -p 80; echo done",
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
                peer.settimeout(10)
                if (answer := peer.recv(100)) == b"served\n":
                    break
                assert answer == b""
        except OSError:
            time.sleep(0.1)  # the VM, or the server in it, is not there yet
    out, _ = process.communicate(timeout=60)
    assert out.endswith(b"done\n")


def test_linux_in_qemu_uses_our_network(tmp_path: Path, site: int) -> None:
    kernel = assets.kernel()
    names = ("failover", "net_failover", "virtio_net")
    script = f"""
    for m in {" ".join(names)}; do insmod /$m.ko || exit 1; done
    ip link set eth0 up
    cat > /bin/lease <<'END'
    #!/bin/sh
    [ "$1" = bound ] || exit 0
    ip addr add $ip/24 dev eth0; ip route add default via $router; echo "nameserver $dns" > /etc/resolv.conf
    END
    chmod +x /bin/lease; mkdir -p /etc
    udhcpc -q -n -i eth0 -s /bin/lease >/dev/null 2>&1 || exit 2
    wget -q -O /tmp/got http://10.0.2.2:{site}/ && wc -c < /tmp/got
    wget -q -O - --post-file /tmp/got http://10.0.2.2:{site}/; echo
    ping -c 1 -q 10.0.2.1 | grep received
    nslookup host.internal 10.0.2.1 | grep -c 10.0.2.2
    """
    path = tmp_path / "net.sock"
    guest = QemuGuest(
        tmp_path, script.replace("\n    ", "\n"), {},
        files={f"{name}.ko": kernel.module(name) for name in names},
    )  # fmt: skip
    guest.command += [
        "-chardev", f"socket,id=net,path={path}", "-netdev", "vhost-user,id=n,chardev=net",
        "-device", "virtio-net-pci,netdev=n,vectors=0",
    ]  # fmt: skip
    netd = subprocess.Popen(
        [sys.executable, "-m", "crumble_netd", "--socket-path", str(path), "--allow", "host"]
    )
    try:
        while not path.exists():
            assert netd.poll() is None
            time.sleep(0.01)
        output = guest.run().split("\n", 5)
        assert netd.wait(20) == 0
    finally:
        netd.kill()
        netd.wait()
    assert output[:4] == [
        str(SIZE), f"{SIZE} bytes", "1 packets transmitted, 1 packets received, 0% packet loss", "1",
    ]  # fmt: skip
