"""`crumble pull IMAGE`."""

from __future__ import annotations

from crumble.cli import output
from crumble.cli.link import Link
from crumble.cli.parser import Parser
from crumble.cli.progress import Bars
from crumble.sdk.options import image_reference
from crumble_common.messages import image as messages


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("pull", "Fetches an image into the store, or what is new of it.")
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="default: the guest's")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    parser.json()
    parser.add_argument("image", metavar="IMAGE")
    options = parser.parse_args(arguments)
    request = messages.ImageGet(image_reference(options.image), options.platform, "always", "pull")
    with Link() as link, Bars(quiet=options.quiet) as bars:
        link.client.listen("images", bars.event)
        image: messages.Image = link.call(request, to="images")
    if options.json:
        output.as_json(image)
    else:
        print(image.digest)
    return 0
