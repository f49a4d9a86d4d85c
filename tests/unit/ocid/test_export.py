import contextlib
import gzip
import io
import json
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from crumble_common.errors import CrumbleError, HostError, UsageError
from crumble_common.layer_index import LayerIndex, write_index
from crumble_common.messages.image import ImageExport, ImageGet
from crumble_ocid.layer_builder import LayerBuilder
from crumble_ocid.layers import read_layer
from crumble_ocid.library import Library
from crumble_ocid.store import Store
from crumble_ocid.tar_writer import layer_archive
from framework.registry import Registry, encode, make_image
from framework.registry_archives import PACKERS, Item, folder, hardlink, sha256, symlink, tar

RICH = tar(
    folder("./", 0o755),
    folder("d", 0o1777),
    Item("d/" + "n" * 200, b"long name"),
    Item("é" * 60, b"x" * 5000, mode=0o4755, fields={"uid": 3_000_000, "gid": 3, "mtime": 12.5}),
    symlink("s", "t" * 150),
    hardlink("a-link", "d/" + "n" * 200),
    Item("null", type=tarfile.CHRTYPE, fields={"devmajor": 1, "devminor": 3}),
    Item("pipe", type=tarfile.FIFOTYPE),
    Item("xattr", fields={"pax_headers": {"SCHILY.xattr.user.k": "v"}}),
    folder("o"),
    Item("o/.wh..wh..opq"),
    Item("implied/.wh.gone"),
    Item("old", fields={"mtime": -7.0}),
)


def archive_of(data: bytes, folder: Path) -> bytes:
    """The archive made again from the index of one."""
    with (folder / "contents").open("w+b") as contents:
        builder = LayerBuilder(contents)
        root, _ = read_layer([data], builder)
    write_index(folder / "index", root, builder.contents_size)
    index = LayerIndex.open(folder / "index")
    with contextlib.closing(index):
        return b"".join(layer_archive(index, folder / "contents"))


def listing(data: bytes) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for m in archive:
            content = file.read() if m.isreg() and (file := archive.extractfile(m)) else b""
            pax = {k: v for k, v in m.pax_headers.items() if k.startswith("SCHILY")}
            found[m.name] = (
                m.type, m.mode, m.uid, m.gid, m.mtime, m.linkname, m.devmajor, m.devminor, content, str(pax)
            )  # fmt: skip
    return found


def test_an_archive_made_again_says_the_same(tmp_path: Path) -> None:
    again = archive_of(RICH, tmp_path)
    before, after = listing(RICH), listing(again)
    # of two names of one inode the first in order of path is now the file, the other the link
    names = {"a-link", "d/" + "n" * 200}
    assert {
        k: v for k, v in after.items() if k not in names | {"implied/.wh.gone", "o/.wh..wh..opq"}
    } == {
        k: v for k, v in before.items() if k not in names | {"implied/.wh.gone", "o/.wh..wh..opq"}
    }
    assert {"implied/.wh.gone", "o/.wh..wh..opq"} <= after.keys()
    assert after["a-link"][8] == b"long name" and after["d/" + "n" * 200][5] == "a-link"
    (tmp_path / "second").mkdir()
    assert archive_of(again, tmp_path / "second") == again


