"""Images made of Debian packages: `deb:SUITE[/PKG,…]`.

Essential and required packages, apt, and those named, with their dependencies, unpacked into one layer.
The same packages give the same bytes: entries sorted, times taken from the packages, no clock, no host
name. The layer is kept indexed; its archive is made again when an export asks for it.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from crumble_common.layer_index import LayerIndex, pack_index
from crumble_common.messages.image import Image
from crumble_ocid.compression import ByteReader
from crumble_ocid.debian.deb import DebReader
from crumble_ocid.debian.download import digest_of, download_packages
from crumble_ocid.debian.dpkg_database import Installed
from crumble_ocid.debian.packages import Package, open_suite
from crumble_ocid.debian.release import Release
from crumble_ocid.debian.resolve import Resolver
from crumble_ocid.debian.rootfs import finish, prepare
from crumble_ocid.debian.tree import Tree
from crumble_ocid.files import host_errors
from crumble_ocid.images import find_image, inspect_image, record_image
from crumble_ocid.layer_builder import LayerBuilder
from crumble_ocid.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from crumble_ocid.platform import Platform
from crumble_ocid.progress import Reporter
from crumble_ocid.reference import DebianReference
from crumble_ocid.store import Store
from crumble_ocid.tar_reader import TarReader
from crumble_ocid.tar_writer import layer_archive
from crumble_ocid.transfer import Transport

_RECIPE = "2"  # part of an image's key: raise it when the same packages would give another layer
_KEY = "crumble.deb.key"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ARCHITECTURES = {"arm": "armhf", "386": "i386", "ppc64le": "ppc64el"}
_LIB64 = ("amd64", "ppc64el", "loong64")
# Packages of this size and less, unpacked, are decompressed ahead and in parallel, in memory.
_AHEAD_BYTES = 256 << 20
_AHEAD = 2


@dataclass(frozen=True)
class Plan:
    """What an image is to be made of."""

    reference: DebianReference
    platform: Platform
    architecture: str
    release: Release
    packages: list[Package]

    @property
    def key(self) -> str:
        """A digest of all that decides what the image is."""
        parts = [_RECIPE, self.release.source.uri, self.release.suite, str(self.platform)]
        parts += sorted(package.sha256 for package in self.packages)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def apt_source(self) -> str:
        """The sources file for the guest."""
        scheme, _, rest = self.release.source.uri.partition("://")
        uri = f"{scheme}://{rest.rpartition('@')[2]}"  # not the credentials some have in it
        return (
            f"Types: deb\nURIs: {uri}\nSuites: {self.release.suite}\n"
            "Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        )


def build_debian_image(
    store: Store,
    transport: Transport,
    reference: DebianReference,
    platform: Platform,
    reporter: Reporter,
) -> Image:
    """Makes the image as the archive has it now; raises UsageError, RemoteError, HostError."""
    architecture = _ARCHITECTURES.get(platform.architecture, platform.architecture)
    release, index = open_suite(store, transport, reference.suite, architecture, reporter)
    try:
        where = f"Debian {reference.suite} for {architecture}"
        packages = Resolver(index, where).resolve(["apt", *reference.packages], index.base())
    finally:
        index.close()
    plan = Plan(reference, platform, architecture, release, packages)
    if (image := _unchanged(store, plan)) is not None:
        return image
    with store.lease() as lease, host_errors("write to", store.root):
        download_packages(store, lease, transport, release, packages, reporter)
        diff_id, size, newest = _build_layer(store, plan, reporter)
        manifest = _write_documents(store, plan, diff_id, size, newest)
        keep = map(digest_of, packages)
        return record_image(store, str(reference), str(platform), manifest, keep)


def _unchanged(store: Store, plan: Plan) -> Image | None:
    """The image there is, when it was made of the same."""
    image = find_image(store, str(plan.reference), str(plan.platform))
    if image is None:
        return None
    manifest = json.loads(inspect_image(store, image.digest).manifest)
    return image if manifest.get("annotations", {}).get(_KEY) == plan.key else None


def _build_layer(store: Store, plan: Plan, reporter: Reporter) -> tuple[str, int, int]:
    """Unpacks the packages: the layer's diff_id, its archive's size in bytes, its newest mtime in ns."""
    with store.temporary("contents") as (contents, contents_path):
        builder = LayerBuilder(contents, dpkg=True)
        prepare(Tree(builder, contents, 0), _essential_links(plan.architecture))
        installed = list(_unpack_all(store, builder, plan.packages, reporter))
        tree = Tree(builder, contents, builder.newest_mtime_ns)
        finish(tree, installed, plan.architecture, plan.apt_source)
        root = builder.finish()
        contents.flush()
        with store.temporary("index") as (index_file, index_path):
            index_file.write(pack_index(root, builder.contents_size))
            index_file.flush()
            index = LayerIndex.open(index_path)
            hashed, size = hashlib.sha256(), 0
            for chunk in layer_archive(index, contents_path):
                hashed.update(chunk)
                size += len(chunk)
            index.close()
            diff_id = f"sha256:{hashed.hexdigest()}"
            if not store.has_layer(diff_id):
                store.commit_layer(diff_id, contents, contents_path, index_file, index_path)
        return diff_id, size, builder.newest_mtime_ns


def _essential_links(architecture: str) -> list[str]:
    return ["bin", "sbin", "lib", *(["lib64"] if architecture in _LIB64 else [])]


def _unpack_all(
    store: Store, builder: LayerBuilder, packages: list[Package], reporter: Reporter
) -> Iterator[Installed]:
    """Unpacks packages in order, decompressing the next ones meanwhile. base-files comes first: its
    directories' modes are the ones meant."""
    packages = sorted(packages, key=lambda item: (item.name != "base-files", item.name))
    step = reporter.step("unpack packages", len(packages), "packages")
    with concurrent.futures.ThreadPoolExecutor(_AHEAD, "unpack") as pool:
        files = (store.blob_path(digest_of(package)).open("rb") for package in packages)
        for package, file, ahead in _look_ahead(pool, packages, files):
            with file:
                reader, chunks = ahead.result() if ahead else _decompressed(file, whole=False)
                yield _unpack(builder, reader, chunks)
            step.add(1)
            del package
    step.finish()


