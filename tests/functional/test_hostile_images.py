"""Images and registries that mean harm, through the real command: refused in a sentence, nothing left."""

import gzip
import json
import os
import random
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework import assets
from framework.command import eventually
from framework.real_crumble import RealWorld, check_sentence, real_world, refused
from framework.registry import Fault, Parts, Registry, encode, make_image, running_registry
from framework.registry_archives import PACKERS, Item, folder, hardlink, sha256, symlink, tar

FILES = tar(Item("etc/hello", b"hello " * 20_000))
ZIPPED = gzip.compress(FILES, mtime=0)


class Layer:
    """A compressed layer that no other test has: what a store has whole is not fetched again."""

    def __init__(self, name: str) -> None:
        self.archive = tar(Item(name, random.Random(name).randbytes(300_000)))
        self.data = gzip.compress(self.archive, mtime=0)
        self.digest = sha256(self.data)
        self.diff_id = sha256(self.archive)

    def image(self, diff_id: str = "") -> Parts:
        return make_image(self.data, diff_ids=[diff_id or self.diff_id], Labels={"of": self.digest})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    with real_world(tmp_path_factory.mktemp("images") / "w") as made:
        made.environment["CRUMBLE_NETWORK_TIMEOUT"] = "0.5"
        yield made


@pytest.fixture
def world(shared: RealWorld) -> Iterator[RealWorld]:
    before = store_files(shared)
    yield shared
    shared.assert_nothing_left()
    assert store_files(shared) - before <= {"partial"}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as made:
        yield made


def store_files(world: RealWorld) -> set[str]:
    """What an image that is refused must not add to: references and layers (blobs that are whole may
    stay for the next try), and whether there are downloads to be resumed."""
    store = world.data / "store"
    found = {str(path) for place in ("references", "layers") for path in (store / place).iterdir()}
    return found | {path.suffix[1:] for path in (store / "work").glob("*.partial")}


