"""ocid as a program, against a real registry: what skopeo puts there comes out right."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework.registry import Parts, encode, make_image
from framework.registry_archives import PACKERS, Item, sha256, tar
from framework.registry_process import PASSWORD, USER, RealRegistry, real_registry

pytestmark = [
    pytest.mark.skipif(
        not shutil.which("docker-registry"), reason="docker-registry is not installed"
    ),
    pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed"),
]
INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    with real_registry(tmp_path_factory.mktemp("registry")) as made:
        yield made


class Ocid:
    """The `crumble-ocid` command with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.env = {"HOME": str(folder), "PATH": "/usr/bin:/bin"}

    def run(self, *arguments: str, fails: bool = False) -> Any:
        command = [sys.executable, "-m", "crumble_ocid", *arguments, "--store", str(self.store)]
        done = subprocess.run(
            [*command, "--json"], capture_output=True, text=True, env=self.env, check=False
        )
        assert "Traceback" not in done.stderr
        if fails:
            assert done.returncode == 1 and not done.stdout
            assert done.stderr.startswith("crumble-ocid: ") and done.stderr.count("\n") == 1
            return done.stderr
        assert done.returncode == 0 and not done.stderr, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def ocid(tmp_path: Path) -> Ocid:
    return Ocid(tmp_path)


def layout(folder: Path, images: dict[str, Parts]) -> str:
    """An OCI layout with one index of several platforms, as a skopeo source."""
    blobs = [
        blob for parts in images.values() for blob in (parts.manifest, parts.config, *parts.layers)
    ]
    items = [
        parts.descriptor(
            **dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False))
        )
        for name, parts in images.items()
    ]
    index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": items})
    (folder / "blobs/sha256").mkdir(parents=True)
    for blob in (*blobs, index):
        (folder / "blobs/sha256" / sha256(blob)[7:]).write_bytes(blob)
    top = {
        "mediaType": INDEX,
        "digest": sha256(index),
        "size": len(index),
        "annotations": {"org.opencontainers.image.ref.name": "x"},
    }
    (folder / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_bytes(encode({"schemaVersion": 2, "manifests": [top]}))
    return f"oci:{folder}:x"


def images(*platforms: str) -> dict[str, Parts]:
    return {
        name: make_image(tar(Item("platform", name.encode())), architecture=name.split("/")[1])
        for name in platforms
    }


def test_the_right_platform_of_an_index(ocid: Ocid, registry: RealRegistry, tmp_path: Path) -> None:
    made = images("linux/amd64", "linux/riscv64", "linux/arm64")
    reference = registry.push(layout(tmp_path / "x", made), "test/multi:1", "--all")
    assert ocid.run("pull", reference)["id"] == sha256(made["linux/riscv64"].config)
    amd64 = ocid.run("pull", reference, "--platform", "linux/amd64")
    assert amd64["id"] == sha256(made["linux/amd64"].config) and amd64["platform"] == "linux/amd64"
    error = ocid.run("pull", reference, "--platform", "linux/s390x", fails=True)
    assert "it is made for linux/amd64, linux/arm64, linux/riscv64." in error
    assert [item["platform"] for item in ocid.run("images")] == ["linux/amd64", "linux/riscv64"]


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_formats_and_compressions(
    ocid: Ocid, registry: RealRegistry, tmp_path: Path, packer: str, form: str
) -> None:
    archive = tar(Item("x", b"x" * 9000))
    suffix = f"+{packer.partition(' ')[0]}".replace("+plain", "")
    if form == "v2s2" and suffix == "+zstd":
        pytest.skip("Docker's manifest has no zstd layers")
    parts = make_image(PACKERS[packer](archive), diff_ids=[sha256(archive)], suffix=suffix)
    source = layout(tmp_path / "x", {"linux/riscv64": parts})
    keep = () if form == "v2s2" else ("--preserve-digests",)
    name = f"test/{form}-{packer.replace(' ', '-')}:1"
    options = ("--override-arch", "riscv64", "--format", form, *keep)
    image = ocid.run("pull", registry.push(source, name, *options))
    assert image["config"]["cmd"] == ["sh"] and image["config"]["env"] == ["A=b"]
    assert image["id"] == sha256(parts.config)
    if keep and packer != "plain":
        manifest = ocid.run("inspect", image["reference"])["manifest"]
        assert manifest["layers"][0]["mediaType"].endswith(suffix)


def test_a_locked_registry(ocid: Ocid, tmp_path: Path) -> None:
    made = images("linux/riscv64")
    source = layout(tmp_path / "x", made)
    with real_registry(tmp_path / "registry", locked=True) as locked:
        reference = locked.push(source, "private/x:1", "--override-arch", "riscv64")
        assert "wants you to log in" in ocid.run("pull", reference, fails=True)
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (tmp_path / ".docker").mkdir()
        config = tmp_path / ".docker/config.json"
        config.write_text(json.dumps({"auths": {locked.host: {"auth": auth}}}))
        assert ocid.run("pull", reference)["reference"] == reference
        ocid.run("rm", reference)
        helper = tmp_path / "bin/docker-credential-test"
        helper.parent.mkdir()
        answer = json.dumps({"Username": USER, "Secret": PASSWORD})
        helper.write_text(f"#!/bin/sh\ngrep -q '^{locked.host}$' && echo '{answer}'\n")
        helper.chmod(0o755)
        ocid.env["PATH"] += f":{helper.parent}"
        config.write_text(json.dumps({"credHelpers": {locked.host: "test"}}))
        assert ocid.run("pull", reference)["reference"] == reference
        config.write_text(json.dumps({"credsStore": "none-such"}))
        assert "docker-credential-none-such cannot be used" in ocid.run(
            "pull", reference, fails=True
        )


def test_exports_are_what_skopeo_takes(ocid: Ocid, registry: RealRegistry, tmp_path: Path) -> None:
    made = images("linux/riscv64")
    source = layout(tmp_path / "x", made)
    reference = registry.push(source, "test/export:1", "--override-arch", "riscv64")
    image = ocid.run("pull", reference)
    arch = ("--override-arch", "riscv64")
    for form, name in (("oci", "out"), ("docker-archive", "out.tar")):
        path = tmp_path / name
        ocid.run("export", reference, str(path), "--format", form)
        again = registry.push(f"{form}:{path}", f"test/again-{form}:1", *arch)
        other = Ocid(tmp_path / f"other-{form}")
        found = other.run("pull", again)
        assert found["config"] == image["config"] and found["platform"] == "linux/riscv64"
        diff_ids = [item["rootfs"] for item in (other.run("inspect", again)["config"],)]
        assert diff_ids == [json.loads(made["linux/riscv64"].config)["rootfs"]]


def test_unknown_images(ocid: Ocid, registry: RealRegistry) -> None:
    for name in ("test/none", "test/multi:none"):
        assert "There is no image" in ocid.run("pull", f"{registry.host}/{name}", fails=True)
