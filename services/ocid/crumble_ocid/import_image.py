"""Takes images into the store from OCI layouts and docker-archives, in directories and tar files.

OCI image-spec, image-layout.md; docker-archive is what `docker save` writes (manifest.json).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crumble_common.errors import CrumbleError, RemoteError, UsageError
from crumble_common.messages.image import Image
from crumble_ocid.containers import Source, open_source, read_part
from crumble_ocid.digest import digest_bytes, hasher, is_digest, matches
from crumble_ocid.files import commit, host_errors
from crumble_ocid.manifest import (
    MAX_CONFIG,
    MAX_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Index,
    parse_document,
)
from crumble_ocid.platform import Platform
from crumble_ocid.progress import Reporter, Step
from crumble_ocid.pull import take_image
from crumble_ocid.reference import ArchiveReference, LayoutReference, parse_registry_reference
from crumble_ocid.registry import Document
from crumble_ocid.store import Lease, Store

REF_NAME = "org.opencontainers.image.ref.name"
_MAX_ITEMS = 1024


def import_layout(
    store: Store, reference: LayoutReference, platform: Platform, reporter: Reporter
) -> Image:
    """Takes an image from an OCI layout; raises UsageError, RemoteError, HostError."""
    source = open_source(reference.path, store)
    _check_layout(source, reference.path)
    index = parse_document(read_part(source, "index.json", MAX_MANIFEST), OCI_INDEX)
    if not isinstance(index, Index):
        raise RemoteError(
            f"{reference.path}'s index.json is no index.",
            code="image.manifest",
            hint="The layout is damaged; write it again.",
        )
    named = [item.annotations.get(REF_NAME, "") for item in index.manifests]
    chosen = [
        item
        for item, name in zip(index.manifests, named, strict=True)
        if not reference.tag or reference.tag in (name, name.rpartition(":")[2])
    ]
    if not chosen or (len(chosen) > 1 and len(set(named)) > 1 and not reference.tag):
        raise _which(reference.path, reference.tag, named)

    def document(digest: str) -> Document:
        data = read_part(source, _blob_name(digest), MAX_MANIFEST)
        if not matches(data, digest):
            raise RemoteError(
                f"{reference.path} is damaged: {digest} has another content.",
                code="image.digest",
                hint="Write it again.",
            )
        return Document(data, digest, "")

    def blob(descriptor: Descriptor, step: Step) -> None:
        _take_blob(store, source, _blob_name(descriptor.digest), descriptor.digest, step)

    if len(chosen) == 1:
        first = document(chosen[0].digest)
    else:
        first = Document(_index_of(chosen), "", OCI_INDEX)
    return take_image(store, str(reference), first, platform, document, blob, reporter)


def import_archive(
    store: Store, reference: ArchiveReference, platform: Platform, reporter: Reporter
) -> Image:
    """Takes an image from a docker-archive; raises UsageError, RemoteError, HostError."""
    source = open_source(reference.path, store)
    item = _archive_item(source, reference)
    names = item.get("Layers")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _bad_archive(reference.path)
    with store.lease() as lease:
        step = reporter.step("copy layers", sum(source.size(name) for name in names))
        layers = [_take_layer(store, lease, source, name, step) for name in names]
        step.finish()
        config = read_part(source, str(item.get("Config")), MAX_CONFIG)
        lease.add(digest_bytes(config))
        first = _manifest_for(store.put_blob(config), len(config), layers)

        def blob(descriptor: Descriptor, step: Step) -> None:
            step.add(descriptor.size)  # all are in the store, under the lease

        def document(digest: str) -> Document:
            raise RemoteError(
                f"There is no {digest} in an archive.",
                code="image.manifest",
                hint="Name what is in it by its tag.",
            )

        return take_image(store, str(reference), first, platform, document, blob, reporter)


def _check_layout(source: Source, path: Path) -> None:
    try:
        layout = json.loads(read_part(source, "oci-layout", 4096))
        version = layout.get("imageLayoutVersion")
    except (ValueError, RecursionError, AttributeError, CrumbleError):
        version = None
    if version != "1.0.0":
        raise UsageError(
            f"{path} is not an OCI layout.",
            code="image.path",
            hint="A layout is a directory (or a tar file) with oci-layout, index.json and blobs in it.",
        )


def _which(path: Path, tag: str, named: list[str]) -> UsageError:
    tags = ", ".join(sorted(filter(None, set(named)))) or "none with a name"
    what = f"has no image {tag!r}" if tag else "holds several images"
    return UsageError(
        f"{path} {what}; it holds {tags}.", code="image.unknown", hint="Name one of them."
    )


def _blob_name(digest: str) -> str:
    algorithm, _, text = digest.partition(":")
    return f"blobs/{algorithm}/{text}"


def _index_of(descriptors: list[Descriptor]) -> bytes:
    """An index of several manifests of one name, for the choice of a platform."""
    items = []
    for item in descriptors:
        names = item.platform or Platform("", "")
        platform = {"os": names.os, "architecture": names.architecture, "variant": names.variant}
        items.append({"digest": item.digest, "size": item.size, "platform": platform})
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": items}).encode()


def _take_blob(store: Store, source: Source, name: str, digest: str, step: Step) -> None:
    """Copies a part whose digest is known."""
    if store.has_blob(digest):
        step.add(source.size(name))
        return
    with host_errors("write to", store.root), store.temporary("blob") as (file, path):
        hashed = hasher(digest)
        for chunk in source.chunks(name):
            hashed.update(chunk)
            file.write(chunk)
            step.add(len(chunk))
        if hashed.hexdigest() != digest.partition(":")[2]:
            raise RemoteError(
                f"The image is damaged: {digest} has another content.",
                code="image.digest",
                hint="Write the image again.",
            )
        commit(file, path, store.blob_path(digest))


def _take_layer(store: Store, lease: Lease, source: Source, name: str, step: Step) -> Descriptor:
    """Copies a layer's archive, whose digest nobody has said."""
    size = source.size(name)
    with host_errors("write to", store.root), store.temporary("blob") as (file, path):
        hashed = hashlib.sha256()
        for chunk in source.chunks(name):
            hashed.update(chunk)
            file.write(chunk)
            step.add(len(chunk))
        digest = f"sha256:{hashed.hexdigest()}"
        lease.add(digest)
        commit(file, path, store.blob_path(digest))
    with store.blob_path(digest).open("rb") as stored:
        suffix = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}.get(stored.read(2), "")
    return Descriptor(OCI_LAYER + suffix, digest, size)


