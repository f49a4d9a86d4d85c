"""What a VM goes on from: a snapshot in the store, or one made for a fork that has no name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from crumble.snapshots import manifest as form
from crumble.snapshots.archive import missing_image
from crumble.snapshots.manifest import Manifest
from crumble.snapshots.store import Snapshot, State
from crumble_common import memory_base, paths
from crumble_common.messages.fs import Layer
from crumble_common.messages.image import Image


class Origin:
    """Used by any number of VMs at once; each takes it, and releases it at its end.

    path: its directory. snapshot: None when it is not in the store. layers: for fsd: the image's, and last what the guest had written, all of it.
    """

    def __init__(
        self, about: Manifest, state: State, path: Path, on_unused: Callable[[], None],
        snapshot: Snapshot | None = None,
    ) -> None:  # fmt: skip
        self.about = about
        self.state = state
        self.path = path
        self.image_layers = self._image_layers()
        self.layers = [*self.image_layers]
        if about.changed:
            self.layers.append(_pair(path / form.INDEX))
        self.snapshot = snapshot
        self._users = 0
        self._on_unused = on_unused

    @classmethod
    def of(cls, snapshot: Snapshot) -> Origin:
        """One in the store; closed when nobody uses it. UsageError "snapshot.image"."""
        try:
            return cls(snapshot.manifest, snapshot.state, snapshot.path, snapshot.close, snapshot)
        except BaseException:
            snapshot.close()
            raise

    def take(self) -> None:
        """One VM more uses it."""
        self._users += 1

    def release(self) -> None:
        """One less; after the last one it is closed."""
        self._users -= 1
        if self._users == 0:
            self._on_unused()

    def memory(self) -> dict[str, int]:
        """The fds of its MemoryBase by name, for reading; the caller's."""
        fds = {}
        with contextlib.ExitStack() as stack:
            for name, file in zip(memory_base.FILES, self.about.memories, strict=False):
                fds[name] = os.open(self.path / file, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fds[name])
            if self.snapshot is not None and self.snapshot.runs:
                fds[memory_base.RUNS] = fd = os.memfd_create("runs", os.MFD_CLOEXEC)
                stack.callback(os.close, fd)
                os.write(fd, memory_base.pack(self.snapshot.runs))
            stack.pop_all()  # the caller's
        return fds

    def image(self) -> Image:
        """The image that the VM was made of, as far as it matters now."""
        saved = self.about.image
        return Image(
            id=saved.id,
            digest=saved.digest,
            reference=saved.reference,
            platform=f"linux/{self.about.architecture}",
            size=0,
            created="",
            config=saved.config,
            layers=self.image_layers,
        )

    def _image_layers(self) -> list[Layer]:
        """Our own copies, or the image store's."""
        store = paths.store_dir() / "layers"
        found = []
        for number, name in enumerate(self.about.image.layers):
            own = self.path / f"image-{number}.index"
            layer = _pair(own if own.exists() else store / f"{name}.index")
            if not Path(layer.index).exists():
                raise missing_image(self.about)
            found.append(layer)
        return found


def _pair(index: Path) -> Layer:
    return Layer(str(index), str(index.with_suffix(".contents")))
