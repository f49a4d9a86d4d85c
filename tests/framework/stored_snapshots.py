"""Snapshots made without a VM."""

from __future__ import annotations

import os
import time

from crumble.snapshots.draft import Draft
from crumble.snapshots.manifest import Manifest, SavedImage
from crumble.snapshots.store import State, Store
from crumble_common.messages.image import ImageConfig

MEMORY = 4 << 20


def about(name: str, *, kind: str = "user") -> Manifest:
    image = SavedImage("fake", "sha256:" + "2" * 64, "sha256:" + "1" * 64, ImageConfig(), [])
    return Manifest(kind, name, time.time(), 1, MEMORY, "host", image, {})


def draft(store: Store) -> Draft:
    made = store.begin()
    memory = made.create("memory")
    os.pwrite(memory, b"kernel", 4096)
    os.pwrite(memory, b"agent", 2 << 20)
    return made


def snapshot(store: Store, name: str = "one", *, layer: bytes = b"written") -> Manifest:
    made = draft(store)
    if layer:
        made.write("layer.index", b"index")
        made.write("layer.contents", layer)
    kind = "boot" if name.startswith("boot-") else "user"
    return store.publish(made, about(name, kind=kind), State(b"vm", b"fsd"))
