"""Turns a layer's archive into its index and contents, in one pass and without unpacking it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from crumble_common.errors import RemoteError
from crumble_common.layer_index import Inode, pack_index
from crumble_ocid.compression import ByteReader, decompress, read_chunks
from crumble_ocid.files import host_errors
from crumble_ocid.layer_builder import MAX_ENTRIES, MAX_LAYER_BYTES, LayerBuilder, load_layer
from crumble_ocid.progress import QUIET, Reporter
from crumble_ocid.store import Store
from crumble_ocid.tar_reader import TarReader

_TAR_OVERHEAD = MAX_ENTRIES * 4096  # headers of the most entries, within reason


def index_layer(store: Store, digest: str, diff_id: str, reporter: Reporter = QUIET) -> None:
    """Indexes the layer blob `digest` of the store, unless it is.

    The decompressed archive's digest must be `diff_id`. Raises RemoteError for a bad archive, HostError
    when the disk is full; then nothing is left.
    """
    if not diff_id.startswith("sha256:"):
        raise RemoteError(
            f"The image names a layer by {diff_id.partition(':')[0]}, which is not supported.",
            code="image.digest",
            hint="Have the image made again with SHA-256 digests.",
        )
    path = store.blob_path(digest)
    step = reporter.step(f"unpack {digest[7:19]}", path.stat().st_size)
    name = f"layer-{diff_id[7:]}"
    done = lambda: store.has_layer(diff_id)  # noqa: E731
    with (
        host_errors("unpack a layer into", store.root),
        store.work(name, done, lambda _: reporter.check()) as right,
    ):
        if right is None:
            step.finish()
            return
        contents, temporary = right
        contents.truncate(0)  # whatever a killed process left
        builder = LayerBuilder(contents)
        with path.open("rb") as blob:
            root, found = read_layer(_counted(read_chunks(blob), step.add), builder)
        if found != diff_id:
            raise RemoteError(
                f"A layer's content has the digest {found} where the image says {diff_id}.",
                code="image.digest",
                hint="The image is damaged; pull it again, or ask who made it.",
            )
        with store.temporary("index") as (index, index_path):
            index.write(pack_index(root, builder.contents_size))
            store.commit_layer(diff_id, contents, temporary, index, index_path)
    step.finish()


def read_layer(chunks: Iterable[bytes], builder: LayerBuilder) -> tuple[Inode, str]:
    """Reads a (compressed) layer archive to its end: the finished root and the diff_id."""
    hashed = hashlib.sha256()
    reader = ByteReader(decompress(chunks, MAX_LAYER_BYTES + _TAR_OVERHEAD), hashed.update)
    tar = TarReader(reader)
    root = load_layer(builder, tar, tar.data)
    reader.drain()
    return root, f"sha256:{hashed.hexdigest()}"


def _counted(chunks: Iterable[bytes], count: Callable[[int], None]) -> Iterable[bytes]:
    for chunk in chunks:
        yield chunk
        count(len(chunk))
