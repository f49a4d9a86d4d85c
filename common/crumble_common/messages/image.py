"""`ocid`: images and kernels."""

from __future__ import annotations

from typing import Literal

from crumble_common.messages.fs import Layer
from crumble_common.record import dataclass, field
from crumble_common.wire import message

PullPolicy = Literal["missing", "always", "never"]
Unit = Literal["bytes", "files", "packages", "VMs"]


@message("image.config")
@dataclass(frozen=True)
class ImagesConfig:
    """`ocid`'s configuration: the store's directory; plain-HTTP registries beside loopback."""

    store: str
    insecure_registries: list[str] = field(default_factory=list)


@message("image.get")
@dataclass(frozen=True)
class ImageGet:
    """Makes an image ready to run, pulling or building it when policy says so. Reply: Image.

    reference: "name[:tag][@digest]", "deb:SUITE[/PKG,...]", "oci:DIR[:tag]", "docker-archive:FILE[:ref]".
    platform: "linux/riscv64", or "" for the guest's own. While it runs the requester gets
    `Progress` events with this `operation`.
    """

    reference: str
    platform: str = ""
    pull: PullPolicy = "missing"
    operation: str = ""


@dataclass(frozen=True)
class ImageConfig:
    """The image's config that matters to a run (OCI image-spec, config.md)."""

    env: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@message("image")
@dataclass(frozen=True)
class Image:
    """An image in the store. id: digest of its config. digest: of its manifest. size: bytes of blobs."""

    id: str
    digest: str
    reference: str
    platform: str
    size: int
    created: str
    config: ImageConfig
    layers: list[Layer]


@message("image.progress")
@dataclass(frozen=True)
class Progress:
    """Event: `done` of `total` units (0: unknown) of a step of `operation`."""

    operation: str
    step: str
    done: int
    total: int
    unit: Unit = "bytes"


@message("image.cancel")
@dataclass(frozen=True)
class ImageCancel:
    """Event: nobody waits for an operation any more; what was downloaded is kept for the next."""

    operation: str


@message("image.list")
@dataclass(frozen=True)
class ImageList:
    """Reply: Images."""


@message("images")
@dataclass(frozen=True)
class Images:
    """Every image in the store, newest first."""

    images: list[Image]


@message("image.inspect")
@dataclass(frozen=True)
class ImageInspect:
    """Reply: ImageDetails. Never pulls."""

    reference: str


@message("image.details")
@dataclass(frozen=True)
class ImageDetails:
    """An image with its raw manifest and config (JSON text), and all references that name it."""

    image: Image
    manifest: str
    config: str
    references: list[str]


@message("image.remove")
@dataclass(frozen=True)
class ImageRemove:
    """Removes a reference, and what nothing refers to any more. Reply: Removed."""

    reference: str


@message("image.removed")
@dataclass(frozen=True)
class Removed:
    """What went: references and digests; bytes freed."""

    references: list[str]
    digests: list[str]
    freed: int


@message("image.export")
@dataclass(frozen=True)
class ImageExport:
    """Writes an image to `path` as an OCI layout directory or a docker-archive file. Reply: Ok."""

    reference: str
    path: str
    format: Literal["oci", "docker-archive"]
    operation: str = ""


@message("image.commit")
@dataclass(frozen=True)
class ImageCommit:
    """Makes an image of another one and a captured layer (see FsFreeze with capture_fd ""). Reply: Image.

    base: digest of the manifest of an image in the store. index, contents: the layer's files, copied; ""
    when nothing was changed. reference: what the new image is called. config: None keeps the base's;
    otherwise its fields replace the base's. comment: for the image's history.
    """

    base: str
    index: str
    contents: str
    reference: str
    config: ImageConfig | None = None
    comment: str = ""
    operation: str = ""


@message("kernel.get")
@dataclass(frozen=True)
class KernelGet:
    """Makes a kernel ready. Reply: Kernel. version "" takes the default Debian suite's newest."""

    architecture: str
    version: str = ""
    operation: str = ""


@message("kernel")
@dataclass(frozen=True)
class Kernel:
    """A kernel on disk: image path, and module paths by name ("virtio_mmio"), dependencies first."""

    architecture: str
    version: str
    digest: str
    image: str
    modules: list[str]
