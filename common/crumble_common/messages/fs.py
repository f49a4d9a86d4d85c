"""`fsd`: what it serves. One process a VM, one virtio-fs device, one tree."""

from __future__ import annotations

from crumble_common.record import dataclass, field
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

    lockstep: with a deterministic guest (crumble_common/lockstep.py): the time is the guest's.

    restore: the `state` of an FsFrozen: go on from there. `layers` are then the image's with the captured one
    last (captured ones of before may be between, but are not needed). The tree is as it was, so `injected`
    is not looked at; `upper` must be "". A share is found again by its target: one that is not given any more
    is gone for the guest, and new ones are refused.
    """

    tag: str
    socket_fd: str
    layers: list[Layer] = field(default_factory=list)
    upper: str = ""
    upper_limit: int = 8 << 30
    shares: list[Share] = field(default_factory=list)
    injected: list[InjectedFile] = field(default_factory=list)
    shared_locks: bool = False
    restore: bytes = b""
    lockstep: bool = False


@message("fs.freeze")
@dataclass(frozen=True)
class FsFreeze:
    """Captures what the guest has written as one more layer. Reply: FsFrozen. The fds (by `take_fd` name)
    are of new, empty files; the layer's index and contents go to `index_fd` and `contents_fd`.

    capture_fd: of the RAM image. From then on memory that fsd writes to and that is CRB_PAGE_FROZEN is saved
    there first. The guest stands still; its rings are stopped. The layer goes with the state: only an
    FsConfig.restore can use it.

    capture_fd "": a file system snapshot. The layer is an image's: it can be put over the layers below and
    be made an archive of. The guest may run. excludes: names to leave out, see `crumble_fsd.excludes`.
    """

    capture_fd: str
    index_fd: str
    contents_fd: str
    excludes: list[str] = field(default_factory=list)


@message("fs.frozen")
@dataclass(frozen=True)
class FsFrozen:
    """state: for FsConfig.restore; empty for a file system snapshot. changed: False when there was nothing
    to capture: both files are empty and need not be kept. size: bytes of contents. seconds: what it took. pending:
    the contents are complete when FsCaptured says so.
    """

    state: bytes
    changed: bool
    size: int = 0
    seconds: float = 0.0
    pending: bool = False


@message("fs.captured")
@dataclass(frozen=True)
class FsCaptured:
    """Event: the contents of the last FsFreeze are complete; or they will not be, for `error`, a sentence."""

    error: str = ""
