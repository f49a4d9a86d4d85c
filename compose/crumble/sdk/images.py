"""The image store, for programs."""

from __future__ import annotations

from collections.abc import Callable

from crumble.sdk.options import image_reference
from crumble.sdk.session import session
from crumble_common.messages import image as messages
from crumble_common.messages.image import Image

__all__ = ["Image", "images", "inspect", "pull", "remove"]

OnProgress = Callable[[messages.Progress], None]


def pull(reference: str, *, platform: str = "", on_progress: OnProgress | None = None) -> Image:
    """Fetches an image, also when a version of it is in the store already.

    on_progress: called with Progress messages, in another thread.
    """
    link = session()
    link.listen("images", on_progress)
    request = messages.ImageGet(image_reference(reference), platform, "always", "pull")
    image: Image = link.call(request, to="images")
    return image


def images() -> list[Image]:
    """Every image in the store, newest first."""
    found: messages.Images = session().call(messages.ImageList(), to="images")
    return found.images


def inspect(reference: str) -> messages.ImageDetails:
    """An image with its manifest, its config and the references that name it."""
    request = messages.ImageInspect(image_reference(reference))
    details: messages.ImageDetails = session().call(request, to="images")
    return details


def remove(reference: str) -> messages.Removed:
    """Removes a reference, and what nothing refers to any more."""
    request = messages.ImageRemove(image_reference(reference))
    removed: messages.Removed = session().call(request, to="images")
    return removed
