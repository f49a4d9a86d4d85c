"""What people use networks with, in real guests: curl, wget, apt-get, ping, iperf3, a web server; without IPv4, too.

`make test-net`: it needs an image with those programs, and takes a minute.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator

import httpx
import pytest

import crumble
from crumble.sdk import session
from crumble_common import paths
from framework import assets
from framework.debian_archive import Deb
from framework.ports import free_port
from framework.registry_archives import Item

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow, pytest.mark.long]

IMAGE = "deb:trixie/curl,wget,iperf3,iputils-ping,busybox-static"
BLOB = bytes(range(256)) * 8000


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base has it
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A web server with a large file and a Debian archive; its port."""
    place = tmp_path_factory.mktemp("site")
    (place / "blob").write_bytes(BLOB)
    package = Deb("crumble-test", (Item("./usr/share/crumble-test", b"installed\n"),))
    (place / "crumble-test.deb").write_bytes(package.data())
    digest = hashlib.sha256(package.data()).hexdigest()
    (place / "Packages").write_text(
        f"{package.control()}Filename: ./crumble-test.deb\nSize: {len(package.data())}\n"
        f"SHA256: {digest}\n"
    )
    handler = functools.partial(Quiet, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def meter() -> int:
    """Where iperf3 is forwarded from."""
    return free_port()


@pytest.fixture(scope="module")
def vm(site: int, meter: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[crumble.VM]:
    assets.pulled(IMAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRUMBLE_DATA_DIR", str(paths.data_dir()))
        patch.setenv("CRUMBLE_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        ports = [f"{meter}:5201", f"{meter}:5201/udp"]
        with crumble.VM(IMAGE, allow=[f"host:{site}"], publish=ports) as made:
            yield made
        if session._session is not None:
            session._session.close()


def sh(vm: crumble.VM, script: str) -> str:
    done = vm.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (script, done.stdout, done.stderr)
    output: str = done.stdout
    return output


def test_curl_and_wget(vm: crumble.VM, site: int) -> None:
    digest = hashlib.sha256(BLOB).hexdigest()
    url = f"http://host.internal:{site}/blob"
    assert sh(vm, f"curl -sS {url} | sha256sum").startswith(digest)
    assert sh(vm, f"wget -q -O - {url} | sha256sum").startswith(digest)
    code = "curl -sS -o /dev/null -w '%{http_code}' "
    assert sh(vm, f"{code}http://host.internal:{site}/none") == "404"


def test_apt_get(vm: crumble.VM, site: int) -> None:
    source = f"deb [trusted=yes] http://host.internal:{site}/ ./"
    sh(vm, f"rm -rf /etc/apt/sources.list.d/*; echo '{source}' > /etc/apt/sources.list")
    sh(vm, "apt-get update")
    sh(vm, "apt-get install -y crumble-test")
    assert sh(vm, "cat /usr/share/crumble-test") == "installed\n"


def test_ping(vm: crumble.VM) -> None:
    for where in ("-4 gateway.internal", "-6 gateway.internal", "-4 -s 9000 host.internal"):
        assert " 0% packet loss" in sh(vm, f"ping -c 2 -i 0.2 {where}")


def test_iperf3_both_ways(vm: crumble.VM, meter: int) -> None:
    """From another guest: out of its network by the host's loopback, through a forward into this one's."""
    server = vm.popen(["iperf3", "-s"])
    with crumble.VM(IMAGE, allow=[f"host:{meter}"]) as other:
        sh(other, f"until busybox nc -w 1 host.internal {meter} </dev/null; do sleep 0.2; done")
        for how in ("", "-R", "-P 4", "-u -b 5M -l 1000", "-u -R -b 5M -l 1000"):
            text = sh(other, f"iperf3 -4 -c host.internal -p {meter} -t 2 -J {how}")
            end = json.loads(text)["end"]
            total = end["sum"] if "-u" in how else end["sum_received"]
            assert total["bytes"] > 500_000, (how, total)
    server.kill()


def test_a_web_server_through_a_forward(vm: crumble.VM) -> None:
    vm.run("mkdir -p /srv/www; head -c 1000000 /dev/zero > /srv/www/zeros", check=True)
    vm.run("busybox httpd -p 8000 -h /srv/www", check=True)
    with httpx.Client(transport=vm.http_transport()) as client:
        assert client.get("http://box:8000/zeros").content == bytes(1_000_000)


def test_dhcp(vm: crumble.VM) -> None:
    """Of both versions; what they were told, as busybox's scripts see it."""
    vm.write_file("/tmp/told", '#!/bin/sh\n[ "$1" = deconfig ] || env', mode=0o755)
    output = sh(vm, "busybox udhcpc -q -n -i eth0 -s /tmp/told")
    assert "ip=10.0.2.15\n" in output
    assert "dns=10.0.2.1\n" in output
    output = sh(vm, "busybox udhcpc6 -l -q -n -i eth0 -s /tmp/told")
    assert "dns=fd63:7275:6d62:6c65:0000:0000:0000:0001\n" in output
    assert "search=internal\n" in output


def test_without_ipv4(vm: crumble.VM, site: int) -> None:
    """Names, the host's services and pings work over IPv6 alone. The last test: IPv4 does not come back."""
    # A guest is ready with IPv4; its kernel asks for a router's advertisement a moment later.
    sh(vm, "until busybox ip -6 route | grep -q ^default; do sleep 0.1; done")
    sh(vm, "busybox ip -4 addr flush dev eth0")
    assert sh(vm, "busybox ip -4 route") == ""
    assert " 0% packet loss" in sh(vm, "ping -6 -c 1 gateway.internal")
    digest = hashlib.sha256(BLOB).hexdigest()
    assert sh(vm, f"curl -6 -sS http://host.internal:{site}/blob | sha256sum").startswith(digest)
    assert sh(vm, f"curl -sS http://host.internal:{site}/blob | sha256sum").startswith(digest)
