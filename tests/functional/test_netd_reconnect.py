"""`crumble-netd` under QEMU, killed and started again at the same socket: what of the guest's network goes on."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from framework import assets
from framework.qemu_guest import QemuGuest

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

DATA = bytes(range(1, 251)) * 4000
MODULES = ("failover", "net_failover", "virtio_net")
SCRIPT = """
for m in {modules}; do insmod /$m.ko || exit 1; done
ip link set eth0 up
cat > /bin/lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/24 dev eth0; ip route add default via $router; echo "nameserver $dns" > /etc/resolv.conf
END
chmod +x /bin/lease; mkdir -p /etc
udhcpc -q -n -i eth0 -s /bin/lease >/dev/null 2>&1 || exit 2
wget -q -O - http://10.0.2.2:{site}/ | wc -c
mkfifo /tmp/in
nc 10.0.2.2 {site} < /tmp/in > /tmp/out & old=$!
exec 3> /tmp/in
for time in 1 2; do
    wget -q -T 1 -O - http://10.0.2.2:{site}/kill >/dev/null 2>&1 && exit 3
    tries=0
    until wget -q -T 2 -O /tmp/got http://10.0.2.2:{site}/ 2>/dev/null; do
        tries=$((tries + 1)); [ $tries -lt 60 ] || exit 4
    done
    wc -c < /tmp/got
done
ping -c 1 -q 10.0.2.1 | grep received
nslookup host.internal 10.0.2.1 | grep -c 10.0.2.2
printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3
wait $old; wc -c < /tmp/out
exit 0
"""


@contextmanager
def site(kill: Callable[[], None]) -> Iterator[int]:
    """A web server on the host's loopback that gives DATA, and does `kill` for /kill; its port."""

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/kill":
                kill()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base has it
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_netd_that_is_started_again_serves_the_same_guest(tmp_path: Path) -> None:
    """New connections, DNS and the lease go on; a connection of before is reset when the guest says more."""
    path, started = tmp_path / "net.sock", []

    def start() -> None:
        started.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "crumble_netd",
                    "--socket-path",
                    str(path),
                    "--allow",
                    "host",
                ]
            )
        )

    def again() -> None:
        started[-1].kill()
        started[-1].wait()
        start()

    with site(again) as port:
        script = SCRIPT.format(site=port, modules=" ".join(MODULES))
        kernel = assets.kernel()
        guest = QemuGuest(
            tmp_path, script, {}, files={f"{name}.ko": kernel.module(name) for name in MODULES}
        )
        guest.command += [
            "-chardev", f"socket,id=net,path={path},reconnect=1",
            "-netdev", "vhost-user,id=n,chardev=net",
            "-device", "virtio-net-pci,netdev=n,vectors=0",
        ]  # fmt: skip
        start()
        try:
            output = guest.run().split("\n")
            assert len(started) == 3
            assert started[-1].wait(20) == 0
        finally:
            for netd in started:
                netd.kill()
                netd.wait()
    size = str(len(DATA))
    assert output[:6] == [
        size, size, size,
        "1 packets transmitted, 1 packets received, 0% packet loss", "1", "0",
    ]  # fmt: skip