def test_gnu_tar_reads_it(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(archive_of(RICH, tmp_path))
    done = subprocess.run(
        ["tar", "-tf", "x.tar"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr
    assert len(done.stdout.splitlines()) == len(listing(RICH))


@pytest.fixture
def reference(library: Library, registry: Registry) -> str:
    layers = (tar(Item("one", b"1")), tar(Item("two", b"2" * 10_000)))
    parts = make_image(
        PACKERS["gzip"](layers[0]), PACKERS["zstd"](layers[1]), diff_ids=[sha256(x) for x in layers]
    )
    return library.get(ImageGet(registry.add(parts))).reference


def test_out_and_in_again_as_an_oci_layout(
    library: Library, reference: str, tmp_path: Path
) -> None:
    image = library.inspect(reference).image
    for name in ("layout", "layout.tar"):
        path = tmp_path / name
        library.export(ImageExport(reference, str(path), "oci"))
        other = Library(Store(tmp_path / f"other-{name}"))
        for text in (f"oci:{path}", f"oci:{path}:latest"):
            again = other.get(ImageGet(text))
            assert (again.digest, again.id, again.config) == (image.digest, image.id, image.config)
            assert again.reference == text and len(again.layers) == 2


def test_out_and_in_again_as_a_docker_archive(
    library: Library, reference: str, tmp_path: Path
) -> None:
    image = library.inspect(reference).image
    path = tmp_path / "image.tar"
    library.export(ImageExport(reference, str(path), "docker-archive"))
    (tmp_path / "image.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    other = Library(Store(tmp_path / "other"))
    for text in (path, f"{path}:{reference}", f"{path}:@0", f"{path}.gz"):
        again = other.get(ImageGet(f"docker-archive:{text}"))
        assert again.id == image.id and again.config == image.config
    assert not list((tmp_path / "other/work").iterdir())


def test_nothing_that_is_there_is_touched(library: Library, reference: str, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("precious")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("precious")
    for path, form in (("there", "docker-archive"), ("full", "oci"), ("there/below", "oci")):
        with pytest.raises((UsageError, HostError)):
            library.export(ImageExport(reference, str(tmp_path / path), form))  # type: ignore[arg-type]  # one it takes
    assert (tmp_path / "there").read_text() == "precious"
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["x"]
    with pytest.raises(UsageError, match="relative"):
        library.export(ImageExport(reference, "x", "oci"))


def test_a_failed_export_leaves_nothing(library: Library, reference: str, tmp_path: Path) -> None:
    image = library.inspect(reference).image
    manifest = json.loads(library.inspect(reference).manifest)
    library.store.blob_path(manifest["layers"][1]["digest"]).write_bytes(b"damaged")
    for form in ("oci", "docker-archive"):
        with pytest.raises(CrumbleError):
            library.export(ImageExport(reference, str(tmp_path / "out" / form), form))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    assert image.layers


# Layouts and archives of strangers


def layout(folder: Path, *descriptors: dict[str, object], blobs: tuple[bytes, ...] = ()) -> Path:
    (folder / "blobs/sha256").mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_bytes(encode({"schemaVersion": 2, "manifests": descriptors}))
    for blob in blobs:
        (folder / "blobs/sha256" / sha256(blob)[7:]).write_bytes(blob)
    return folder


def named(descriptor: dict[str, object], name: str) -> dict[str, object]:
    return {**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}}


def test_layouts_with_several_images(library: Library, tmp_path: Path) -> None:
    one, two = make_image(tar(Item("1"))), make_image(tar(Item("2")))
    other = make_image(tar(Item("3")), architecture="amd64")
    parts = (one, two, other)
    blobs = tuple(b for p in parts for b in (p.manifest, p.config, *p.layers))
    path = layout(
        tmp_path / "x",
        named(one.descriptor(), "one"),
        named(two.descriptor(), "example.org/app:two"),
        named(other.descriptor(os="linux", architecture="amd64"), "one"),
        blobs=blobs,
    )
    assert library.get(ImageGet(f"oci:{path}:one")).digest == one.digest
    assert library.get(ImageGet(f"oci:{path}:one", "linux/amd64")).digest == other.digest
    assert library.get(ImageGet(f"oci:{path}:two")).digest == two.digest
    for text, says in (
        (f"oci:{path}", "several images; it holds example.org/app:two, one."),
        (f"oci:{path}:three", "no image 'three'"),
    ):
        with pytest.raises(UsageError) as caught:
            library.get(ImageGet(text))
        assert says in caught.value.message


def test_damaged_layouts_are_refused(library: Library, tmp_path: Path) -> None:
    parts = make_image()
    descriptor = parts.descriptor()
    whole = (parts.manifest, parts.config, *parts.layers)
    cases = {
        "a missing blob": layout(tmp_path / "a", descriptor, blobs=whole[:2]),
        "another content": layout(tmp_path / "b", descriptor, blobs=whole),
        "another manifest": layout(tmp_path / "c", descriptor, blobs=whole),
        "no version": layout(tmp_path / "d", descriptor, blobs=whole),
        "a directory": layout(tmp_path / "e", descriptor, blobs=whole[:2]),
        "nothing": tmp_path / "none",
    }
    blobs = tmp_path / "b/blobs/sha256"
    (blobs / sha256(parts.layers[0])[7:]).write_bytes(b"x")
    (tmp_path / "c/blobs/sha256" / parts.digest[7:]).write_bytes(b"{}")
    (tmp_path / "d/oci-layout").write_text("[]")
    (tmp_path / "e/blobs/sha256" / sha256(parts.layers[0])[7:]).mkdir()
    for name, path in cases.items():
        with pytest.raises(CrumbleError) as caught:
            library.get(ImageGet(f"oci:{path}"))
        assert caught.value.code in (
            "image.incomplete",
            "image.digest",
            "image.path",
            "host.file",
        ), name
        assert library.images().images == []
    opened = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [path for path in opened if path.readlink().is_relative_to(tmp_path / "e")]


def docker_archive(path: Path, *members: Item, manifest: object) -> Path:
    path.write_bytes(tar(*members, Item("manifest.json", encode(manifest))))
    return path


def test_archives_with_repeated_layers_as_links(library: Library, tmp_path: Path) -> None:
    layer = tar(Item("a"))
    parts = make_image(layer, layer)
    path = docker_archive(
        tmp_path / "x.tar",
        Item("c.json", parts.config),
        Item("1/layer.tar", layer),
        symlink("2/layer.tar", "../1/layer.tar"),
        manifest=[{"Config": "c.json", "RepoTags": None, "Layers": ["1/layer.tar", "2/layer.tar"]}],
    )
    assert len(library.get(ImageGet(f"docker-archive:{path}")).layers) == 2


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        [],
        [7],
        [{"Config": "c.json", "Layers": ["gone.tar"]}],
        [{"Config": "gone.json", "Layers": ["l.tar"]}],
        [{"Config": "c.json", "Layers": "l.tar"}],
        [{"Config": "c.json", "Layers": ["l.tar", "l.tar"]}],
        [{"Config": "c.json", "Layers": ["loop"]}],
        [{"Config": "/etc/passwd", "Layers": ["../../etc/passwd"]}],
        [{"Config": "c.json", "Layers": ["l.tar"]}, {"Config": "c.json", "Layers": ["l.tar"]}],
    ],
)
def test_bad_archives_are_refused(library: Library, tmp_path: Path, manifest: object) -> None:
    layer = tar(Item("a"))
    path = docker_archive(
        tmp_path / "x.tar",
        Item("c.json", make_image(layer).config),
        Item("l.tar", layer),
        symlink("loop", "loop"),
        manifest=manifest,
    )
    with pytest.raises(CrumbleError) as caught:
        library.get(ImageGet(f"docker-archive:{path}"))
    assert caught.value.code.startswith("image.")
    assert library.images().images == []


def test_truncated_and_foreign_files_are_refused(library: Library, tmp_path: Path) -> None:
    (tmp_path / "short.tar").write_bytes(tar(Item("manifest.json", b"x" * 9000))[:5000])
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "other.tar").write_bytes(tar(Item("a")))
    for name in ("short.tar", "text", "empty", "other.tar", "none", "../dev/zero"):
        for scheme in ("docker-archive", "oci"):
            with pytest.raises(CrumbleError):
                library.get(ImageGet(f"{scheme}:{tmp_path / name}"))
    with pytest.raises(UsageError, match="neither a directory nor a file"):
        library.get(ImageGet("docker-archive:/dev/null"))
    assert stat.S_ISDIR(tmp_path.stat().st_mode)
