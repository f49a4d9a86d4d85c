"""A VM's network: what `netd`, `vmm` and the files of the guest are told of it."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from crumble_common.errors import UsageError
from crumble_common.messages import net
from crumble_common.messages.client import VmCreate
from crumble_common.messages.net import NetConfig
from crumble_common.messages.vm import VirtioNet

if TYPE_CHECKING:
    from crumble.supervisor.vm import Vm

NETWORKS = ("user", "none")
# Kernel modules that only a guest with a network needs; loading them takes time.
_MODULES = frozenset(("failover", "net_failover", "virtio_net"))
_DOMAIN = "internal"
_SOCKET = "net"
# Every guest is alone on its network; so clones of a snapshot, which all have one address, are none to
# each other.
_MAC = "02:63:72:75:6d:02"


class Network:
    """Of one VM. kind: one of NETWORKS. on: it has one."""

    def __init__(self, kind: str, request: VmCreate) -> None:
        if kind == "none" and request.publish:
            raise UsageError(
                "A VM without a network has no ports to forward to.",
                code="vm.network",
                hint="Leave out --network none, or the forwards; a snapshot keeps what it had.",
            )
        self.kind = kind
        self.on = kind != "none"
        self._request = request

    def netd_config(self, vm: Vm) -> NetConfig:
        """What `netd` is told."""
        request = self._request
        return NetConfig(
            socket_fd=_SOCKET,
            name=vm.hostname,
            mac=_MAC,
            policy=request.policy,
            forwards=request.publish,
            capture_fd="capture" if request.capture else "",
        )

    def device(self) -> VirtioNet | None:
        """What `vmm` is told."""
        if not self.on:
            return None
        bits = ipaddress.ip_network(net.NETWORK).prefixlen
        return VirtioNet(_SOCKET, _MAC, net.MTU, f"{net.GUEST}/{bits}", net.GATEWAY)

    def modules(self, paths: list[str]) -> list[str]:
        """Those of a kernel's modules that this guest needs."""
        return [path for path in paths if self.on or Path(path).stem not in _MODULES]

    def resolv_conf(self) -> bytes:
        """The guest's: `netd` answers. Without a network the file is there, and empty."""
        if not self.on:
            return b""
        words = " ".join([_DOMAIN, *_host_search()])
        return f"nameserver {net.GATEWAY}\nsearch {words}\n".encode()


def _host_search() -> list[str]:
    """The host's search domains."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file.read(64 << 10).splitlines()]
    except OSError:
        return []
    found = [words[1:] for words in lines if words and words[0] in ("search", "domain")]
    return [name for name in found[-1] if name.isprintable()][:5] if found else []
