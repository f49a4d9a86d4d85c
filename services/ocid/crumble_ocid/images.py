"""Images in the store: what references name, listing, inspection, removal, garbage collection."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from crumble_common.errors import CrumbleError, HostError, RemoteError, UsageError
from crumble_common.messages.image import Image, ImageConfig, ImageDetails, Removed
from crumble_ocid.files import host_errors
from crumble_ocid.manifest import (
    MAX_CONFIG,
    MAX_MANIFEST,
    Config,
    Manifest,
    parse_config,
    parse_document,
)
from crumble_ocid.reference import parse_reference
from crumble_ocid.store import Store


@dataclass(frozen=True, slots=True)
class Record:
    """A reference in the store. manifest: a digest. added: unix time. keep: further blobs it needs."""

    reference: str
    platform: str
    manifest: str
    added: float
    keep: list[str] = field(default_factory=list)


def record_image(
    store: Store, reference: str, platform: str, manifest: str, keep: Iterable[str] = ()
) -> Image:
    """Makes `reference` name a manifest whose blobs and layers the store has."""
    record = Record(reference, platform, manifest, time.time(), sorted(keep))
    image = load_image(store, record)
    store.write_reference(reference, platform, json.dumps(asdict(record)).encode())
    return image


def find_image(store: Store, reference: str, platform: str) -> Image | None:
    """The image a reference names, when all of it is here and undamaged."""
    record = _read(store.reference_path(reference, platform))
    if record is None:
        return None
    try:
        image = load_image(store, record)
    except (HostError, RemoteError):
        return None
    missing = [layer for layer in image.layers if not Path(layer.index).exists()]
    return None if missing else image


def list_images(store: Store) -> list[Image]:
    """Every image, newest first; those that are damaged are left out."""
    images = []
    for record in sorted(_records(store), key=lambda item: -item.added):
        with contextlib.suppress(HostError, RemoteError):
            images.append(load_image(store, record))
    return images


def load_image(store: Store, record: Record) -> Image:
    """A record as the message others see; raises HostError or RemoteError for a damaged one."""
    manifest, config = read_manifest(store, record.manifest)
    sizes = [manifest.config.size, *(layer.size for layer in manifest.layers)]
    return Image(
        id=manifest.config.digest,
        digest=record.manifest,
        reference=record.reference,
        platform=record.platform,
        size=sum(sizes) + store.blob_path(record.manifest).stat().st_size,
        created=config.created,
        config=ImageConfig(
            env=config.env,
            entrypoint=config.entrypoint,
            cmd=config.cmd,
            working_dir=config.working_dir,
            user=config.user,
            stop_signal=config.stop_signal,
            labels=config.labels,
        ),
        layers=[store.layer(diff_id) for diff_id in config.diff_ids],
    )


def read_manifest(store: Store, digest: str) -> tuple[Manifest, Config]:
    """A manifest in the store and its config."""
    manifest = parse_document(store.read_blob(digest, MAX_MANIFEST))
    if not isinstance(manifest, Manifest):
        raise HostError(
            f"{digest} in the image store is no manifest.",
            code="store.corrupt",
            hint="Remove the image and pull it again.",
        )
    data = store.read_blob(manifest.config.digest, MAX_CONFIG)
    return manifest, parse_config(data, len(manifest.layers))


def normalize(text: str) -> str:
    """A reference as the store writes it; digests of images stay as they are."""
    return text if text.startswith("sha256:") else str(parse_reference(text))


def lookup(store: Store, text: str) -> list[Record]:
    """Records a text names: a reference, or the beginning of an image's digest or id (12 digits up)."""
    wanted = normalize(text) if not _is_short_id(text) else text
    found = []
    for record in _records(store):
        short = _is_short_id(text) and text in _short_ids(store, record, len(text))
        if short or wanted in (record.reference, record.manifest):
            found.append(record)
    if not found:
        raise UsageError(
            f"There is no image {text!r} in the store.",
            code="image.missing",
            hint="`crumble images` lists those there are; `crumble pull` gets one.",
        )
    return sorted(found, key=lambda record: -record.added)


def inspect_image(store: Store, text: str) -> ImageDetails:
    """An image with its documents and everything that names it."""
    record = lookup(store, text)[0]
    manifest, _ = read_manifest(store, record.manifest)
    return ImageDetails(
        image=load_image(store, record),
        manifest=store.read_blob(record.manifest, MAX_MANIFEST).decode(),
        config=store.read_blob(manifest.config.digest, MAX_CONFIG).decode(),
        references=sorted({r.reference for r in _records(store) if r.manifest == record.manifest}),
    )


def remove_image(store: Store, text: str) -> Removed:
    """Removes what a text names, for every platform, then what nothing refers to any more."""
    records = lookup(store, text)
    for record in records:
        path = store.reference_path(record.reference, record.platform)
        with host_errors("remove", path):
            path.unlink(missing_ok=True)
    digests, freed = collect_garbage(store)
    return Removed(sorted({record.reference for record in records}), digests, freed)


def collect_garbage(store: Store) -> tuple[list[str], int]:
    """Removes blobs and layers nothing refers to; their digests and the bytes freed.

    Files a running guest has open stay readable for it, as Unix has it.
    """
    removed, freed = [], 0
    with host_errors("collect garbage in", store.root), store.locked(fcntl.LOCK_EX):
        kept = store.leased()
        for record in _records(store):
            kept |= _needed(store, record)
        for path in [*store.root.glob("blobs/*/*"), *store.root.glob("layers/*")]:
            algorithm = path.parent.name if path.parent.name != "layers" else "sha256"
            digest = f"{algorithm}:{path.stem}"
            if digest not in kept:
                freed += path.stat().st_blocks * 512
                path.unlink()
                removed.append(digest)
    return sorted(set(removed)), freed


def _needed(store: Store, record: Record) -> set[str]:
    needed = {record.manifest, *record.keep}
    with contextlib.suppress(CrumbleError, FileNotFoundError):
        manifest, config = read_manifest(store, record.manifest)
        needed |= {manifest.config.digest, *config.diff_ids}
        needed |= {layer.digest for layer in manifest.layers}
    return needed


def _records(store: Store) -> list[Record]:
    found = [_read(path) for path in sorted((store.root / "references").glob("*.json"))]
    return [record for record in found if record is not None]


def _read(path: Path) -> Record | None:
    """A record; None when there is none, or it cannot be read (then its image is pulled again)."""
    try:
        record = Record(**json.loads(path.read_bytes()))
        parse_reference(record.reference)
    except (FileNotFoundError, ValueError, TypeError, UsageError):
        return None
    return record


def _is_short_id(text: str) -> bool:
    return len(text) >= 12 and not set(text) - set("0123456789abcdef")


def _short_ids(store: Store, record: Record, length: int) -> list[str]:
    ids = [record.manifest]
    with contextlib.suppress(CrumbleError):
        ids.append(read_manifest(store, record.manifest)[0].config.digest)
    return [digest.partition(":")[2][:length] for digest in ids]
