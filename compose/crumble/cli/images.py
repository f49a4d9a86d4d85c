"""`crumble images`."""

from __future__ import annotations

import datetime

from crumble.cli import output
from crumble.cli.link import Link
from crumble.cli.parser import Parser
from crumble_common.messages import image as messages


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("images", "Lists the images in the store.")
    parser.add_argument("-q", "--quiet", action="store_true", help="references only")
    parser.json()
    options = parser.parse_args(arguments)
    with Link() as link:
        found: messages.Images = link.call(messages.ImageList(), to="images")
    if options.json:
        output.as_json(found.images)
    elif options.quiet:
        for image in found.images:
            print(output.clean(image.reference))
    else:
        head = ("REFERENCE", "ID", "PLATFORM", "CREATED", "SIZE")
        output.table(head, [_row(image) for image in found.images])
    return 0


def _row(image: messages.Image) -> tuple[str, ...]:
    cells = (image.reference, output.short_id(image.id), image.platform, _created(image.created))
    return (*cells, output.size(image.size))


def _created(text: str) -> str:
    try:
        return output.age(datetime.datetime.fromisoformat(text).timestamp())
    except ValueError:
        return text
