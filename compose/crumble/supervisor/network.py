"""A VM's network: what `netd`, `vmm` and the files of the guest are told of it."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from crumble.networks.store import RESERVED, Definition, NetworkStore, mac_of
from crumble_common.errors import UsageError
from crumble_common.memory_base import NAMES as MEMORY_BASE
from crumble_common.messages import net
from crumble_common.messages.net import NetConfig, PortAdd
from crumble_common.messages.vm import VirtioNet

if TYPE_CHECKING:
    from crumble.supervisor.vm import Vm

NETWORKS = ("user", "none")
# Kernel modules that only a guest with a network needs; loading them takes time.
_MODULES = frozenset(("failover", "net_failover", "virtio_net"))
_DOMAIN = "internal"
_SOCKET = "net"
# The name server's address is the same in every network: what a guest knows of it stays true in a clone.
_ALWAYS = [net.GATEWAY, str(ipaddress.IPv6Network(net.NETWORK6)[1])]


class Network:
    """Of one VM. kind: one of NETWORKS, or the name of a network. on: it has an interface, which is connected, or not:
    then `kept` is what it had.

    Raises UsageError for what cannot be, and takes an address where several guests need different ones.
    """

    def __init__(self, kind: str, vm: Vm) -> None:
        if kind == "none" and vm.request.publish:
            raise UsageError(
                "A VM without a network has no ports to forward to.",
                code="vm.network",
                hint="Leave out --network none, or the forwards; a snapshot keeps what it had.",
            )
        if kind in RESERVED and kind not in NETWORKS:
            raise UsageError(
                f"There is no network {kind}.",
                code="vm.network",
                hint="Choose user, none, or one that `crumble network create` made.",
            )
        self.kind = kind
        self.on = kind != "none"
        self.connected = self.on
        self.kept: net.GuestInfo | None = None
        self.named: Definition | None = None
        self.address, self.mac = net.GUEST if self.on else "", _mac(vm.id)
        if kind not in NETWORKS:
            alive = frozenset(name for name, other in vm.host.vms.items() if not other.ended.done)
            self.named = NetworkStore().lease(kind, vm.name, alive)
            self.address = self.named.leases[vm.name]
            self.mac = mac_of(self.address)

    def netd_config(self, vm: Vm) -> NetConfig:
        """What a `netd` of its own is told."""
        request = vm.request
        return NetConfig(
            socket_fd=_SOCKET,
            name=vm.name,
            aliases=[vm.hostname],
            mac=self.mac,
            policy=request.policy,
            forwards=request.publish,
            capture_fd="capture" if request.capture else "",
        )

    def port(self, vm: Vm, names: Mapping[str, str]) -> PortAdd:
        """What the `netd` of a named network is told of this guest. names: of the fds that it was given."""
        request, named = vm.request, self.named
        assert named is not None
        internet = request.policy.internet and named.internet
        return PortAdd(
            name=vm.name,
            aliases=[vm.hostname],
            socket_fd=names[_SOCKET],
            page_state_fd=names["page_state"],
            memory_base_fds={name: names[name] for name in MEMORY_BASE if name in names},
            capture_fd=names.get("capture", ""),
            guest=self.address,
            mac=self.mac,
            policy=dataclasses.replace(request.policy, internet=internet),
            forwards=request.publish,
        )

    def device(self) -> VirtioNet | None:
        """What `vmm` is told."""
        if not self.on:
            return None
        subnet = self.named.subnet if self.named else net.NETWORK
        gateway = self.named.gateway if self.named else net.GATEWAY
        bits = ipaddress.ip_network(subnet).prefixlen
        address = f"{self.address}/{bits}"
        return VirtioNet(_SOCKET, self.mac, net.MTU, address, gateway)

    def modules(self, paths: list[str]) -> list[str]:
        """Those of a kernel's modules that this guest needs."""
        return [path for path in paths if self.on or Path(path).stem not in _MODULES]

    def resolv_conf(self) -> bytes:
        """The guest's: `netd` answers. Without a network the file is there, and empty."""
        if not self.on:
            return b""
        words = " ".join([_DOMAIN, *_host_search()])
        servers = "".join(f"nameserver {address}\n" for address in _ALWAYS)
        return f"{servers}search {words}\n".encode()


def config_of(named: Definition) -> NetConfig:
    """What the `netd` of a network is told."""
    return NetConfig(
        socket_fd="",
        network=named.subnet,
        gateway=named.gateway,
        host=named.host,
        network6=named.subnet6,
        also=_ALWAYS,
    )


def _mac(identity: str) -> str:
    """Locally administered; on a network of its own, where a VM's address is every other's, too."""
    return "06:63:" + ":".join(identity[at : at + 2] for at in range(0, 8, 2))


def _host_search() -> list[str]:
    """The host's search domains."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file.read(64 << 10).splitlines()]
    except OSError:
        return []
    found = [words[1:] for words in lines if words and words[0] in ("search", "domain")]
    return [name for name in found[-1] if name.isprintable()][:5] if found else []
