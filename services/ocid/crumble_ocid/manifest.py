"""Manifests, indexes and image configurations, as validated dataclasses.

OCI image-spec: manifest.md, image-index.md, config.md, descriptor.md; Docker's "Image Manifest Version
2, Schema 2" has the same shape under other media types. All of it comes from strangers: sizes, counts,
types and digests are checked here and nowhere else. Raises RemoteError "image.manifest".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NoReturn

from crumble_common.errors import RemoteError
from crumble_ocid.digest import is_digest
from crumble_ocid.platform import Platform, make_platform

# What registries themselves accept as manifest (distribution-spec: at least 4 MiB).
MAX_MANIFEST = 4 << 20
MAX_CONFIG = 8 << 20
MAX_LAYERS = 512  # overlayfs takes 500, Docker 127
_MAX_MANIFESTS = 1024
_MAX_BLOB = 1 << 40

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
_INDEXES = (OCI_INDEX, DOCKER_INDEX)
_MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
_LAYERS = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
)
_CONFIGS = (OCI_CONFIG, "application/vnd.docker.container.image.v1+json")
ACCEPT = ", ".join((*_INDEXES, *_MANIFESTS))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to a blob: what it is, its digest, its size in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform: its config and its layers, lowest first."""

    config: Descriptor
    layers: list[Descriptor]
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Index:
    """The same image for several platforms."""

    manifests: list[Descriptor]

    def platforms(self) -> list[Platform]:
        """The platform of each manifest; an empty one where it says none."""
        return [item.platform or Platform("", "") for item in self.manifests]


@dataclass(frozen=True, slots=True)
class Config:
    """The image configuration: its platform, the uncompressed layers' digests, how to run it."""

    platform: Platform
    diff_ids: list[str]
    created: str
    env: list[str]
    entrypoint: list[str]
    cmd: list[str]
    working_dir: str
    user: str
    stop_signal: str
    labels: dict[str, str]


def parse_document(data: bytes, media_type: str = "") -> Manifest | Index:
    """A manifest or an index. media_type: what the sender called it, for documents that do not say."""
    document = _load(data, MAX_MANIFEST, "manifest")
    own = _text(document, "mediaType")
    kind = own or media_type.partition(";")[0].strip()
    if document.get("schemaVersion") == 1 or "fsLayers" in document:
        raise RemoteError(
            "The image has a manifest of Docker's old schema 1, which is not supported.",
            code="image.schema1",
            hint="Push the image again with a current tool.",
        )
    if kind in _INDEXES or (not own and kind not in _MANIFESTS and "manifests" in document):
        return _index(document)
    if kind in _MANIFESTS or (not own and "layers" in document):
        return _manifest(document)
    return _refuse(f"is of the unknown type {kind[:100]!r}")


def parse_config(data: bytes, layers: int) -> Config:
    """An image configuration for a manifest with so many layers."""
    document = _load(data, MAX_CONFIG, "configuration")
    rootfs = _map(document, "rootfs")
    diff_ids = _texts(rootfs, "diff_ids")
    if not all(map(is_digest, diff_ids)):
        _refuse("has a layer whose digest is none")
    if len(diff_ids) != layers:
        _refuse(f"has {layers} layers but its configuration names {len(diff_ids)}")
    run = _map(document, "config")
    names = [_text(document, key) for key in ("os", "architecture", "variant")]
    return Config(
        platform=make_platform(*names),
        diff_ids=diff_ids,
        created=_text(document, "created"),
        env=_texts(run, "Env"),
        entrypoint=_texts(run, "Entrypoint"),
        cmd=_texts(run, "Cmd"),
        working_dir=_text(run, "WorkingDir"),
        user=_text(run, "User"),
        stop_signal=_text(run, "StopSignal"),
        labels=_labels(run, "Labels"),
    )


def parse_descriptor(item: Any) -> Descriptor:
    """A descriptor from its JSON object."""
    if not isinstance(item, dict):
        _refuse("has a descriptor that is no object")
    digest, size = item.get("digest"), item.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        _refuse(f"has the bad digest {str(digest)[:80]!r}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_BLOB:
        _refuse(f"has the bad size {str(size)[:40]}")
    platform = None
    if "platform" in item:
        names = _map(item, "platform")
        platform = make_platform(*(_text(names, key) for key in ("os", "architecture", "variant")))
    return Descriptor(
        _text(item, "mediaType"), digest, size, platform, _labels(item, "annotations")
    )


def _index(document: dict[str, Any]) -> Index:
    items = document.get("manifests")
    if not isinstance(items, list) or len(items) > _MAX_MANIFESTS:
        _refuse("has no list of manifests, or too long a one")
    return Index([parse_descriptor(item) for item in items])


def _manifest(document: dict[str, Any]) -> Manifest:
    items = document.get("layers")
    if not isinstance(items, list) or len(items) > MAX_LAYERS:
        _refuse(f"has no list of layers, or more than {MAX_LAYERS}")
    config = parse_descriptor(document.get("config"))
    layers = [parse_descriptor(item) for item in items]
    if config.media_type not in (*_CONFIGS, ""):
        raise RemoteError(
            f"This is not an image but an artifact of type {config.media_type[:100]!r}.",
            code="image.artifact",
            hint="Name an image that can be run.",
        )
    if config.size > MAX_CONFIG:
        _refuse(f"has a configuration of {config.size} bytes, over the limit of {MAX_CONFIG}")
    for layer in layers:
        if layer.media_type and not layer.media_type.startswith(_LAYERS):
            _refuse(f"has a layer of the unknown type {layer.media_type[:100]!r}")
        if "encrypted" in layer.media_type:
            _refuse("has an encrypted layer, which is not supported")
    return Manifest(config, layers, _labels(document, "annotations"))


def _load(data: bytes, limit: int, what: str) -> dict[str, Any]:
    if len(data) > limit:
        _refuse(f"has a {what} of {len(data)} bytes, over the limit of {limit}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        _refuse(f"has a {what} that is not JSON")
    if not isinstance(document, dict):
        _refuse(f"has a {what} that is no JSON object")
    return document


def _map(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        _refuse(f"has a {key} that is no object")
    return value


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        _refuse(f"has a {key} that is no text")
    return value


def _texts(document: dict[str, Any], key: str) -> list[str]:
    value = document.get(key)
    if value is None:
        return []
    if isinstance(value, str) and key in ("Cmd", "Entrypoint"):  # written so by old tools
        return ["/bin/sh", "-c", value]
    if not isinstance(value, list) or not all(isinstance(v, str) and "\0" not in v for v in value):
        _refuse(f"has a {key} that is no list of texts")
    return value


def _labels(document: dict[str, Any], key: str) -> dict[str, str]:
    value = _map(document, key)
    if not all(isinstance(item, str) for item in value.values()):
        _refuse(f"has {key} that are no texts")
    return value


def _refuse(why: str) -> NoReturn:
    raise RemoteError(
        f"The image {why}.",
        code="image.manifest",
        hint="Its manifest is damaged or made by a faulty tool; build or push it again.",
    )
