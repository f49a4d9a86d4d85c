"""An image of another one and a layer that a running VM's `fsd` captured.

The layer is kept indexed, under the digest of the archive that an export makes of it, as a `deb:` image's
is; nothing is packed or compressed. Its files come from a process that serves a guest: the index is walked
whole before anything is stored.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from crumble_common.errors import HostError, UsageError
from crumble_common.layer_index import LayerIndex
from crumble_common.messages.image import Image, ImageCommit, ImageConfig
from crumble_ocid.digest import digest_bytes
from crumble_ocid.files import host_errors
from crumble_ocid.images import Record, lookup, read_manifest, record_image
from crumble_ocid.manifest import (
    MAX_CONFIG,
    MAX_LAYERS,
    MAX_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
)
from crumble_ocid.progress import Reporter
from crumble_ocid.reference import RegistryReference, parse_reference
from crumble_ocid.store import Lease, Store
from crumble_ocid.tar_writer import layer_archive

_CONFIG_NAMES = {
    "env": "Env", "entrypoint": "Entrypoint", "cmd": "Cmd", "working_dir": "WorkingDir",
    "user": "User", "stop_signal": "StopSignal", "labels": "Labels",
}  # fmt: skip


def commit_image(store: Store, request: ImageCommit, reporter: Reporter) -> Image:
    """Stores the layer and the documents; the new image.

    Raises UsageError for a reference that names no such image or a base that is not here, HostError for
    a layer that is damaged.
    """
    reference = _checked_reference(request.reference)
    base = lookup(store, request.base)[0]
    with store.lease() as lease, host_errors("write to", store.root):
        manifest, config = read_manifest(store, base.manifest)
        lease.add(base.manifest, manifest.config.digest, *config.diff_ids)
        lease.add(*(layer.digest for layer in manifest.layers))
        if len(manifest.layers) >= MAX_LAYERS:
            raise UsageError(
                f"The image {base.reference} has {MAX_LAYERS} layers, as many as there can be.",
                code="image.layers",
            )
        layer = None
        if request.index:
            files = Path(request.index), Path(request.contents)
            layer = _store_layer(store, lease, *files, reporter)
        digest = _write_documents(store, lease, base, request, layer)
        return record_image(store, reference, base.platform, digest, base.keep)


def _checked_reference(text: str) -> str:
    reference = parse_reference(text)
    if not isinstance(reference, RegistryReference) or reference.digest:
        raise UsageError(
            f"{text!r} is no name for a new image.",
            code="image.reference",
            hint="Name it as in a registry: name, name:tag, registry.example/name:tag.",
        )
    return str(reference)


def _store_layer(
    store: Store, lease: Lease, index_path: Path, contents_path: Path, reporter: Reporter
) -> tuple[str, int]:
    """The layer's diff_id and the size of its archive."""
    with store.temporary("index") as (index, index_copy), index_path.open("rb") as source:
        shutil.copyfileobj(source, index)
        index.flush()
        with (
            store.temporary("contents") as (contents, contents_copy),
            contents_path.open("rb") as data,
        ):
            shutil.copyfileobj(data, contents, 1 << 20)
            contents.flush()
            diff_id, size = _digest(index_copy, contents_copy, contents.tell(), reporter)
            lease.add(diff_id)
            if not store.has_layer(diff_id):
                store.commit_layer(diff_id, contents, contents_copy, index, index_copy)
    return diff_id, size


def _digest(index: Path, contents: Path, length: int, reporter: Reporter) -> tuple[str, int]:
    """Of the archive, which is made to the end: so every row is looked at."""
    opened = LayerIndex.open(index)
    step = reporter.step("commit", length)
    try:
        if opened.contents_size != length:
            raise HostError("The captured layer is torn.", code="store.corrupt")
        hashed, size = hashlib.sha256(), 0
        for chunk in layer_archive(opened, contents):
            hashed.update(chunk)
            size += len(chunk)
            step.add(len(chunk))
    finally:
        opened.close()
    step.finish()
    return f"sha256:{hashed.hexdigest()}", size


def _write_documents(
    store: Store, lease: Lease, base: Record, request: ImageCommit, layer: tuple[str, int] | None
) -> str:
    """Stores config and manifest: the base's, in OCI's types, and what is new; the manifest's digest."""
    manifest = json.loads(store.read_blob(base.manifest, MAX_MANIFEST))
    config = json.loads(store.read_blob(manifest["config"]["digest"], MAX_CONFIG))
    layers = [_oci_layer(item) for item in manifest["layers"]]
    created = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if layer is not None:
        config["rootfs"]["diff_ids"] = [*config["rootfs"]["diff_ids"], layer[0]]
        layers.append({"mediaType": OCI_LAYER, "digest": layer[0], "size": layer[1]})
    if isinstance(config.get("history"), list):
        config["history"] = [*config["history"], _history(request, created, empty=layer is None)]
    config["created"] = created
    if request.config is not None:
        config["config"] = _merged(config.get("config"), request.config)
    data = _encode(config)
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest_bytes(data), "size": len(data)},
        "layers": layers,
    }
    lease.add(digest_bytes(data), digest_bytes(_encode(document)))
    store.put_blob(data)
    return store.put_blob(_encode(document))


def _oci_layer(item: dict[str, Any]) -> dict[str, Any]:
    """A layer's descriptor under OCI's media type."""
    kind = str(item.get("mediaType", ""))
    if kind.startswith("application/vnd.docker."):
        packed = "+gzip" if kind.endswith("gzip") else ""
        item = {**item, "mediaType": OCI_LAYER + packed}
    return item


def _history(request: ImageCommit, created: str, *, empty: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"created": created, "created_by": "crumble commit"}
    if request.comment:
        entry["comment"] = request.comment
    if empty:
        entry["empty_layer"] = True
    return entry


def _merged(there: Any, wanted: ImageConfig) -> dict[str, Any]:
    """The config's fields that matter to a run are those wanted; others stay."""
    merged = dict(there) if isinstance(there, dict) else {}
    for name, key in _CONFIG_NAMES.items():
        value = getattr(wanted, name)
        if value:
            merged[key] = value
        else:
            merged.pop(key, None)
    return merged


def _encode(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
