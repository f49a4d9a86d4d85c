"""A program's own way into a VM's network and out of it.

    vm.dial("tcp", 80)                            a socket, connected to the guest's port 80
    vm.listen("tcp", 9000)                        a socket that the guest reaches at host.internal:9000
    httpx.Client(transport=vm.http_transport())   http://anything:80/ is the guest's port 80

A dialled port is forwarded from a port of this host's loopback, from the first time on until the VM ends.
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Literal

import httpx

from crumble_common.errors import UsageError
from crumble_common.messages.net import Forward, ForwardAdd, ServiceAdd

if TYPE_CHECKING:
    from crumble.sdk.session import Session

Kind = Literal["tcp", "udp"]
_STYLES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_LOOPBACK = "127.0.0.1"
# A free port may be somebody else's a moment later.
_TRIES = 20
_HTTP_PORTS = {"http": 80, "https": 443}


class Ports:
    """Of one VM; from any thread."""

    def __init__(self, link: Session, target: str) -> None:
        self._link, self._target = link, target
        self._lock = threading.Lock()
        self._known: dict[tuple[Kind, int], int] = {}

    def dial(self, kind: Kind, port: int, timeout: float | None) -> socket.socket:
        """A connected socket; raises UsageError, OSError."""
        where = self.forwarded(kind, port)
        if kind == "tcp":
            return socket.create_connection((_LOOPBACK, where), timeout)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(timeout)
        sock.connect((_LOOPBACK, where))
        return sock

    def forwarded(self, kind: Kind, port: int) -> int:
        """The port of our loopback that leads to the guest's."""
        _check(kind, port)
        with self._lock:
            if (kind, port) not in self._known:
                self._known[kind, port] = self._forward(kind, port)
            return self._known[kind, port]

    def _forward(self, kind: Kind, port: int) -> int:
        for left in reversed(range(_TRIES)):
            with socket.socket(socket.AF_INET, _STYLES[kind]) as sock:
                sock.bind((_LOOPBACK, 0))
                free: int = sock.getsockname()[1]
            try:
                self._link.call(ForwardAdd(Forward(free, port, _LOOPBACK, kind)), to=self._target)
            except UsageError as error:
                if error.code != "net.forward" or not left:
                    raise
            else:
                return free
        raise AssertionError

    def listen(self, kind: Kind, port: int, backlog: int) -> socket.socket:
        """A socket of our loopback, which is the guest's host.internal:PORT from now on."""
        _check(kind, port)
        sock = socket.socket(socket.AF_INET, _STYLES[kind])
        try:
            sock.bind((_LOOPBACK, 0))
            if kind == "tcp":
                sock.listen(backlog)
            ours: int = sock.getsockname()[1]
            self._link.call(ServiceAdd(port, ours, kind), to=self._target)
        except BaseException:
            sock.close()
            raise
        return sock


class HttpTransport(httpx.BaseTransport):
    """Requests go to the guest, whatever the URL's host is; its port is the guest's."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Of httpx.BaseTransport."""
        url = request.url
        port = self._ports.forwarded("tcp", url.port or _HTTP_PORTS[url.scheme])
        request.extensions = {"sni_hostname": url.host, **request.extensions}
        request.url = url.copy_with(host=_LOOPBACK, port=port)
        return self._inner.handle_request(request)

    def close(self) -> None:
        """Closes its connections."""
        self._inner.close()


def _check(kind: str, port: int) -> None:
    if kind not in _STYLES or not 0 < port < 65_536:
        raise UsageError(
            f"{kind} port {port} cannot be dialled or listened at.",
            code="net.port",
            hint='Give "tcp" or "udp", and a port from 1 to 65535.',
        )
