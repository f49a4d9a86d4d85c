"""The same image as a container's bundle, for crun and runc: its packages for this host's processor."""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from crumble_common.layer_index import LayerIndex

_PLATFORM = {"x86_64": "linux/amd64", "aarch64": "linux/arm64", "riscv64": "linux/riscv64"}
_COPY = 1 << 20


def unpack(image: str, root: Path) -> None:
    """The image's files below `root`, for this host; by way of a store that is not the user's."""
    with tempfile.TemporaryDirectory() as where:
        for name in ("data", "run"):
            Path(where, name).mkdir(mode=0o700)
        places = {"CRUMBLE_DATA_DIR": f"{where}/data", "CRUMBLE_RUNTIME_DIR": f"{where}/run"}
        command = [str(Path(sys.executable).with_name("crumble")), "pull", "--json"]
        command += ["--platform", _PLATFORM[platform.machine()], image]
        done = subprocess.check_output(command, env={**os.environ, **places})
        for layer in json.loads(done)["layers"]:
            index = LayerIndex.open(layer["index"])
            contents = os.open(layer["contents"], os.O_RDONLY)
            try:
                _unpack(index, contents, 0, root)
            finally:
                os.close(contents)
                index.close()


def _unpack(index: LayerIndex, contents: int, row: int, to: Path) -> None:
    to.mkdir(exist_ok=True)
    for child in index.children(row):
        entry = index.entry(child)
        path = to / os.fsdecode(entry.name)
        if stat.S_ISDIR(entry.mode):
            _unpack(index, contents, child, path)
            path.chmod(stat.S_IMODE(entry.mode))
        elif stat.S_ISLNK(entry.mode):
            path.symlink_to(os.fsdecode(entry.target))
        elif stat.S_ISREG(entry.mode):
            with path.open("wb") as file:
                for offset in range(0, entry.size, _COPY):
                    size = min(_COPY, entry.size - offset)
                    file.write(os.pread(contents, size, entry.offset + offset))
            path.chmod(stat.S_IMODE(entry.mode))


def write_config(bundle: Path, arguments: list[str]) -> None:
    """config.json of the OCI runtime specification: what `runc spec` writes, no terminal."""
    mounts = [
        ("/proc", "proc", "proc", []),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ]
    namespaces = ("pid", "ipc", "uts", "mount", "network")
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": arguments, "cwd": "/",
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "bench",
        "mounts": [
            {"destination": place, "type": kind, "source": source, "options": options}
            for place, kind, source, options in mounts
        ],
        "linux": {"namespaces": [{"type": name} for name in namespaces]},
    }  # fmt: skip
    (bundle / "config.json").write_text(json.dumps(config))


def compile_code() -> None:
    """As an installation has it: Python's byte code beside the source."""
    for package in ("crumble", "crumble_common", "crumble_vmm", "crumble_fsd", "crumble_ocid"):
        found = importlib.util.find_spec(package)
        for place in (found.submodule_search_locations or []) if found else []:
            compileall.compile_dir(place, quiet=2)


def runtimes() -> list[str]:
    """Those that are installed."""
    return [name for name in ("crun", "runc") if shutil.which(name)]
