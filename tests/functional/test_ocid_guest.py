"""One system, in every form an image can come in, booted: the guest sees the same files."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework.registry import encode, make_image
from framework.registry_archives import Item, tar
from framework.registry_process import real_registry

pytestmark = [pytest.mark.network, pytest.mark.guest, pytest.mark.slow]

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SCRIPT = ("sh", "-c", "sha256sum /usr/bin/dash /etc/passwd; stat -c %a /tmp; readlink /bin; exit 7")


@pytest.fixture(scope="module")
def crumble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The `crumble` command, or `crumble-ocid`, with a world of their own."""
    home = tmp_path_factory.mktemp("home")
    env = {
        **os.environ,
        "HOME": str(home),
        "CRUMBLE_DATA_DIR": str(home / "data"),
        "CRUMBLE_RUNTIME_DIR": str(home / "run"),
    }

    def run(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    yield run
    shutil.rmtree(home)


def ran(crumble: Run, reference: str, *command: str) -> str:
    done = crumble("crumble.cli.main", "run", reference, *(command or SCRIPT))
    assert done.returncode == (0 if command else 7), done.stderr
    return done.stdout


def ocid(crumble: Run, *arguments: str) -> None:
    done = crumble("crumble_ocid", *arguments)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def expected(crumble: Run) -> str:
    output = ran(crumble, "deb:trixie")
    assert output.splitlines()[2:] == ["1777", "usr/bin"]
    return output


@pytest.mark.parametrize("form", ["oci", "docker-archive"])
def test_exported_and_run_from_there(
    crumble: Run, expected: str, tmp_path: Path, form: str
) -> None:
    path = tmp_path / ("layout" if form == "oci" else "image.tar")
    ocid(crumble, "export", "deb:trixie", str(path), "--format", form)
    assert ran(crumble, f"{form}:{path}") == expected


@pytest.mark.skipif(not shutil.which("docker-registry"), reason="docker-registry is not installed")
@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
def test_pulled_from_a_registry(crumble: Run, expected: str, tmp_path: Path) -> None:
    ocid(crumble, "export", "deb:trixie", str(tmp_path / "layout"))
    with real_registry(tmp_path / "registry") as registry:
        reference = registry.push(
            f"oci:{tmp_path / 'layout'}:trixie", "test/debian:one", "--override-arch", "riscv64"
        )
        assert ran(crumble, reference) == expected
        other = make_image(tar(Item("a")), architecture="amd64")
        foreign = tmp_path / "foreign"
        (foreign / "blobs/sha256").mkdir(parents=True)
        for blob in (other.manifest, other.config, *other.layers):
            (foreign / "blobs/sha256" / hashlib.sha256(blob).hexdigest()).write_bytes(blob)
        (foreign / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}))
        items = [other.descriptor(os="linux", architecture="amd64")]
        (foreign / "index.json").write_bytes(encode({"schemaVersion": 2, "manifests": items}))
        wrong = registry.push(f"oci:{foreign}", "test/amd64:one", "--override-arch", "amd64")
        done = crumble("crumble.cli.main", "run", wrong, "true")
        assert done.returncode == 125
        assert "made for linux/amd64" in done.stderr and "Traceback" not in done.stderr


def test_named_packages_are_there(crumble: Run) -> None:
    assert (
        ran(crumble, "deb:trixie/bc", "sh", "-c", "echo 6*7 | bc; which bc") == "42\n/usr/bin/bc\n"
    )
