"""`crumble rmi IMAGE...`."""

from __future__ import annotations

from crumble.cli import output
from crumble.cli.link import Link
from crumble.cli.main import FAILED, say
from crumble.cli.parser import Parser
from crumble.sdk.options import image_reference
from crumble_common.errors import CrumbleError
from crumble_common.messages import image as messages


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("rmi", "Removes images from the store, and what nothing refers to any more.")
    parser.json()
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    options = parser.parse_args(arguments)
    status, removed = 0, []
    with Link() as link:
        for reference in options.images:
            try:
                request = messages.ImageRemove(image_reference(reference))
                removed.append(link.call(request, to="images"))
            except CrumbleError as error:
                say(str(error))
                status = FAILED
    if options.json:
        output.as_json(removed)
    else:
        _show(removed)
    return status


def _show(removed: list[messages.Removed]) -> None:
    for item in removed:
        for reference in item.references:
            print(f"removed {output.clean(reference)}")
    freed = sum(item.freed for item in removed)
    if freed:
        print(f"freed {output.size(freed)}")
