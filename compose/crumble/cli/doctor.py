"""`crumble doctor`: what this host can do, and why not the rest."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crumble.cli import output
from crumble.cli.parser import Parser
from crumble.supervisor.locate import find_daemon
from crumble_common import __version__, paths, sandbox
from crumble_common.errors import CrumbleError

# What a service may take to say what it finds, s. The probe of /dev/kvm runs code in it.
_PROBE_LIMIT = 60
_STATES = {True: "usable", False: "not usable"}


def main(arguments: list[str]) -> int:
    """Runs the verb; 0 when VMs can run here."""
    parser = Parser("doctor", "Shows what this host can do, and why not the rest.")
    parser.json()
    options = parser.parse_args(arguments)
    found = examine()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _show(found)
    return 0 if any(item["usable"] for item in found["hypervisors"]) else 1


def examine() -> dict[str, Any]:
    """Everything, as plain values."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "host": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "hypervisors": _hypervisors(),
        "sandbox": sandbox.probe(),
        "supervisor": find_daemon(),
        "runtime": _place(paths.runtime_dir),
        "data": _place(paths.data_dir),
        "kernels": _kernels(),
        "images": _images(),
        "debian": _ask("crumble_ocid") or {"problem": "crumble_ocid cannot be asked."},
    }


def _hypervisors() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] | None = _ask("crumble_vmm")
    if found is None:
        reason = "crumble_vmm cannot be asked: reinstall Crumble."
        return [{"name": "vmm", "usable": False, "reason": reason}]
    return found


def _ask(module: str) -> Any:
    """What a service finds; None when it cannot say. Its code is only run in its own process."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, "--probe"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_LIMIT, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _place(get: Callable[[], Path]) -> dict[str, Any]:
    try:
        path = get()
        disk = os.statvfs(path)
    except (CrumbleError, OSError) as error:
        return {"path": "", "problem": str(error)}
    return {"path": str(path), "free": disk.f_bavail * disk.f_frsize}


def _kernels() -> list[dict[str, Any]]:
    home = paths.store_dir() / "kernels"
    releases = sorted(path for path in home.glob("*/*") if path.is_dir())
    return [
        {"architecture": path.parent.name, "release": path.name, "size": _size(path)}
        for path in releases
    ]


def _images() -> dict[str, Any]:
    store = paths.store_dir()
    return {
        "path": str(store),
        "references": len(list(store.glob("references/*.json"))),
        "blobs": _size(store / "blobs"),
        "layers": _size(store / "layers"),
    }


def _size(path: Path) -> int:
    """Bytes on disk below a directory."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_blocks * 512
            except OSError:
                continue  # collected meanwhile
    return total


def _show(found: dict[str, Any]) -> None:
    print(f"Crumble {found['version']}, Python {found['python']}, {found['host']}")
    print(f"  {found['cpus']} CPUs, {output.size(found['memory'])} of memory")
    print("\nBack ends")
    for item in found["hypervisors"]:
        guests = f" ({', '.join(item['architectures'])})" if item.get("architectures") else ""
        print(f"  {item['name']:12} {_STATES[item['usable']]}{guests}: {item['reason']}")
    print("\nSandbox")
    for layer, state in found["sandbox"].items():
        print(f"  {layer:12} {state}")
    print("\nPlaces")
    for name in ("runtime", "data"):
        print(f"  {name:12} {_described(found[name])}")
    print(f"  {'supervisor':12} {found['supervisor'] or 'none is running'}")
    images = found["images"]
    sizes = f"{output.size(images['blobs'])} as fetched, {output.size(images['layers'])} indexed"
    print(f"  {'images':12} {images['references']}: {sizes}")
    for kernel in found["kernels"] or [None]:
        print(f"  {'kernel':12} {_kernel(kernel)}")
    print(f"  {'debian':12} {found['debian'].get('problem') or found['debian'].get('mirror')}")


def _described(place: dict[str, Any]) -> str:
    return place.get("problem") or f"{place['path']} ({output.size(place['free'])} free)"


def _kernel(kernel: dict[str, Any] | None) -> str:
    if kernel is None:
        return "none yet: the first run fetches one"
    return f"{kernel['release']} {kernel['architecture']}, {output.size(kernel['size'])}"
