"""What a VM is made of, remembered: asking `ocid` takes a good part of the time in which a VM goes on.

An answer holds as long as the directories have not changed in which the store names images and kernels:
there everything appears and goes by rename.
"""

from __future__ import annotations

import os
from pathlib import Path

from crumble_common import paths
from crumble_common.messages.client import VmCreate
from crumble_common.messages.image import Image, Kernel

# References to what is outside the store, which may have changed.
_OUTSIDE = ("oci:", "docker-archive:")
_KEPT = 256

Stamp = tuple[int, ...]
_Found = tuple[Image, Kernel]


class Materials:
    """Answers by what was asked."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], tuple[Stamp, _Found]] = {}

    def known(self, request: VmCreate, architecture: str) -> _Found | None:
        """What `ocid` would answer; None when it must be asked."""
        if request.pull != "missing" or request.image.startswith(_OUTSIDE):
            return None
        key = (request.image, request.kernel, architecture)
        asked, found = self._known.get(key, ((), None))
        if found is None or asked != stamp(architecture) or not _there(*found):
            self._known.pop(key, None)
            return None
        return found

    def remember(self, request: VmCreate, architecture: str, found: _Found, asked: Stamp) -> None:
        """For the next one that asks. asked: the stamp before `ocid` was, as it may change meanwhile."""
        if len(self._known) == _KEPT:
            self._known.clear()
        self._known[request.image, request.kernel, architecture] = asked, found


def stamp(architecture: str) -> Stamp:
    """Differs whenever names in the store do."""
    store = paths.store_dir()
    places = (store / "references", store / "kernels", store / "kernels" / architecture)
    return tuple(_changed(place) for place in places)


def _changed(place: Path) -> int:
    try:
        return place.stat().st_mtime_ns
    except OSError:
        return 0


def _there(image: Image, kernel: Kernel) -> bool:
    files = [kernel.image, *kernel.modules]
    for layer in image.layers:
        files += [layer.index, layer.contents]
    return all(os.access(path, os.R_OK) for path in files)
