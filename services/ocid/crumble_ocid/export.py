"""Writes images of the store as OCI layouts (directory or tar file) and docker-archives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from crumble_common.errors import HostError
from crumble_common.layer_index import LayerIndex
from crumble_common.messages.image import Image
from crumble_ocid.compression import decompress, read_chunks
from crumble_ocid.containers import DirectorySink, Sink, TarSink
from crumble_ocid.digest import hasher
from crumble_ocid.images import read_manifest
from crumble_ocid.import_image import REF_NAME
from crumble_ocid.layer_builder import MAX_LAYER_BYTES
from crumble_ocid.manifest import MAX_CONFIG, MAX_MANIFEST, OCI_INDEX, OCI_MANIFEST
from crumble_ocid.outside import Outside
from crumble_ocid.progress import Reporter, Step
from crumble_ocid.reference import (
    ArchiveReference,
    DebianReference,
    LayoutReference,
    RegistryReference,
    parse_reference,
)
from crumble_ocid.store import Store
from crumble_ocid.tar_writer import layer_archive

_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9_.-]+")


def export_layout(
    store: Store, image: Image, path: Path, outside: Outside, reporter: Reporter
) -> None:
    """Writes an OCI layout: a tar file when `path` ends in .tar, else a directory."""
    manifest, _ = read_manifest(store, image.digest)
    sink: Sink
    sink = TarSink(path, outside) if path.suffix == ".tar" else DirectorySink(path, outside)
    step = reporter.step("export", image.size)
    with _finishing(sink):
        _add(sink, "oci-layout", _encode({"imageLayoutVersion": "1.0.0"}))
        data = store.read_blob(image.digest, MAX_MANIFEST)
        _add(sink, _blob_name(image.digest), data)
        _add(
            sink,
            _blob_name(manifest.config.digest),
            store.read_blob(manifest.config.digest, MAX_CONFIG),
        )
        for layer in {item.digest: item for item in manifest.layers}.values():
            chunks = _verified(layer_blob(store, layer.digest), layer.digest, step)
            sink.add(_blob_name(layer.digest), layer.size, chunks)
        _add(sink, "index.json", _index(image, data))
    step.finish()


def export_archive(
    store: Store, image: Image, path: Path, outside: Outside, reporter: Reporter
) -> None:
    """Writes a docker-archive: the config, layers uncompressed, and manifest.json."""
    manifest, config = read_manifest(store, image.digest)
    data = store.read_blob(manifest.config.digest, MAX_CONFIG)
    step = reporter.step("export", image.size)
    sink = TarSink(path, outside)
    with _finishing(sink):
        names = [f"{diff_id.partition(':')[2]}.tar" for diff_id in config.diff_ids]
        layers = dict(zip(names, zip(manifest.layers, config.diff_ids, strict=True), strict=True))
        for name, (layer, diff_id) in layers.items():
            _add_uncompressed(store, sink, name, layer.digest, diff_id, step)
        config_name = f"{manifest.config.digest.partition(':')[2]}.json"
        _add(sink, config_name, data)
        tag = str(export_name(image.reference))
        _add(
            sink,
            "manifest.json",
            _encode([{"Config": config_name, "RepoTags": [tag], "Layers": names}]),
        )
    step.finish()


def layer_blob(store: Store, digest: str) -> Iterator[bytes | memoryview]:
    """A layer's archive as the manifest has it: from the store, or made again from the index."""
    path = store.blob_path(digest)
    if path.exists():
        with path.open("rb") as file:
            yield from read_chunks(file)
    elif store.has_layer(digest):
        layer = store.layer(digest)
        index = LayerIndex.open(layer.index)
        try:
            yield from layer_archive(index, Path(layer.contents))
        finally:
            index.close()
    else:
        raise HostError(
            f"The image store lacks the layer {digest}.",
            code="store.missing",
            hint="Pull the image again.",
        )


def export_name(reference: str) -> RegistryReference:
    """The name an image has outside: its own, or one on localhost for what no registry can name."""
    parsed = parse_reference(reference)
    if isinstance(parsed, RegistryReference):
        return RegistryReference(parsed.domain, parsed.path, parsed.tag or "latest")
    if isinstance(parsed, DebianReference):
        tag = _NOT_IN_TAGS.sub("_", "-".join((parsed.suite, *parsed.packages)))[:128]
        return RegistryReference("localhost", "debian", tag)
    if isinstance(parsed, LayoutReference):
        return RegistryReference("localhost", _path_name(parsed.path), parsed.tag or "latest")
    if isinstance(parsed, ArchiveReference) and parsed.name and not parsed.name.startswith("@"):
        named = parse_reference(parsed.name)
        assert isinstance(named, RegistryReference)
        return named
    return RegistryReference("localhost", _path_name(parsed.path), "latest")


def _path_name(path: Path) -> str:
    return _NOT_IN_NAMES.sub("-", path.stem.lower()).strip("-") or "image"


class _finishing:  # noqa: N801  a context manager
    """Finishes a sink, or abandons it when the block fails."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._sink.finish()
        else:
            self._sink.abandon()
            if isinstance(error, OSError):
                raise HostError(
                    f"Cannot write the export: {error.strerror}.",
                    code="host.file",
                    hint="Choose a place with space that you may write.",
                ) from error


def _add_uncompressed(
    store: Store, sink: Sink, name: str, digest: str, diff_id: str, step: Step
) -> None:
    """Adds a layer decompressed, through a file: a tar member begins with its size."""
    with store.temporary("export") as (file, _):
        raw = (bytes(chunk) for chunk in layer_blob(store, digest))
        for chunk in _verified(decompress(raw, MAX_LAYER_BYTES), diff_id, step):
            file.write(chunk)
        size = file.tell()
        file.seek(0)
        sink.add(name, size, read_chunks(file, size))


def _verified(
    chunks: Iterator[bytes | memoryview] | Iterator[bytes], digest: str, step: Step
) -> Iterator[bytes | memoryview]:
    hashed = hasher(digest)
    for chunk in chunks:
        hashed.update(chunk)
        step.add(len(chunk))
        yield chunk
    if hashed.hexdigest() != digest.partition(":")[2]:
        raise HostError(
            f"{digest} in the image store is damaged.",
            code="store.corrupt",
            hint="Remove the image and pull it again.",
        )


def _index(image: Image, manifest: bytes) -> bytes:
    os, _, rest = image.platform.partition("/")
    architecture, _, variant = rest.partition("/")
    platform = {"os": os, "architecture": architecture, **({"variant": variant} if variant else {})}
    descriptor = {
        "mediaType": json.loads(manifest).get("mediaType", OCI_MANIFEST),
        "digest": image.digest,
        "size": len(manifest),
        "platform": platform,
        "annotations": {REF_NAME: export_name(image.reference).tag},
    }
    return _encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor]})


def _add(sink: Sink, name: str, data: bytes) -> None:
    sink.add(name, len(data), [data])


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _encode(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