def _look_ahead(
    pool: concurrent.futures.ThreadPoolExecutor, packages: list[Package], files: Iterator[IO[bytes]]
) -> Iterator[
    tuple[Package, IO[bytes], concurrent.futures.Future[tuple[DebReader, Iterable[bytes]]] | None]
]:
    waiting = []
    for package in packages:
        file = next(files)
        small = package.installed <= _AHEAD_BYTES
        waiting.append((package, file, pool.submit(_decompressed, file) if small else None))
        if len(waiting) > _AHEAD:
            yield waiting.pop(0)
    yield from waiting


def _decompressed(file: IO[bytes], *, whole: bool = True) -> tuple[DebReader, Iterable[bytes]]:
    """A package's control part and the chunks of its files' archive, all of them when `whole`."""
    reader = DebReader(file)
    chunks = reader.data_chunks()
    return reader, list(chunks) if whole else chunks


def _unpack(builder: LayerBuilder, reader: DebReader, chunks: Iterable[bytes]) -> Installed:
    tar = TarReader(ByteReader(chunks))
    paths = []
    for member in tar:
        paths.append(member.name.decode("utf-8", "surrogateescape"))
        builder.add(member, tar.data())
    return Installed(reader.control, paths)


def _write_documents(store: Store, plan: Plan, diff_id: str, size: int, newest: int) -> str:
    """Stores the image's config and manifest; returns the manifest's digest."""
    created = datetime.datetime.fromtimestamp(newest // 1_000_000_000, datetime.UTC)
    platform = plan.platform
    config = {
        "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "architecture": platform.architecture,
        **({"variant": platform.variant} if platform.variant else {}),
        "os": platform.os,
        "config": {
            "Env": [f"PATH={_PATH}"],
            "Cmd": ["bash"],
            "Labels": {"org.opencontainers.image.title": str(plan.reference)},
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [
            {
                "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "created_by": f"crumble pull {plan.reference}",
            }
        ],
    }
    data = _encode(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": store.put_blob(data), "size": len(data)},
        "layers": [{"mediaType": OCI_LAYER, "digest": diff_id, "size": size}],
        "annotations": {_KEY: plan.key},
    }
    return store.put_blob(_encode(manifest))


def _encode(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