def _archive_item(source: Source, reference: ArchiveReference) -> dict[str, Any]:
    """The image of an archive that the reference names."""
    try:
        items = json.loads(read_part(source, "manifest.json", MAX_MANIFEST))
    except (ValueError, RecursionError):
        raise _bad_archive(reference.path) from None
    if not isinstance(items, list) or len(items) > _MAX_ITEMS:
        raise _bad_archive(reference.path)
    if not all(isinstance(item, dict) for item in items):
        raise _bad_archive(reference.path)
    tags = [list(_tags(item)) for item in items]
    if reference.name.startswith("@"):
        place = reference.name[1:]
        found = [items[int(place)]] if place.isdecimal() and int(place[:6]) < len(items) else []
    elif reference.name:
        found = [item for item, names in zip(items, tags, strict=True) if reference.name in names]
    else:
        found = items
    if len(found) != 1:
        raise _which(reference.path, reference.name, [name for names in tags for name in names])
    return dict(found[0])


def _tags(item: dict[str, Any]) -> Iterator[str]:
    for tag in item.get("RepoTags") or []:
        with contextlib.suppress(CrumbleError):
            yield str(parse_registry_reference(str(tag)))


def _manifest_for(config: str, size: int, layers: list[Descriptor]) -> Document:
    """The manifest an archive does not have."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config, "size": size},
        "layers": [
            {"mediaType": item.media_type, "digest": item.digest, "size": item.size}
            for item in layers
        ],
    }
    data = json.dumps(manifest, separators=(",", ":"), sort_keys=True).encode()
    assert is_digest(config)
    return Document(data, digest_bytes(data), OCI_MANIFEST)


def _bad_archive(path: Path) -> UsageError:
    return UsageError(
        f"{path} is not a docker-archive.",
        code="image.path",
        hint="It is what `docker save` writes: a tar file with a manifest.json in it.",
    )