def device(name: str, kind: bytes, major: int, minor: int) -> Item:
    return Item(name, type=kind, mode=0o666, fields={"devmajor": major, "devminor": minor})


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (b"this is no archive" * 100, "archive .*damaged, or made by a faulty tool"),
        (ZIPPED[: len(ZIPPED) // 2], "truncated|ends too early"),
        (ZIPPED[:-4] + b"\1\2\3\4", "The archive .*damaged"),
        (FILES[: len(FILES) // 2], "The archive is truncated"),
        (tar(Item("../../../../tmp/escaped", b"x")), "which leads out of the image"),
        (tar(Item("a/../../etc/passwd", b"x")), "which leads out of the image"),
        (tar(hardlink("x", "../../../etc/shadow")), "which leads out of the image"),
        (tar(hardlink("x", "/etc/shadow")), "which this layer lacks"),
        (tar(symlink("d", "/tmp"), Item("d/escaped", b"x")), "leads through a symlink"),
        (tar(symlink("a", "b"), symlink("b", "a"), Item("a/x", b"")), "leads through a symlink"),
        (tar(device("dev", tarfile.BLKTYPE, 1 << 20, (1 << 21) - 1)), "device with wild numbers"),
        (tar(Item("x" * 300, b"")), "a name that is too long"),
    ],
)
def test_layers(world: RealWorld, registry: Registry, layer: bytes, says: str) -> None:
    refused(world, "run", registry.add(make_image(layer)), says=says)
    assert not Path("/tmp/escaped").exists()


@pytest.mark.parametrize(
    ("part", "fault", "says"),
    [
        ("manifest", "huge", "sends more than 4194304 bytes .*"),
        ("manifest", "endless", "sends more than 4194304 bytes .*"),
        ("manifest", "hang", "did not answer in time. Check the network"),
        ("manifest", "short", "manifest that is not JSON|another digest"),
        ("manifest", "missing", "There is no image"),
        ("manifest", "redirect", "redirects in circles"),
        ("config", "long", r"has \d+ bytes where \d+ should be"),
        ("config", "corrupt", "has another digest. The server or something on the way"),
        ("layer", "corrupt", "has another digest. The server or something on the way"),
        ("layer", "long", r"has \d+ bytes where \d+ should be"),
        ("layer", "huge", r"has \d+ bytes where \d+ should be"),
        ("layer", "endless", "sends more than"),
        ("layer", "stall", "did not answer in time. Check the network"),
        ("layer", "hang", "did not answer in time. Check the network"),
        ("layer", "missing", "lacks sha256:.* The image is incomplete there; push it again"),
    ],
)
def test_registries_that_lie_or_hang(
    world: RealWorld, registry: Registry, part: str, fault: str, says: str
) -> None:
    layer = Layer(f"{part}-{fault}")
    parts = layer.image()
    reference = registry.add(parts)
    place = {"manifest": "/manifests/", "config": sha256(parts.config), "layer": layer.digest}
    registry.faults = {place[part]: Fault(fault)}
    refused(world, "pull", reference, says=says)


def test_documents_that_lie(world: RealWorld, registry: Registry) -> None:
    parts = Layer("lies").image()
    registry.add(parts)
    wrong = Layer("wrong").image(diff_id=sha256(b"something else"))
    refused(world, "run", registry.add(wrong), says="has the digest .* where the image says")
    document = json.loads(parts.manifest)
    document["layers"][0]["size"] += 1000
    registry.put("/v2/test/image/manifests/liar", encode(document))
    says = "bytes where"
    refused(world, "run", f"{registry.host}/test/image:liar", says=says)
    document["layers"][0]["size"] = 10
    registry.put("/v2/test/image/manifests/liar", encode(document))
    says = "bytes where 10 should be"
    refused(world, "run", f"{registry.host}/test/image:liar", says=says)
    document["layers"] = document["layers"] * 1000
    registry.put("/v2/test/image/manifests/liar", encode(document))
    refused(world, "run", f"{registry.host}/test/image:liar", says="more than 512.* push it again")
    deep = b'{"a":' * 100_000
    registry.put("/v2/test/image/manifests/liar", deep)
    refused(world, "run", f"{registry.host}/test/image:liar", says="manifest that is not JSON")
    by_digest = f"{registry.host}/test/image@{sha256(b'other')}"
    registry.put(f"/v2/test/image/manifests/{sha256(b'other')}", parts.manifest)
    refused(world, "run", by_digest, says="another manifest than sha256:.* not to be trusted")


def test_platforms_that_are_not_ours_are_listed(world: RealWorld, registry: Registry) -> None:
    names = ("linux/amd64", "linux/arm64/v8", "linux/arm/v7", "windows/amd64")
    images = {
        name: make_image(tar(Item(name.replace("/", "-"))), architecture=name.split("/")[1])
        for name in names
    }
    says = (
        "not made for linux/riscv64; it is made for linux/amd64, linux/arm, linux/arm64, "
        "windows/amd64. Choose another image or tag"
    )
    for verb in ("run", "pull"):
        refused(world, verb, registry.add_index(images), says=says)
    one = registry.add(images["linux/amd64"], tag="one")
    refused(world, "run", one, says="it is made for linux/amd64. Choose another")


def test_a_registry_that_is_not_there(world: RealWorld) -> None:
    refused(world, "run", "127.0.0.1:1/no/such", says="Cannot talk to 127.0.0.1:1: .*Check the net")


def write_layout(folder: Path, damaged: str = "") -> tuple[str, Path]:
    """An OCI layout's reference, and its layer's file. damaged: "manifest", "config" or "layer"."""
    layer = Layer(folder.name)
    parts = layer.image()
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    named = {"manifest": parts.manifest, "config": parts.config, "layer": layer.data}
    for name, data in named.items():
        (blobs / sha256(data)[7:]).write_bytes(b"other" if name == damaged else data)
    (folder / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}))
    index = {"schemaVersion": 2, "manifests": [parts.descriptor()]}
    (folder / "index.json").write_bytes(encode(index))
    return f"oci:{folder}", blobs / layer.digest[7:]


def test_layouts_and_archives(world: RealWorld, tmp_path: Path) -> None:
    for part in ("manifest", "config", "layer"):
        reference, _ = write_layout(tmp_path / part, damaged=part)
        refused(world, "run", reference, says="is damaged: sha256:.* has another content")
    whole, layer = write_layout(tmp_path / "whole")
    layer.unlink()
    refused(world, "run", whole, says="lacks its part")
    layer.symlink_to(layer)
    refused(world, "run", whole, says="Cannot read .*symbolic links")
    layer.unlink()
    os.mkfifo(layer)
    refused(world, "run", whole, says="is not a file")
    archive = tmp_path / "image.tar"
    archive.write_bytes(tar(Item("manifest.json", b"[{}]" * 3)))
    refused(world, "run", f"docker-archive:{archive}", says="is not a docker-archive. It is what")
    archive.write_bytes(archive.read_bytes()[:700])
    refused(world, "run", f"docker-archive:{archive}", says="archive is truncated. It is damaged")
    refused(world, "run", "oci:/no/such", says="There is no /no/such. ")
    refused(world, "run", f"oci:{tmp_path}", says="is not an OCI layout. A layout is")


