"""ocid under the supervisor: sandboxed, asked by messages, dying in the middle."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.registry import Fault, Registry, make_image, running_registry
from framework.registry_archives import Item, sha256, tar

PROGRAM = """
import os, pathlib, signal, threading, time
from crumble.sdk.session import session
from crumble_common.errors import CrumbleError
from crumble_common.messages.image import ImageExport, ImageGet, ImageInspect, ImageList, ImageRemove

def ask(request):
    try:
        return session().call(request, to="images")
    except CrumbleError as error:
        return error

{body}
"""


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as made:
        yield made


def run(tmp_path: Path, body: str, **env: str) -> list[str]:
    """Runs a program with a supervisor of its own; its output's lines."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "CRUMBLE_DATA_DIR": str(tmp_path / "data"),
            "CRUMBLE_RUNTIME_DIR": str(tmp_path / "run"),
            **env,
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_requests_under_the_sandbox(registry: Registry, tmp_path: Path) -> None:
    parts = make_image()
    reference = registry.add(parts)
    body = f"""
image = ask(ImageGet({reference!r}))
print(image.digest)
print(len(ask(ImageList()).images))
print(ask(ImageInspect({reference!r})).references)
for form, path in (("oci", "layout"), ("docker-archive", "image.tar")):
    where = {str(tmp_path)!r} + "/out/" + path
    print(type(ask(ImageExport({reference!r}, where, form))).__name__)
    print(ask(ImageGet(form + ":" + where)).id == image.id)
    print(ask(ImageExport({reference!r}, where, form)).code)
print(ask(ImageGet("deb:..")).code)
print(ask(ImageGet("oci:relative")).code)
print(len(ask(ImageRemove({reference!r})).references))
"""
    assert run(tmp_path, body) == [
        parts.digest, "1", f"[{reference!r}]", "Ok", "True", "export.exists", "Ok", "True",
        "export.exists", "image.reference", "image.reference", "1",
    ]  # fmt: skip


def test_credential_helpers_run_outside_the_sandbox(registry: Registry, tmp_path: Path) -> None:
    parts = make_image()
    reference = registry.add(parts)
    registry.basic = "me:secret"
    (tmp_path / "bin").mkdir()
    helper = tmp_path / "bin/docker-credential-test"
    helper.write_text('#!/bin/sh\necho \'{"Username": "me", "Secret": "secret"}\'\n')
    helper.chmod(0o755)
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(json.dumps({"credsStore": "test"}))
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    assert run(tmp_path, f"print(ask(ImageGet({reference!r})).digest)", PATH=path) == [parts.digest]


def test_when_ocid_dies_the_asker_is_told_and_the_next_is_served(
    registry: Registry, tmp_path: Path
) -> None:
    layer = tar(Item("big", bytes(3_000_000)))
    parts = make_image(layer)
    reference = registry.add(parts)
    registry.faults = {sha256(layer): Fault("stall")}
    body = f"""
def die():
    partials = []
    while not any(path.stat().st_size > 1_000_000 for path in partials):
        time.sleep(0.01)
        partials = list(pathlib.Path({str(tmp_path)!r}).glob("data/store/work/*.partial"))
    inodes = [path.stat().st_ino for path in partials]
    for line in pathlib.Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if int(words[5].split(":")[2]) in inodes:
            os.kill(int(words[4]), signal.SIGKILL)

thread = threading.Thread(target=die)
thread.start()
error = ask(ImageGet({reference!r}))
thread.join()
print(type(error).__name__, bool(error.message))
"""
    assert run(tmp_path, body) == ["InternalError True"]
    registry.faults = {}
    assert run(tmp_path, f"print(ask(ImageGet({reference!r})).digest)") == [parts.digest]
    ranges = [
        headers.get("Range") for _, path, headers in registry.requests if sha256(layer) in path
    ]
    assert ranges[-1], "the download is resumed"
    assert list((tmp_path / "data/store/work").iterdir()) == []
