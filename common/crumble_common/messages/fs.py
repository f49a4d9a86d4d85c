"""`fsd`: what it serves. One process a VM, one virtio-fs device, one tree."""

from __future__ import annotations

from dataclasses import dataclass, field

from crumble_common.wire import message


@dataclass(frozen=True)
class Layer:
    """An image layer on disk: its index and its contents file (see crumble_common.layer_index)."""

    index: str
    contents: str


@dataclass(frozen=True)
class Share:
    """A host directory or file that appears at `target` in the guest; "/", without layers, is all of it."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class InjectedFile:
    """A small file that is there without being in any layer (resolv.conf, hosts)."""

    path: str
    data: bytes
    mode: int = 0o644


@message("fs.config")
@dataclass(frozen=True)
class FsConfig:
    """`fsd`'s configuration. Fds given at spawn, by name: `socket_fd` (vhost-user), "page_state".

    layers: lowest first. upper: a directory for what the guest writes, "" keeps it in memory.
    upper_limit: bytes an in-memory upper may hold. shared_locks: locks on shares are taken on the host
    too, so that VMs sharing files see each other's; a guest process then cannot be killed while it waits
    for one (virtiofs sends no interrupts).
    """

    tag: str
    socket_fd: str
    layers: list[Layer] = field(default_factory=list)
    upper: str = ""
    upper_limit: int = 8 << 30
    shares: list[Share] = field(default_factory=list)
    injected: list[InjectedFile] = field(default_factory=list)
    shared_locks: bool = False