def test_a_store_that_was_damaged(world: RealWorld, registry: Registry) -> None:
    """What is broken in the store is noticed, said, and mended by a pull."""
    layer = Layer("damaged")
    parts = layer.image()
    reference = registry.add(parts)
    assert world.run("pull", reference).returncode == 0
    store = world.data / "store"
    contents = store / "layers" / f"{layer.diff_id[7:]}.contents"
    contents.chmod(0o600)
    contents.write_bytes(contents.read_bytes()[:1000])
    says = "are shorter than their index says. Remove the image and pull it again"
    refused(world, "run", reference, "true", says=says)
    index = contents.with_suffix(".index")
    index.chmod(0o600)
    index.write_bytes(b"x" * 4096)
    refused(world, "run", reference, "true", says=r"layer.*damaged|index.*Remove the image")
    (store / "blobs/sha256" / parts.digest[7:]).write_bytes(b"{}")
    assert world.run("rmi", reference).returncode == 0
    assert world.run("pull", reference).returncode == 0
    assert world.run("rmi", reference).returncode == 0


def guest_image() -> bytes:
    """A layer of a static shell, and of names that lead, or seem to lead, out of the image."""
    return tar(
        folder("bin"),
        Item("bin/busybox", assets.busybox(), mode=0o755),
        symlink("bin/sh", "busybox"),
        Item("etc/motd", b"guest's own\n"),
        symlink("absolute", "/etc/motd"),
        symlink("climbing", "../../../../../etc/motd"),
        symlink("loop", "pool"),
        symlink("pool", "loop"),
        symlink("self/in", "in"),
        symlink("host", "/proc/1/root/etc/hostname"),
        device("odd/null", tarfile.CHRTYPE, 1, 3),
        device("odd/disk", tarfile.BLKTYPE, 8, 0),
        device("odd/kvm", tarfile.CHRTYPE, 10, 232),
        Item("odd/pipe", type=tarfile.FIFOTYPE, mode=0o666),
        Item("/rooted", b"absolute name\n"),
    )


def test_odd_names_stay_in_the_guest(world: RealWorld, registry: Registry) -> None:
    """Links are the guest's to follow; a device node means the guest kernel's device, or nothing."""
    layer = guest_image()
    packed = PACKERS["zstd"](layer)
    reference = registry.add(make_image(packed, diff_ids=[sha256(layer)], Cmd=["/bin/sh"]))
    script = """
        PATH=/bin; busybox cat /absolute /climbing /rooted
        busybox cat /loop /self/in; echo x > /odd/null; busybox cat /odd/null
        busybox head -c1 /odd/disk; busybox head -c1 /odd/kvm
        (echo through > /odd/pipe) & busybox cat /odd/pipe; echo end
    """
    done = world.run("run", reference, "/bin/sh", "-c", script)
    assert done.returncode == 0, done
    own = "guest's own\n"
    assert done.stdout == f"{own}{own}absolute name\nthrough\nend\n"
    assert done.stderr.count("Too many levels of symbolic links") == 2 or "Symbolic" in done.stderr
    assert "/odd/disk" in done.stderr and "/odd/kvm" in done.stderr
    assert world.run("rmi", reference).returncode == 0


def test_an_interrupted_pull_is_resumed(world: RealWorld, registry: Registry) -> None:
    world.environment["CRUMBLE_NETWORK_TIMEOUT"] = "30"
    layer = Layer("interrupted")
    reference = registry.add(layer.image())
    registry.faults = {layer.digest: Fault("stall")}
    process = world.start("pull", reference)
    name = f"{layer.digest.replace(':', '-')}.partial"
    partial = world.data / "store" / "work" / name
    eventually(lambda: partial.exists() and partial.stat().st_size, "no download")
    began = time.monotonic()
    process.send_signal(2)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, b"")
    assert time.monotonic() - began < 10
    world.assert_nothing_left()
    registry.faults = {}
    registry.requests.clear()
    assert world.run("pull", reference).returncode == 0
    (asked,) = [headers for _, path, headers in registry.requests if layer.digest in path]
    assert asked.get("Range", "").startswith("bytes=")
    assert world.run("rmi", reference).returncode == 0


def test_sentences_are_checked() -> None:
    with pytest.raises(AssertionError):
        check_sentence("crumble: One.\nTwo.\n")
