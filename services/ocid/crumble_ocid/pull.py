"""Pulling: an image from a registry into the store, its layers in parallel and indexed."""

from __future__ import annotations

import functools
from collections.abc import Callable

from crumble_common.errors import RemoteError, UsageError
from crumble_common.messages.image import Image
from crumble_ocid.images import record_image
from crumble_ocid.layers import index_layer
from crumble_ocid.manifest import (
    MAX_CONFIG,
    Config,
    Descriptor,
    Index,
    Manifest,
    parse_config,
    parse_document,
)
from crumble_ocid.outside import Outside
from crumble_ocid.platform import Platform, choose
from crumble_ocid.progress import Reporter, Step
from crumble_ocid.reference import RegistryReference
from crumble_ocid.registry import Document, Repository
from crumble_ocid.store import Lease, Store
from crumble_ocid.transfer import Transport

_PARALLEL = 3  # layers at once, as others do
_NESTING = 3  # indexes within indexes
# gives the document a digest names
DocumentSource = Callable[[str], Document]
# makes the store have a blob
BlobSource = Callable[[Descriptor, Step], None]


def pull_image(
    store: Store,
    transport: Transport,
    reference: RegistryReference,
    platform: Platform,
    insecure: frozenset[str],
    outside: Outside,
    reporter: Reporter,
) -> Image:
    """Pulls what the reference names now; raises UsageError, RemoteError, HostError."""
    repository = Repository(transport, reference, insecure, outside)
    first = repository.manifest(reference.selector, reporter)

    def document(digest: str) -> Document:
        return repository.manifest(digest, reporter)

    def blob(descriptor: Descriptor, step: Step) -> None:
        repository.fetch(store, descriptor, step)

    return take_image(store, str(reference), first, platform, document, blob, reporter)


def take_image(
    store: Store,
    name: str,
    first: Document,
    platform: Platform,
    document: DocumentSource,
    blob: BlobSource,
    reporter: Reporter,
) -> Image:
    """Takes an image into the store from wherever `document` and `blob` get its parts."""
    with store.lease() as lease:
        found, manifest = select(first, platform, document, name)
        lease.add(found.digest, manifest.config.digest)
        _fetch_all(blob, [manifest.config], reporter.step("download config", manifest.config.size))
        data = store.read_blob(manifest.config.digest, MAX_CONFIG)
        config = parse_config(data, len(manifest.layers))
        _check_platform(config, platform, name)
        _take_layers(store, lease, manifest, config, blob, reporter)
        store.put_blob(found.data, found.digest)
        return record_image(store, name, str(platform), found.digest)


def select(
    first: Document, platform: Platform, document: DocumentSource, name: str
) -> tuple[Document, Manifest]:
    """The manifest for a platform, through indexes; raises UsageError with the platforms there are."""
    found = first
    for _ in range(_NESTING + 1):
        parsed = parse_document(found.data, found.media_type)
        if isinstance(parsed, Manifest):
            return found, parsed
        place = _choose(parsed, platform, name)
        found = document(parsed.manifests[place].digest)
    raise RemoteError(
        f"The image {name} is an index of indexes of indexes.",
        code="image.manifest",
        hint="Have the image made again by another tool.",
    )


def _choose(index: Index, platform: Platform, name: str) -> int:
    offered = index.platforms()
    place = choose(platform, offered)
    if place is None:
        # An index that names no platforms (or only one manifest) leaves it to the config to tell.
        if len(offered) == 1 and not offered[0].os:
            return 0
        raise _no_platform(name, platform, offered)
    return place


def _check_platform(config: Config, platform: Platform, name: str) -> None:
    if choose(platform, [config.platform]) is None:
        raise _no_platform(name, platform, [config.platform])


def _no_platform(name: str, platform: Platform, offered: list[Platform]) -> UsageError:
    names = sorted({str(item) for item in offered if item.os not in ("", "unknown")})
    listed = ", ".join(names) if names else "none that it names"
    return UsageError(
        f"The image {name} is not made for {platform}; it is made for {listed}.",
        code="image.no_platform",
        hint="Choose another image or tag, or a guest of one of these.",
        platforms=names,
    )


def _take_layers(
    store: Store,
    lease: Lease,
    manifest: Manifest,
    config: Config,
    blob: BlobSource,
    reporter: Reporter,
) -> None:
    lease.add(*config.diff_ids, *(layer.digest for layer in manifest.layers))
    download = reporter.step("download layers", sum(layer.size for layer in manifest.layers))

    def take(layer: Descriptor, diff_id: str) -> None:
        blob(layer, download)
        if not store.has_layer(diff_id):
            index_layer(store, layer.digest, diff_id, reporter)

    pairs = zip(manifest.layers, config.diff_ids, strict=True)
    reporter.in_parallel((functools.partial(take, *pair) for pair in pairs), _PARALLEL)
    download.finish()


def _fetch_all(blob: BlobSource, descriptors: list[Descriptor], step: Step) -> None:
    for descriptor in descriptors:
        blob(descriptor, step)
    step.finish()
