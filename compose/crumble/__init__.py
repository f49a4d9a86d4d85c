"""Crumble: run commands from OCI images, each in a virtual machine of its own.

    import crumble
    print(crumble.run("deb:trixie", ["uname", "-a"], capture_output=True, text=True).stdout)

The whole public API is here. Names are loaded when first used, so that the command starts fast.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crumble.sdk.captured import Snapshot
    from crumble.sdk.images import Image, images, inspect, pull, remove
    from crumble.sdk.process import (
        DEVNULL,
        PIPE,
        CommandError,
        CommandTimeoutError,
        Process,
    )
    from crumble.sdk.run import run
    from crumble.sdk.vm import VM
    from crumble_common.errors import (
        CrumbleError,
        GuestError,
        HostError,
        InternalError,
        RemoteError,
        UsageError,
    )

__all__ = [
    "DEVNULL",
    "PIPE",
    "VM",
    "CommandError",
    "CommandTimeoutError",
    "CrumbleError",
    "GuestError",
    "HostError",
    "Image",
    "InternalError",
    "Process",
    "RemoteError",
    "Snapshot",
    "UsageError",
    "images",
    "inspect",
    "pull",
    "remove",
    "run",
]

_HOMES = {
    "crumble.sdk.captured": ("Snapshot",),
    "crumble.sdk.images": ("Image", "images", "inspect", "pull", "remove"),
    "crumble.sdk.process": ("DEVNULL", "PIPE", "CommandError", "CommandTimeoutError", "Process"),
    "crumble.sdk.run": ("run",),
    "crumble.sdk.vm": ("VM",),
    "crumble_common.errors": (
        "CrumbleError", "GuestError", "HostError", "InternalError", "RemoteError", "UsageError",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'crumble' has no attribute {name!r}")
