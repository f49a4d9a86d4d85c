import json
import os
import stat
from pathlib import Path

import pytest

from crumble_common.errors import HostError, RemoteError, UsageError
from crumble_common.messages.image import ImageGet
from crumble_ocid.images import collect_garbage
from crumble_ocid.library import Library
from crumble_ocid.store import Store
from framework.registry import Registry, make_image
from framework.registry_archives import Item, tar


def pulled(library: Library, registry: Registry, name: str, *layers: bytes) -> str:
    return library.get(ImageGet(registry.add(make_image(*layers), name))).reference


def stored(store: Store) -> int:
    return sum(
        path.is_file() for part in ("blobs", "layers") for path in (store.root / part).rglob("*")
    )


def test_removing_frees_what_nothing_else_needs(library: Library, registry: Registry) -> None:
    shared, own = tar(Item("shared")), tar(Item("own", b"x" * 50_000))
    one = pulled(library, registry, "a/one", shared, own)
    before = stored(library.store)
    two = pulled(library, registry, "a/two", shared)
    assert stored(library.store) == before + 2, "a manifest and a config"
    removed = library.remove(one)
    assert removed.references == [one] and removed.freed >= 100_000
    assert library.get(ImageGet(two, pull="never")).layers
    library.remove(two)
    assert stored(library.store) == 0


def test_a_lease_keeps_what_is_being_pulled(library: Library, registry: Registry) -> None:
    store = library.store
    with store.lease() as lease:
        digest = store.put_blob(b"new")
        lease.add(digest)
        assert collect_garbage(store) == ([], 0)
    assert collect_garbage(store)[0] == [digest]


def test_images_are_found_by_reference_digest_and_short_id(
    library: Library, registry: Registry
) -> None:
    reference = pulled(library, registry, "a/one")
    image = library.images().images[0]
    for text in (reference, image.digest, image.digest[7:19], image.id[7:30]):
        assert library.inspect(text).image == image
    details = library.inspect(reference)
    assert json.loads(details.manifest)["config"]["digest"] == image.id
    assert json.loads(details.config)["os"] == "linux"
    assert details.references == [reference]
    for text in ("a/none", "0" * 12, "sha256:" + "0" * 64):
        with pytest.raises(UsageError) as caught:
            library.inspect(text)
        assert caught.value.code == "image.missing"


def test_a_damaged_store_is_said_and_healed_by_pulling(
    library: Library, registry: Registry
) -> None:
    reference = pulled(library, registry, "a/one")
    image = library.images().images[0]
    manifest = library.store.blob_path(image.digest)
    manifest.write_bytes(b"{}")
    with pytest.raises((HostError, RemoteError)) as caught:
        library.inspect(reference)
    assert caught.value.code == "store.corrupt"
    assert library.images().images == []
    assert library.get(ImageGet(reference)).digest == image.digest
    Path(image.layers[0].index).unlink()
    assert library.get(ImageGet(reference)).layers == image.layers
    assert Path(image.layers[0].index).exists()
    for record in (library.store.root / "references").iterdir():
        record.write_text("not json")
    assert library.get(ImageGet(reference)).digest == image.digest


def test_a_store_of_somebody_else_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "real"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(HostError) as caught:
        Store(tmp_path / "link")
    assert caught.value.code == "host.directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o500)
    with pytest.raises(HostError) as caught:
        Store(tmp_path / "store")
    assert "CRUMBLE_DATA_DIR" in caught.value.hint


def test_the_store_is_private(store: Store) -> None:
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
