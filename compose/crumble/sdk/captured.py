"""Snapshots for programs: those with a name, forks, images made of a VM's files, and their factory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from crumble.sdk.options import image_reference
from crumble.sdk.session import session
from crumble.snapshots import archive
from crumble.snapshots.store import Found, Store
from crumble.snapshots.verify import verify
from crumble_common.errors import CrumbleError, UsageError
from crumble_common.messages import image as images

# Images that the factory made.
_BUILT = "crumble.local/built"


class Snapshot:
    """A snapshot in the store, by name; or, from `from_`, a recipe for an image that is built once."""

    def __init__(self, name: str, pause: float = 0.0) -> None:
        """pause: how long the VM stood still for it, s, where that is known."""
        self.name = name
        self.pause = pause

    @staticmethod
    def list() -> list[Found]:
        """Every snapshot, the last used first."""
        return Store().found()

    def remove(self) -> None:
        """Removes it; UsageError "snapshot.in_use"."""
        Store().remove(self.name)

    def verify(self) -> None:
        """Looks at every byte; GuestError "snapshot.corrupt"."""
        snapshot = Store().open(self.name)
        try:
            verify(snapshot)
        finally:
            snapshot.close()

    def export(self, path: str | Path) -> None:
        """Writes it to one file."""
        snapshot = Store().open(self.name)
        try:
            archive.export(snapshot, Path(path).absolute())
        finally:
            snapshot.close()

    @classmethod
    def load(cls, path: str | Path, name: str = "") -> Snapshot:
        """Takes in what `export` wrote."""
        return cls(archive.import_file(Store(), Path(path), name).name)

    @staticmethod
    def from_(image: str) -> Recipe:
        """A recipe that begins with an image."""
        return Recipe(image_reference(image))


class Recipe:
    """Commands to run on an image, and what of their files to leave out. `build` gives an image's name.

        image = Snapshot.from_("deb:trixie").run("apt-get install -y jq").exclude("/var/cache").build()
        with crumble.VM(image) as vm: ...

    Every method gives another recipe. The same recipe on the same image is built once.
    """

    def __init__(self, image: str, steps: Sequence[dict[str, Any]] = ()) -> None:
        self._image = image
        self._steps = tuple(steps)

    def run(
        self, command: str | Sequence[str], *, env: Mapping[str, str] | None = None, user: str = ""
    ) -> Self:
        """Runs a command: a list, or a string for the guest's /bin/sh."""
        words = command if isinstance(command, str) else list(command)
        return self._with({"run": words, "env": dict(env or {}), "user": user})

    def exclude(self, *paths: str) -> Self:
        """Leaves paths out of the image."""
        return self._with({"exclude": list(paths)})

    def _with(self, step: dict[str, Any]) -> Self:
        return type(self)(self._image, (*self._steps, step))

    def key(self) -> str:
        """What the result depends on: the base image and every step."""
        found: images.Image = session().call(images.ImageGet(self._image), to="images")
        text = json.dumps([found.id, self._steps], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def build(self, *, rebuild: bool = False, **vm_options: Any) -> str:
        """The image's name; built when it is not there. vm_options: of the VM that builds it.

        Raises CommandError when a command fails.
        """
        reference = f"{_BUILT}:{self.key()[:32]}"
        if not rebuild and _exists(reference):
            return reference
        from crumble.sdk.vm import VM

        with VM(self._image, **vm_options) as vm:
            excludes: list[str] = []
            for step in self._steps:
                if "run" in step:
                    vm.run(step["run"], env=step["env"], user=step["user"], check=True)
                else:
                    excludes += step["exclude"]
            vm.snapshot_filesystem(reference, excludes=excludes)
        return reference


def _exists(reference: str) -> bool:
    try:
        session().call(images.ImageInspect(reference), to="images")
    except CrumbleError as error:
        if not isinstance(error, UsageError):
            raise
        return False
    return True
