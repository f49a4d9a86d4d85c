"""A program that talks to a real guest: dials into it, listens for it, speaks HTTP with it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import crumble
from crumble import aio
from crumble.sdk import session
from crumble_common import paths
from framework import assets

pytestmark = [pytest.mark.guest, pytest.mark.network, pytest.mark.slow]

IMAGE = "deb:trixie/busybox-static"
ECHO = (
    "use Socket; socket(S,PF_INET,SOCK_DGRAM,0); bind(S,sockaddr_in(7,INADDR_ANY)) or die;"
    "while(my $p=recv(S,my $b,999,0)){send(S,uc $b,0,$p)}"
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assets.pulled(IMAGE)
    monkeypatch.setenv("CRUMBLE_DATA_DIR", str(paths.data_dir()))
    monkeypatch.setenv("CRUMBLE_RUNTIME_DIR", str(tmp_path / "run"))
    yield
    if session._session is not None:
        session._session.close()


async def moved(vm: crumble.VM, listener: socket.socket) -> bytes:
    """Off its network and onto it: what the program listens for and has dialled goes along."""
    face = aio.VM()
    face.inner = vm
    await face.disconnect()
    assert vm.info.network == "none"
    with pytest.raises(crumble.UsageError, match="not connected"):
        await face.dial("tcp", 70)
    await face.connect("user")
    assert (vm.info.network, vm.info.address) == ("user", "10.0.2.15")
    listener.settimeout(20)
    caller = await face.popen("echo moved | busybox nc -w 9 host.internal 9000")
    connection, _ = await asyncio.to_thread(listener.accept)
    with connection:
        assert await asyncio.to_thread(connection.recv, 99) == b"moved\n"
    await caller.wait()
    with await face.listen("tcp", 9001) as other:
        loop = asyncio.get_running_loop()
        caller = await face.popen("echo more | busybox nc -w 9 host.internal 9001")
        connection, _ = await loop.sock_accept(other)
        with connection:
            assert await loop.sock_recv(connection, 99) == b"more\n"
        await caller.wait()
    reader, writer = await asyncio.open_connection(sock=await face.dial("tcp", 80))
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    page = await reader.read()
    writer.close()
    return page.rpartition(b"\r\n")[2]


def test_a_program_and_its_guest_talk() -> None:
    with crumble.VM(IMAGE) as vm:
        vm.run("echo hello > /tmp/index.html; busybox httpd -p 80 -h /tmp", check=True)
        with httpx.Client(transport=vm.http_transport()) as client:
            for _ in range(2):
                answer = client.get("http://box/")
                assert (answer.status_code, answer.text) == (200, "hello\n")
            assert client.get("http://box:80/none").status_code == 404
        with vm.dial("tcp", 80, timeout=10) as stream:
            stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"".join(iter(lambda: stream.recv(99), b"")).endswith(b"hello\n")
        try:  # the forward takes the connection before the guest refuses it, or after
            with vm.dial("tcp", 81, timeout=10) as nobody:
                assert nobody.recv(1) == b""
        except ConnectionResetError:
            pass

        echo = vm.popen(["perl", "-e", ECHO])
        with vm.dial("udp", 7, timeout=0.2) as datagrams:
            deadline = time.monotonic() + 20
            while True:  # until perl has bound its port
                datagrams.send(b"loud")
                try:
                    assert datagrams.recv(99) == b"LOUD"
                    break
                except OSError:
                    assert time.monotonic() < deadline
        echo.kill()

        with vm.listen("tcp", 9000) as listener:
            heard: list[bytes] = []

            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    heard.append(connection.recv(99))
                    connection.sendall(b"yours\n")

            thread = threading.Thread(target=serve)
            thread.start()
            done = vm.run(
                "echo mine | busybox nc -w 9 host.internal 9000", capture_output=True, check=True
            )
            thread.join(10)
            assert (done.stdout, heard) == (b"yours\n", [b"mine\n"])
            assert asyncio.run(moved(vm, listener)) == b"hello\n"
        refused = vm.run(["busybox", "nc", "-w", "9", "host.internal", "9002"])
        assert refused.returncode == 1
        with pytest.raises(crumble.UsageError, match="cannot be dialled"):
            vm.dial("tcp", 0)
        with vm.dial("tcp", 80, timeout=10) as stream:
            name = stream.getpeername()
    with socket.socket() as gone:
        assert gone.connect_ex(name) != 0
