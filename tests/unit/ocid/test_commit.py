"""Images made of another one and a layer that fsd captured."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from crumble_common.errors import CrumbleError, HostError, UsageError
from crumble_common.layer_index import Inode, LayerIndex, write_index
from crumble_common.messages.image import (
    Image,
    ImageCommit,
    ImageConfig,
    ImageExport,
    ImageGet,
)
from crumble_ocid.images import record_image
from crumble_ocid.library import Library
from crumble_ocid.store import Store
from framework.registry import Registry, encode, make_image
from framework.registry_archives import Item, tar

DATA = b"written by the guest\n"


@pytest.fixture
def base(library: Library, registry: Registry) -> Image:
    return library.get(ImageGet(registry.add(make_image(tar(Item("f", b"base"), Item("g", b"G"))))))


@pytest.fixture
def layer(tmp_path: Path) -> tuple[str, str]:
    """What fsd writes: a new file, a whiteout, a directory only implied."""
    (tmp_path / "c").write_bytes(DATA)
    new = Inode(stat.S_IFREG | 0o640, 7, 8, size=len(DATA), mtime_ns=1_500_000_000)
    children = {b"new": new, b"hard": new}
    opt = Inode(stat.S_IFDIR | 0o755, children=children, implicit=True)
    gone = Inode(stat.S_IFCHR, whiteout=True)
    root = Inode(stat.S_IFDIR | 0o755, children={b"opt": opt, b"g": gone}, implicit=True)
    write_index(tmp_path / "i", root, len(DATA))
    return str(tmp_path / "i"), str(tmp_path / "c")


def test_an_image_with_one_more_layer(
    library: Library, base: Image, layer: tuple[str, str], tmp_path: Path
) -> None:
    config = ImageConfig(env=["A=b"], cmd=["/bin/new"], labels={"l": "1"})
    request = ImageCommit(base.digest, *layer, "mine", config, comment="why")
    image = library.commit(request)
    assert image.reference == "docker.io/library/mine:latest"
    assert image.config == config and image.platform == base.platform
    assert [one.index for one in image.layers[:-1]] == [one.index for one in base.layers]
    index = LayerIndex.open(image.layers[-1].index)
    found = index.find(0, b"opt")
    assert found is not None
    entry = index.entry(index.find(found, b"new") or 0)
    assert (entry.mode, entry.uid, entry.gid, entry.nlink) == (stat.S_IFREG | 0o640, 7, 8, 2)
    data = Path(image.layers[-1].contents).read_bytes()
    assert data[entry.offset : entry.offset + entry.size] == DATA
    index.close()
    again = library.get(ImageGet("mine", pull="never"))
    assert again.digest == image.digest
    assert not list((tmp_path / "store/work").iterdir())


def test_without_a_change_or_a_config(library: Library, base: Image) -> None:
    image = library.commit(ImageCommit(base.digest, "", "", "same:1"))
    assert image.layers == base.layers and image.config == base.config
    assert image.digest != base.digest  # it has another date


def test_history_goes_on(library: Library, base: Image, layer: tuple[str, str]) -> None:
    details = library.inspect(base.reference)
    config = encode({**json.loads(details.config), "history": [{"created_by": "the base"}]})
    manifest = json.loads(details.manifest)
    manifest["config"] |= {"digest": library.store.put_blob(config), "size": len(config)}
    digest = library.store.put_blob(encode(manifest))
    old = record_image(library.store, "docker.io/library/old:1", base.platform, digest)
    library.commit(ImageCommit(old.digest, *layer, "mine", comment="why"))
    library.commit(ImageCommit(old.digest, "", "", "empty"))
    mine, empty = (json.loads(library.inspect(n).config)["history"] for n in ("mine", "empty"))
    assert [one["created_by"] for one in mine] == ["the base", "crumble commit"]
    assert mine[1]["comment"] == "why" and "empty_layer" not in mine[1] and empty[1]["empty_layer"]


def test_the_same_layer_is_kept_once(
    library: Library, base: Image, layer: tuple[str, str], store: Store
) -> None:
    one = library.commit(ImageCommit(base.digest, *layer, "one"))
    two = library.commit(ImageCommit(one.digest, *layer, "two"))
    assert two.layers == [*one.layers, one.layers[-1]]
    library.remove("one")
    assert Path(two.layers[-1].contents).exists()
    library.remove("two")
    assert not Path(two.layers[-1].contents).exists()
    assert Path(base.layers[0].index).exists()


def test_the_base_may_go(library: Library, base: Image, layer: tuple[str, str]) -> None:
    image = library.commit(ImageCommit(base.digest, *layer, "mine"))
    library.remove(base.reference)
    assert library.get(ImageGet("mine", pull="never")).layers == image.layers
    assert all(Path(one.contents).exists() for one in image.layers)


@pytest.mark.parametrize("form", ["oci", "docker-archive"])
def test_other_tools_read_its_exports(
    library: Library, base: Image, layer: tuple[str, str], tmp_path: Path, form: Any
) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    image = library.commit(ImageCommit(base.digest, *layer, "mine", ImageConfig(cmd=["/x"])))
    path = tmp_path / "out.tar" if form == "docker-archive" else tmp_path / "out"
    library.export(ImageExport("mine", str(path), form))
    source = f"{form}:{path}" + (":latest" if form == "oci" else "")
    copied = tmp_path / "copied"
    run("skopeo", "--insecure-policy", "copy", "-q", source, f"dir:{copied}")
    told = json.loads(run("skopeo", "inspect", "--config", source))
    assert told["config"]["Cmd"] == ["/x"] and len(told["rootfs"]["diff_ids"]) == 2
    last = json.loads((copied / "manifest.json").read_text())["layers"][-1]
    archive = copied / last["digest"].removeprefix("sha256:")
    names = run("tar", "-tf", str(archive)).split()
    assert sorted(names) == [".wh.g", "opt/hard", "opt/new"]
    assert run("tar", "-xOf", str(archive), "opt/hard").encode() == DATA
    other = Library(Store(tmp_path / "other"))
    again = other.get(ImageGet(source))
    assert len(again.layers) == 2 and again.config == image.config
    assert Path(again.layers[-1].contents).read_bytes() == DATA
    other.close()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_that_no_image_can_have(library: Library, base: Image) -> None:
    for name in ("deb:trixie", "oci:/tmp/x", "UPPER", "a@sha256:" + "0" * 64, ""):
        with pytest.raises(UsageError):
            library.commit(ImageCommit(base.digest, "", "", name))


def test_a_base_that_is_not_here(library: Library) -> None:
    with pytest.raises(UsageError, match="no image"):
        library.commit(ImageCommit("sha256:" + "0" * 64, "", "", "mine"))


def test_a_damaged_layer_is_not_stored(
    library: Library, base: Image, layer: tuple[str, str], store: Store
) -> None:
    """Bits turned anywhere in the index: refused, or an image that can be exported; never a crash."""
    whole = Path(layer[0]).read_bytes()
    before = sorted(path.name for path in (store.root / "layers").iterdir())
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0x81
        Path(layer[0]).write_bytes(damaged)
        try:
            library.commit(ImageCommit(base.digest, *layer, "mine"))
        except CrumbleError:
            assert sorted(p.name for p in (store.root / "layers").iterdir()) == before
        else:
            library.remove("mine")
    for size in (0, 10, len(whole) - 1):
        Path(layer[0]).write_bytes(whole[:size])
        with pytest.raises(HostError):
            library.commit(ImageCommit(base.digest, *layer, "mine"))
    Path(layer[0]).write_bytes(whole)
    os.truncate(layer[1], 3)
    with pytest.raises(HostError, match="torn"):
        library.commit(ImageCommit(base.digest, *layer, "mine"))
    assert not list((store.root / "work").iterdir())
